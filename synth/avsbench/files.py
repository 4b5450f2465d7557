"""The files of a tree, whether they lie in folders or in zip files.

A zip file is listed once, by ``zipfile``, and each member is then read by its offset: a worker
needs neither the whole file nor its directory. Nothing is unpacked to a disk.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from infra import storage
from infra.storage_errors import refusable

MAX_FILE_BYTES = 64 << 20

# A clip of the longest form has 21 files.
_AT_ONCE = 24
_BUFFER = 1 << 20
_LOCAL_HEADER = 30
# The extra fields before a member may be longer than those in its entry in the directory. So many
# bytes more are there in every zip file: the entry and the directory's end follow.
_EXTRA = 64
_ENCRYPTED = 0x1
UNREAD = -1


class Packed(NamedTuple):
    """Where a member lies in its zip file."""

    offset: int
    """Of its local header."""
    header: int
    """Bytes to read for that header; mostly enough."""
    size: int
    """Bytes as packed."""
    crc: int
    method: int
    """As ``zipfile`` counts them; ``UNREAD`` for one that is not read here."""


class File(NamedTuple):
    """A file on the storage, or a member of a zip file there."""

    uri: str
    """Of the file, or of the zip file."""
    path: str
    """In the benchmark's own layout."""
    size: int
    packed: Packed | None = None


def read(file: File) -> bytes:
    """Its content.

    Raises:
        ValueError: it is larger than ``MAX_FILE_BYTES``, may not be read, or is packed by another
            method than deflate; or the zip file is damaged there.
        FileNotFoundError: it has gone.
    """
    if file.packed is None:
        with refusable(file.uri, file.path):
            return storage.read_bytes(file.uri, limit=MAX_FILE_BYTES)
    packed = file.packed
    if packed.method == UNREAD:
        raise ValueError(
            f"unreadable: {file.path} is encrypted in {file.uri}, or packed by another method than "
            "deflate: unpack it to a folder"
        )
    if max(file.size, packed.size) > MAX_FILE_BYTES:
        raise ValueError(
            f"unreadable: {file.path} is larger than the {MAX_FILE_BYTES} bytes that are read of "
            "such a file"
        )
    data = storage.read_range(file.uri, packed.offset, packed.header + packed.size)
    start = _LOCAL_HEADER + int.from_bytes(data[26:28], "little")
    start += int.from_bytes(data[28:30], "little")
    damaged = ValueError(
        f"unreadable: {file.path} is damaged in {file.uri}: fetch that again, then run with "
        "--retry-refused"
    )
    if not data.startswith(b"PK\x03\x04"):
        raise damaged
    content = data[start : start + packed.size]
    if len(content) < packed.size:
        content = storage.read_range(file.uri, packed.offset + start, packed.size)
    if packed.method == zipfile.ZIP_DEFLATED:
        try:
            # One byte more than is promised is enough to know a lie.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, file.size + 1)
        except zlib.error:
            raise damaged from None
    if len(content) != file.size or zlib.crc32(content) != packed.crc:
        raise damaged
    return content


def read_many(wanted: Sequence[File]) -> dict[str, bytes]:
    """The content of each, by its path.

    Raises:
        ValueError, FileNotFoundError: as ``read`` of the first that cannot be read.
    """
    if not any(file.uri.startswith("s3://") for file in wanted):
        return {file.path: read(file) for file in wanted}
    # There each takes a round trip, in which nothing else would be done.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        paths = [file.path for file in wanted]
        return dict(zip(paths, pool.map(read, wanted), strict=True))


def list_folder(uri: str) -> dict[str, File]:
    """Every file below a folder, by its path below it."""
    root = storage.normalise(uri)
    return {
        path: File(f"{root}/{path}", path, size) for path, size in storage.list_sizes(root).items()
    }


def list_zip(uri: str) -> Iterator[File]:
    """The members of a zip file that are plain files with a path inside it.

    Raises:
        ValueError: it is no zip file, or cut short.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Seekable(uri), _BUFFER)) as file:
            members = file.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{uri} is no zip file or cut short ({error}): fetch it again; of one that comes in "
            "parts, join the parts first"
        ) from None
    for member in members:
        if member.is_dir() or not _is_inside(member.filename) or not _is_plain(member):
            continue
        yield File(
            uri,
            member.filename,
            member.file_size,
            Packed(
                member.header_offset,
                _LOCAL_HEADER + len(member.filename.encode()) + len(member.extra) + _EXTRA,
                member.compress_size,
                member.CRC,
                member.compress_type if _is_read(member) else UNREAD,
            ),
        )


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return not (name.startswith("/") or "\\" in name or "\0" in name or ".." in parts)


def _is_plain(member: zipfile.ZipInfo) -> bool:
    return stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)


def _is_read(member: zipfile.ZipInfo) -> bool:
    is_known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return is_known and not member.flag_bits & _ENCRYPTED


class _Seekable(io.RawIOBase):
    """A file on any storage that ``zipfile`` can seek in."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._size = storage.size(uri)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("a seek to before the start of the file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        count = max(0, min(len(view), self._size - self._at))
        if count:
            view[:count] = storage.read_range(self._uri, self._at, count)
            self._at += count
        return count
