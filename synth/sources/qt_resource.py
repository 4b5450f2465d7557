"""Reader of Qt's binary resource files (``.rcc``), the way GCompris ships pictures and sounds.

The layout follows Qt's own reader, qtbase ``src/corelib/io/qresource.cpp``. All numbers are big
endian. A header (``qres``, version, offsets of tree, data and names), then

- tree: nodes of 14 bytes, or 22 from version 2 on (they end in a time). A directory's node names
  its children by count and index of the first; a file's node holds the offset of its data;
- names: length in UTF-16 units (uint16), hash (uint32), UTF-16;
- data: length (uint32), then the bytes, plain, zlib (after a uint32 with the plain length) or
  zstd, as the node's flags say.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

MAX_MEMBER_BYTES = 64 << 20
MAX_MEMBERS = 100_000
MAX_DEPTH = 64

_COMPRESSED_ZLIB = 1
_DIRECTORY = 2
_COMPRESSED_ZSTD = 4
_KNOWN_VERSIONS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where one file lies in the container: ``size`` stored bytes from ``offset``."""

    offset: int
    size: int
    flags: int


def list_members(data: bytes) -> dict[str, Member]:
    """Every file of the container by its path, sorted.

    Raises:
        ValueError: not a Qt resource file, an unknown version, or damaged.
    """
    if data[:4] != b"qres":
        raise ValueError("not a Qt resource file: it does not begin with 'qres'")
    try:
        version, tree, payload, names = struct.unpack_from(">4I", data, 4)
        if version not in _KNOWN_VERSIONS:
            raise ValueError(f"Qt resource version {version} is not one of {_KNOWN_VERSIONS}")
        members = dict(_walk(data, tree, payload, names, node_size=14 if version == 1 else 22))
    except struct.error:
        raise ValueError("the Qt resource file is damaged: an offset leads outside it") from None
    return dict(sorted(members.items()))


def read_member(data: bytes, member: Member, *, limit: int = MAX_MEMBER_BYTES) -> bytes:
    """The plain bytes of one file of the container ``data``.

    Raises:
        ValueError: the stored bytes are damaged, or unpack to more than ``limit``.
    """
    stored = data[member.offset : member.offset + member.size]
    if member.flags & _COMPRESSED_ZLIB:
        return _unpack_zlib(stored[4:], limit)
    if member.flags & _COMPRESSED_ZSTD:
        return _unpack_zstd(stored, limit)
    _check_size(len(stored), limit)
    return stored


def _walk(
    data: bytes, tree: int, payload: int, names: int, *, node_size: int
) -> Iterator[tuple[str, Member]]:
    # (node, path of its folder, depth); the root's own name is empty.
    pending = [(0, "", 0)]
    seen: set[int] = set()
    while pending:
        node, folder, depth = pending.pop()
        if node in seen or depth > MAX_DEPTH or len(seen) >= MAX_MEMBERS:
            raise ValueError("the Qt resource file is damaged: its tree does not end")
        seen.add(node)
        name_offset, flags = struct.unpack_from(">IH", data, tree + node * node_size)
        path = folder + _name(data, names + name_offset) if node else ""
        first, second = struct.unpack_from(">II", data, tree + node * node_size + 6)
        if flags & _DIRECTORY:
            count, child = first, second
            if count > MAX_MEMBERS:
                raise ValueError("the Qt resource file is damaged: its tree does not end")
            inside = f"{path}/" if path else ""
            pending.extend((child + k, inside, depth + 1) for k in range(count))
        else:
            offset = payload + second
            (size,) = struct.unpack_from(">I", data, offset)
            if offset + 4 + size > len(data):
                raise ValueError(f"the Qt resource file is damaged: {path!r} is cut off")
            yield path, Member(offset=offset + 4, size=size, flags=flags)


def _name(data: bytes, offset: int) -> str:
    (units,) = struct.unpack_from(">H", data, offset)
    raw = data[offset + 6 : offset + 6 + 2 * units]
    try:
        name = raw.decode("utf-16-be")
    except UnicodeDecodeError:
        raise ValueError("the Qt resource file is damaged: a name is not UTF-16") from None
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"the Qt resource file has a member named {name!r}, which is no file name")
    return name


def _unpack_zlib(stored: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(stored, limit + 1)
    except zlib.error as error:
        raise ValueError(f"a member cannot be unpacked: {error}") from None
    _check_size(len(plain), limit)
    if not unpacker.eof:
        raise ValueError("a member cannot be unpacked: its zlib data is cut off")
    return plain


def _unpack_zstd(stored: bytes, limit: int) -> bytes:
    try:
        with pa.input_stream(io.BytesIO(stored), compression="zstd") as stream:
            plain = bytes(stream.read(limit + 1))
    except OSError as error:
        raise ValueError(f"a member cannot be unpacked: {error}") from None
    _check_size(len(plain), limit)
    return plain


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"a member unpacks to more than the {limit} bytes allowed")
