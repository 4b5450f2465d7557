"""Where each member lies in its shard, and reading it there, with checks of both ends.

The index of a shard and its tar are two files that could disagree. The index is checked once, when
it is read: its members fill the tar without a gap, so nothing lies there that the index does not
list. The tar is checked with every read: the header in front of each member must be that of a
regular file with the name and size that the index gives, so a link, a device or a path from
somewhere else is never taken for a member.

Shapes: R samples, M members of all of them.
"""

from __future__ import annotations

import mmap
import os
import re
import tarfile
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Larger than any picture or sound that the decoders take.
MAX_MEMBER = 1 << 30

_BLOCK = tarfile.BLOCKSIZE
# A name that is longer stands in two blocks of its own before the header.
_SHORT_NAME = tarfile.LENGTH_NAME
_KEYS = "^[A-Za-z0-9_-]{1,100}$"
_NAME = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)?")
_NO_PREFIX = bytes(_BLOCK - 345)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)


class Member(NamedTuple):
    """One member of a sample, by its place in the tar in bytes."""

    name: str
    start: int
    """Of the header."""
    offset: int
    """Of the data."""
    size: int


class MemberIndex:
    """The members of a split's samples.

    The columns are those of the table itself, so worker processes that fork share one copy.
    """

    def __init__(self, table: pa.Table) -> None:
        """``table`` is one of ``Corpus.table``, in one piece."""
        members = _one_chunk(table["members"])
        flat = members.flatten()
        names = flat.field("name").dictionary_encode()
        first_R = members.offsets.to_numpy()
        self.names: list[str] = names.dictionary.to_pylist()
        self.first_R = first_R - first_R[0]
        self.code_M = names.indices.to_numpy()
        self.offset_M = flat.field("offset").to_numpy()
        self.size_M = flat.field("size").to_numpy()
        self._keys = _one_chunk(table["key"])

    def key(self, row: int) -> str:
        """The key of a sample."""
        return str(self._keys[row].as_py())

    def find(self, row: int, wanted: Collection[str] | None = None) -> tuple[str, list[Member]]:
        """The key of a sample and its members, all or only those ``wanted``, in the tar's order."""
        key = self.key(row)
        first, last = self.first_R[row : row + 2].tolist()
        places = zip(
            self.code_M[first:last].tolist(),
            self.offset_M[first:last].tolist(),
            self.size_M[first:last].tolist(),
            strict=True,
        )
        found = []
        for code, offset, size in places:
            name = self.names[code]
            if wanted is None or name in wanted:
                lead = _BLOCK if len(key) + 1 + len(name) <= _SHORT_NAME else 3 * _BLOCK
                found.append(Member(name, offset - lead, offset, size))
        return key, found


def check_index(table: pa.Table, first_K: np.ndarray, tar_bytes_K: np.ndarray) -> None:
    """Whether the indexes of some shards, one after the other, can be those of tars of such sizes.

    Args:
        table: in one piece.
        first_K: the number of each shard's first row, and the end: int64 ``[K + 1]``.
        tar_bytes_K: int64 ``[K]``.

    Raises:
        ValueError: the members do not fill a tar, or a key or name could not be in the format.
    """
    try:
        index = MemberIndex(table)
        keys = _one_chunk(table["key"])
        told = all(not table[name].null_count for name in ("key", "classes", "frames", "members"))
        told &= bool((np.diff(index.first_R) > 0).all())
        plain = pc.all(pc.match_substring_regex(keys, _KEYS)).as_py() is not False
        plain &= all(_NAME.fullmatch(name) for name in index.names)
        key_M = np.repeat(pc.binary_length(keys).to_numpy(), np.diff(index.first_R))
        name_M = np.array([len(name) for name in index.names], int)[index.code_M]
        lead_M = np.where(key_M + 1 + name_M <= _SHORT_NAME, _BLOCK, 3 * _BLOCK)
        end_M = index.offset_M + (index.size_M + _BLOCK - 1) // _BLOCK * _BLOCK
        sized = bool((index.size_M >= 0).all() and (index.size_M <= MAX_MEMBER).all())
        first_member_K = index.first_R[first_K]
        filled_K = np.diff(first_member_K) > 0
        # Members follow each other; a tar begins with its first and ends behind its last.
        wanted_M = np.concatenate([[0], end_M])[: len(end_M)]
        wanted_M[first_member_K[:-1][filled_K]] = 0
        gapless = bool((index.offset_M - lead_M == wanted_M).all())
        last_K = np.zeros(len(tar_bytes_K), np.int64)
        last_K[filled_K] = end_M[first_member_K[1:][filled_K] - 1]
        rest_K = tar_bytes_K - last_K
        ended = bool(((rest_K >= 2 * _BLOCK) & (rest_K < 2 * _BLOCK + tarfile.RECORDSIZE)).all())
    except (KeyError, AttributeError, TypeError, ValueError, pa.ArrowException):
        raise ValueError("it is no table of members") from None
    if not (told and plain and sized and gapless and ended):
        raise ValueError("its members do not fill the tar in the order in which it lists them")


def check_header(header: bytes, key: str, member: Member) -> None:
    """Whether the bytes from ``member.start`` to ``member.offset`` are the header of that member.

    Raises:
        ValueError: they are that of something else.
    """
    name = f"{key}.{member.name}".encode()
    last = header[-_BLOCK:]
    is_named = last.startswith(name[:_SHORT_NAME].ljust(_SHORT_NAME, b"\0"))
    if len(name) > _SHORT_NAME:
        is_named = is_named and b" path=%b\n" % name in header[:-_BLOCK]
    # A name may begin in the last field of the header, where other readers look for it.
    is_named = is_named and last.endswith(_NO_PREFIX)
    if not is_named or last[156:157] not in _REGULAR or last[124:135] != b"%011o" % member.size:
        raise ValueError(f"no regular file {name.decode()} of {member.size} bytes lies where it is")


def read_members(descriptor: int, key: str, members: list[Member]) -> dict[str, bytes]:
    """Some members of a sample, copied from an open tar.

    Raises:
        ValueError: the tar ends before, or something else lies there.
    """
    found = {}
    for member in members:
        check_header(os.pread(descriptor, member.offset - member.start, member.start), key, member)
        data = os.pread(descriptor, member.size, member.offset)
        if len(data) != member.size:
            raise ValueError(f"it ends inside {key}.{member.name}")
        found[member.name] = data
    return found


def view_members(tar: mmap.mmap, key: str, members: list[Member]) -> dict[str, memoryview]:
    """``read_members`` without a copy, of a tar that is mapped.

    Raises:
        ValueError: something else lies there.
    """
    view = memoryview(tar)
    found = {}
    for member in members:
        check_header(tar[member.start : member.offset], key, member)
        found[member.name] = view[member.offset : member.offset + member.size]
    return found


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
