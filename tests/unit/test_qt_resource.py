"""Qt resource files, made here byte by byte."""

from __future__ import annotations

import struct
import zlib

import pyarrow as pa
import pytest

from synth.sources.qt_resource import list_members, read_member

ZLIB, FOLDER, ZSTD = 1, 2, 4


def made_container(
    files: dict[str, tuple[int, bytes]], *, version: int = 3, folder: str = "pictures"
) -> bytes:
    """A container with one folder of files, each ``(flags, stored bytes)``."""
    names, payload, tree = b"", b"", b""
    times = b"" if version == 1 else bytes(8)

    def name(text: str) -> int:
        nonlocal names
        offset = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return offset

    tree += struct.pack(">IHII", 0, FOLDER, 1, 1) + times
    tree += struct.pack(">IHII", name(folder), FOLDER, len(files), 2) + times
    for file, (flags, stored) in files.items():
        tree += struct.pack(">IHHHI", name(file), flags, 0, 0, len(payload)) + times
        payload += struct.pack(">I", len(stored)) + stored
    start = 24 if version == 3 else 20
    header = b"qres" + struct.pack(
        ">4I", version, start, start + len(tree), start + len(tree) + len(payload)
    )
    return header + (bytes(4) if version == 3 else b"") + tree + payload + names


def zlib_stored(plain: bytes) -> bytes:
    return struct.pack(">I", len(plain)) + zlib.compress(plain)


def zstd_stored(plain: bytes) -> bytes:
    return bytes(pa.compress(plain, codec="zstd", asbytes=True))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_plain_zlib_and_zstd_members_are_read(version: int) -> None:
    data = made_container(
        {
            "a.png": (0, b"plain"),
            "ä.png": (ZLIB, zlib_stored(b"zlib " * 1000)),
            "c.png": (ZSTD, zstd_stored(b"zstd " * 1000)),
        },
        version=version,
    )
    members = list_members(data)
    assert list(members) == ["pictures/a.png", "pictures/c.png", "pictures/ä.png"]
    contents = {path: read_member(data, member) for path, member in members.items()}
    assert contents["pictures/a.png"] == b"plain"
    assert contents["pictures/ä.png"] == b"zlib " * 1000
    assert contents["pictures/c.png"] == b"zstd " * 1000


@pytest.mark.parametrize(("flags", "pack"), [(ZLIB, zlib_stored), (ZSTD, zstd_stored)])
def test_members_unpack_no_further_than_the_limit(flags: int, pack: object) -> None:
    data = made_container({"bomb": (flags, pack(bytes(1 << 20)))})  # type: ignore[operator]
    (member,) = list_members(data).values()
    with pytest.raises(ValueError, match="more than the 1000 bytes"):
        read_member(data, member, limit=1000)


def test_damaged_members_are_an_error() -> None:
    for flags, stored in ((ZLIB, zlib_stored(b"x" * 999)[:-6]), (ZSTD, b"no zstd at all")):
        data = made_container({"a": (flags, stored)})
        (member,) = list_members(data).values()
        with pytest.raises(ValueError, match="cannot be unpacked"):
            read_member(data, member)


def test_what_is_no_resource_file_is_an_error() -> None:
    whole = made_container({"a": (0, b"plain")})
    for data, words in (
        (b"", "not a Qt resource"),
        (b"PK\x03\x04 zip", "not a Qt resource"),
        (b"qres" + struct.pack(">4I", 9, 0, 0, 0), "version 9"),
        (whole[:30], "damaged"),
        (b"qres" + struct.pack(">4I", 3, 1 << 30, 1 << 30, 1 << 30), "damaged"),
    ):
        with pytest.raises(ValueError, match=words):
            list_members(data)


def test_a_tree_that_loops_is_an_error() -> None:
    # The folder's only child is the folder itself.
    names = struct.pack(">HI", 1, 0) + "a".encode("utf-16-be")
    tree = struct.pack(">IHII", 0, FOLDER, 1, 1) + bytes(8)
    tree += struct.pack(">IHII", 0, FOLDER, 1, 1) + bytes(8)
    header = b"qres" + struct.pack(">5I", 3, 24, 24 + len(tree), 24 + len(tree), 0)
    with pytest.raises(ValueError, match="does not end"):
        list_members(header + tree + names)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc"])
def test_names_that_lead_out_of_the_container_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no file name"):
        list_members(made_container({name: (0, b"x")}))
