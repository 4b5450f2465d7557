"""Shards on a disk, read in place: each has to stay the file that it was at the first read.

A changed file is known by its inode, size and time of change, as rsync knows it.

A shard is opened anew for each sample that is copied from it. That costs what it would to ask
whether an open one is still the file of that name, and a corpus can have more shards than a
process may open files.

Samples that are looked at and not copied come from shards that stay mapped. Mapped memory has a
trap: where a file was cut short in place, or its disk fails, the system ends the process that
touches it, and no error tells why. So whatever trains or evaluates copies, which is slower by a
hundredth of what decoding takes, and only what passes bytes on unseen takes views.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from infra.shard_cache import DAMAGED
from infra.shards import ShardRecord

# Python holds a file open for each.
_MAPPED = 64

Identity = tuple[int, int, int, int]
"""Device, inode, size and time of change of a file."""


class LocalShards:
    """The shards of one corpus.

    Args:
        verify: compare the sha256 of each when it is first read, which reads all of it.
    """

    def __init__(self, *, verify: bool) -> None:
        self._verify = verify
        self._seen: dict[str, Identity] = {}

    @contextmanager
    def reading(self, uri: str, record: ShardRecord) -> Iterator[int]:
        """A descriptor of the shard.

        Raises:
            ValueError: it is missing, cut short, damaged, or changed since the first read.
        """
        try:
            descriptor = os.open(uri, os.O_RDONLY)
        except (FileNotFoundError, IsADirectoryError):
            raise _missing(uri) from None
        try:
            if self._seen.get(uri) != _identity(os.fstat(descriptor)):
                self._look_at(uri, record, descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def mapped(self, uri: str, record: ShardRecord) -> mmap.mmap:
        """All of the shard.

        Raises:
            ValueError: as for ``reading``.
        """
        try:
            identity = _identity(os.stat(uri))
        except FileNotFoundError:
            raise _missing(uri) from None
        if self._seen.get(uri) != identity:
            with self.reading(uri, record):
                identity = self._seen[uri]
        return _map(uri, identity)

    def _look_at(self, uri: str, record: ShardRecord, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if uri in self._seen:
            raise _changed(uri)
        if status.st_size != record.bytes:
            raise _missing(uri)
        if self._verify:
            with os.fdopen(os.dup(descriptor), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                    raise ValueError(f"{uri} {DAMAGED}")
        self._seen[uri] = _identity(status)


@lru_cache(maxsize=_MAPPED)
def _map(uri: str, identity: Identity) -> mmap.mmap:
    with open(uri, "rb") as file:
        if _identity(os.fstat(file.fileno())) != identity:
            raise _changed(uri)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _missing(uri: str) -> ValueError:
    return ValueError(f"{uri} is missing or cut short: write the corpus again")


def _changed(uri: str) -> ValueError:
    return ValueError(f"{uri} changed since it was first read: open the corpus again")
