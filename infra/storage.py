"""One way to reach bytes: a path, ``file://`` or ``s3://`` (any S3 server).

The S3 endpoint and keys come from the standard AWS environment variables
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``).

Object stores have no atomic rename, so nothing here relies on one: an object appears whole or
not at all, on S3 because a PUT does and a multipart upload when it is completed, on a disk because
the bytes are written aside and renamed. What a store may stumble over is in ``infra.retrying``.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from infra import disk, s3
from infra.retrying import retries, retrying
from infra.s3 import Stored
from infra.storage_errors import FOLDER, plain_errors

__all__ = [
    "Stored",
    "cache_folder",
    "clear_leftovers",
    "create",
    "download",
    "exists",
    "filesystem",
    "for_arrow",
    "iter_files",
    "join",
    "list_files",
    "list_sizes",
    "normalise",
    "open_read",
    "read_bytes",
    "read_many",
    "read_range",
    "read_stored",
    "remove",
    "replace_if",
    "retries",
    "size",
    "upload",
    "write_bytes",
]

Result = TypeVar("Result")

# Larger than any document (manifest, table, marker) that is read whole.
DEFAULT_READ_LIMIT = 1 << 30

# Asked for anew, fsspec takes as long as reading a small file.
_DISK = fsspec.filesystem("file")
_READERS = 32
# Bytes of one request of ``open_read``.
_PIECE = 4 << 20


def cache_folder() -> Path:
    """``$SAVE_CACHE``, or ``save-pipelines`` in the user's cache folder."""
    named = os.environ.get("SAVE_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "save-pipelines"


def normalise(uri: str | Path) -> str:
    """A URI that means the same in every process: paths become absolute.

    Raises:
        ValueError: the scheme is none of a path, ``file://`` and ``s3://``.
    """
    text = str(uri)
    if text.startswith("file://"):
        text = text[len("file://") :]
    if text.startswith("s3://"):
        if not text[len("s3://") :].strip("/"):
            raise ValueError(f"{uri!r} names no bucket: write s3://bucket/prefix")
        return text.rstrip("/")
    if "://" in text:
        raise ValueError(f"{uri!r} is no URI this can read: use a path, file:// or s3://")
    if not text:
        raise ValueError("an empty path was given where a path, file:// or s3:// URI is needed")
    return str(Path(text).expanduser().absolute())


def filesystem(uri: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem that holds ``uri`` and the path of ``uri`` in it."""
    text = normalise(uri)
    if not text.startswith("s3://"):
        return _DISK, text
    return s3.connect(), text[len("s3://") :]


def join(uri: str | Path, *parts: str) -> str:
    """``uri/part/...``; no part may be absolute or climb out of ``uri``."""
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise ValueError(f"{part!r} leads out of {uri}: use a name inside it")
    return "/".join([normalise(uri).rstrip("/"), *parts])


def _ask(uri: str | Path, action: Callable[[], Result]) -> Result:
    """``action()``, tried again where that may help, its failure told in one sentence."""
    with plain_errors(uri):
        return retrying(action, what=str(uri))


def size(uri: str | Path) -> int:
    """Bytes of one object; ValueError where a folder stands."""
    fs, path = filesystem(uri)
    info = _ask(uri, lambda: fs.info(path))
    if info["type"] == "directory":
        raise ValueError(f"{uri} cannot be used: {FOLDER}")
    return int(info["size"])


def read_bytes(uri: str | Path, *, limit: int = DEFAULT_READ_LIMIT) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is larger than ``limit`` bytes.
    """
    fs, path = filesystem(uri)
    if not _is_local(fs):
        return _ask(uri, lambda: s3.read(fs, path, limit=limit)).data
    with plain_errors(uri):
        return disk.read(path, limit=limit)


def read_many(uris: Sequence[str], *, limit: int = DEFAULT_READ_LIMIT) -> Iterator[bytes | None]:
    """Whole objects, many at once, in the order asked for; None for one that is not there."""

    def read(uri: str) -> bytes | None:
        try:
            return read_bytes(uri, limit=limit)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read, uris)


def read_range(uri: str | Path, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset``; ValueError when the object ends before."""
    fs, path = filesystem(uri)
    data: bytes = _ask(uri, lambda: fs.cat_file(path, start=offset, end=offset + size))
    if len(data) != size:
        raise ValueError(
            f"{uri} ends after {offset + len(data)} bytes where {offset + size} are needed: "
            "the file is damaged, write it again"
        )
    return data


def open_read(uri: str | Path) -> io.BufferedReader:
    """An object from front to back, a piece in memory, each with the patience that all reads have.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a folder; while it is read: it ends early.
    """
    return io.BufferedReader(_Pieces(uri))


class _Pieces(io.RawIOBase):
    def __init__(self, uri: str | Path) -> None:
        self._uri = uri
        self._size = size(uri)
        self._at = 0
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._piece and self._at < self._size:
            count = min(_PIECE, self._size - self._at)
            self._piece = memoryview(read_range(self._uri, self._at, count))
            self._at += count
        taken = self._piece[: len(buffer)]
        buffer[: len(taken)] = taken
        self._piece = self._piece[len(taken) :]
        return len(taken)


def read_stored(uri: str | Path, *, limit: int = DEFAULT_READ_LIMIT) -> Stored | None:
    """The whole object with its tag and age, or None where there is none."""
    fs, path = filesystem(uri)
    try:
        if not _is_local(fs):
            return _ask(uri, lambda: s3.read(fs, path, limit=limit))
        with plain_errors(uri):
            return disk.read_stored(path, limit=limit)
    except FileNotFoundError:
        return None


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write an object whole or not at all."""
    fs, path = filesystem(uri)
    if not _is_local(fs):
        _ask(uri, lambda: s3.write(fs, path, data))
        return
    with plain_errors(uri):
        disk.write(path, data)


def create(uri: str | Path, data: bytes) -> str | None:
    """Write an object where none stands; its tag, or None where another stands.

    Of several that try at once one succeeds. A request whose answer was lost is sent again, so
    ``data`` has to tell its writer apart: who finds exactly its own bytes takes them for its own.
    """
    fs, path = filesystem(uri)
    if not _is_local(fs):
        return _ask(uri, lambda: s3.write_if(fs, path, data, IfNoneMatch="*"))
    with plain_errors(uri):
        return disk.create(path, data)


def replace_if(uri: str | Path, data: bytes, etag: str) -> str | None:
    """Write an object over the one with the tag ``etag``; its new tag, or None where that one
    stands no more. ``data`` has to tell its writer apart, as in ``create``.
    """
    fs, path = filesystem(uri)
    if not _is_local(fs):
        return _ask(uri, lambda: s3.write_if(fs, path, data, IfMatch=etag))
    with plain_errors(uri):
        return disk.replace_if(path, data, etag)


def upload(local: Path, uri: str | Path) -> None:
    """Copy a local file to ``uri``, whole or not at all."""
    fs, path = filesystem(uri)
    if not _is_local(fs):
        _ask(uri, lambda: s3.upload(fs, local, path))
        return
    with plain_errors(uri):
        disk.upload(local, path)


def download(uri: str | Path, local: Path) -> None:
    """Copy the object ``uri`` to a local file, whole or not at all.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was replaced by another one meanwhile.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri):
        if _is_local(fs):
            with disk.aside(local) as aside:
                shutil.copyfile(path, aside)
            return
        info = retrying(lambda: fs.info(path), what=str(uri))

        def fetch(start: int) -> None:
            part = retrying(lambda: s3.read_part(fs, path, info, start), what=str(uri))
            os.pwrite(file.fileno(), part, start)

        # Each part on its own, so that one that breaks does not cost the others.
        with (
            disk.aside(local) as aside,
            aside.open("wb") as file,
            ThreadPoolExecutor(s3.PARTS_AT_ONCE) as pool,
        ):
            for _ in pool.map(fetch, range(0, int(info["size"]), s3.PART)):
                pass


def exists(uri: str | Path) -> bool:
    """Whether an object or a folder with something in it stands at ``uri``."""
    fs, path = filesystem(uri)
    return bool(_ask(uri, lambda: fs.exists(path)))


def list_sizes(uri: str | Path, suffix: str = "") -> dict[str, int]:
    """Bytes of every object below ``uri`` (at any depth), by its name below ``uri``, sorted.

    Names that begin with a dot are files still being written and are left out.
    """
    fs, path = filesystem(uri)
    found = _ask(uri, lambda: fs.find(path, detail=True))
    return {
        name[len(path) :].lstrip("/"): int(info["size"])
        for name, info in sorted(found.items())
        # Some servers keep an empty folder where the last object of a prefix was.
        if info["type"] == "file"
        and name.endswith(suffix)
        and not name.rsplit("/", 1)[-1].startswith(".")
    }


def list_files(uri: str | Path, suffix: str = "") -> list[str]:
    """The URIs of what ``list_sizes`` lists."""
    root = normalise(uri).rstrip("/")
    return [f"{root}/{name}" if name else root for name in list_sizes(uri, suffix)]


def iter_files(uri: str | Path) -> Iterator[str]:
    """The name below ``uri`` of every object at any depth, in any order.

    For folders of millions: a page of names is held at a time, where ``list_sizes`` holds all.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri):
        for name in disk.walk(path) if _is_local(fs) else s3.walk(fs, path):
            if not name.rsplit("/", 1)[-1].startswith("."):
                yield name


def clear_leftovers(uri: str | Path) -> None:
    """Remove what writers that were killed have left in a folder and those just below it.

    That is what they wrote aside, and on S3 the parts of uploads that were not completed. Only for
    whoever is the one writer there: it cuts short what another writes.
    """
    fs, path = filesystem(uri)
    if _is_local(fs):
        with plain_errors(uri):
            disk.clear_leftovers(path)
    else:
        _ask(uri, lambda: s3.abort_uploads(fs, path, below=True))


def remove(uri: str | Path) -> None:
    """Remove one object if it is there."""
    fs, path = filesystem(uri)

    def remove_it() -> None:
        if fs.exists(path):
            with suppress(FileNotFoundError):
                fs.rm_file(path)

    _ask(uri, remove_it)


def for_arrow(uri: str | Path) -> tuple[str, Any]:
    """``(path, filesystem)`` as Ray Train's and pyarrow's ``storage_path`` pair wants them."""
    import pyarrow.fs

    fs, path = filesystem(uri)
    if _is_local(fs):
        return path, pyarrow.fs.LocalFileSystem()
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3.connect(own_retries=True)))


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in fs.protocol
