"""Shards of object storage on this machine's disk: a cache that all its processes share.

A shard lies there whole or not at all, under its sha256, so it can never be stale. What keeps
processes apart are file locks, which end with whoever held them:

* one process at a time fetches a shard, the others wait for it;
* room is counted under one lock, and a shard that is on its way has its bytes reserved by a file
  of its size, so the sum never passes the limit;
* whoever reads a shard holds a lock on it that eviction respects.

Least recently used is told by a file's time of access, which is set here. Its time of change is set
to 0 as it enters: whoever writes to it later gives himself away, and it is fetched again.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra import storage
from infra.shards import ShardRecord

# A rerun goes by sizes and would take it for sound.
DAMAGED = "does not match its checksum: remove it and run the job that makes the corpus again"

_POLL = 0.02
# Seconds to wait for others to finish reading or fetching what takes the room.
_PATIENCE = 600.0
_SETTLED = 5.0


class ShardCache:
    """``<folder>/<sha256>.tar``, at most ``limit`` bytes of them.

    Args:
        folder: ``shards`` in ``storage.cache_folder()`` by default.
        limit: ``$SAVE_CACHE_BYTES`` by default, and without that half of the disk.

    Raises:
        ValueError: ``$SAVE_CACHE_BYTES`` is no whole number above 0.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = storage.cache_folder() / "shards" if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limit = _default_limit(self.folder) if limit is None else limit

    @contextmanager
    def reading(self, uri: str, record: ShardRecord) -> Iterator[int]:
        """A descriptor of the shard, which stays in the cache until the block ends.

        Raises:
            ValueError: the shard is damaged at its source too, or larger than the cache may be.
            FileNotFoundError: it is neither here nor at its source.
        """
        descriptor = self._open(record)
        if descriptor is None:
            descriptor = self._fetched(uri, record)
        try:
            yield descriptor
        finally:
            _release(descriptor)

    def mapped(self, uri: str, record: ShardRecord) -> mmap.mmap:
        """All of the shard, mapped anew: one that stayed mapped would keep its disk when evicted.

        Raises:
            ValueError: as for ``reading``.
        """
        with self.reading(uri, record) as descriptor:
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    def fetch(self, uri: str, record: ShardRecord) -> None:
        """Bring the shard into the cache, if it is not there."""
        with self.reading(uri, record):
            pass

    def _path(self, record: ShardRecord) -> Path:
        return self.folder / f"{record.sha256}.tar"

    def _open(self, record: ShardRecord) -> int | None:
        """A descriptor with a shared lock, or None where no such shard, or a changed one, lies."""
        path = self._path(record)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        # No name is left to one that was evicted before the lock was had.
        if status.st_nlink and status.st_size == record.bytes and status.st_mtime_ns == 0:
            now = time.time_ns()
            if now - status.st_atime_ns > _SETTLED * 1e9:
                # Where the cache is another user's, it goes by his reading.
                with suppress(PermissionError):
                    os.utime(descriptor, ns=(now, 0))
            return descriptor
        _release(descriptor)
        return None

    def _fetched(self, uri: str, record: ShardRecord) -> int:
        arriving = self.folder / f".{record.sha256}.part"
        with _locked(self.folder / f".{record.sha256}.lock"):
            descriptor = self._open(record)
            if descriptor is not None:
                return descriptor
            self._path(record).unlink(missing_ok=True)
            try:
                # What came damaged once may have been damaged on its way.
                for _ in range(2):
                    self._reserve(uri, record, arriving)
                    if storage.size(uri) != record.bytes:
                        continue
                    storage.download(uri, arriving)
                    if not _is_sound(arriving, record):
                        continue
                    os.utime(arriving, ns=(time.time_ns(), 0))
                    descriptor = os.open(arriving, os.O_RDONLY)
                    # Before others see it: nobody evicts it while it is wanted here.
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    arriving.replace(self._path(record))
                    return descriptor
            finally:
                arriving.unlink(missing_ok=True)
        raise ValueError(f"{uri} {DAMAGED}")

    def _reserve(self, uri: str, record: ShardRecord, arriving: Path) -> None:
        """Make room for a shard and a file that holds it."""
        if record.bytes > self.limit:
            raise ValueError(
                f"{uri} has {record.bytes} bytes, more than the {self.limit} that the cache of "
                "shards may have: raise SAVE_CACHE_BYTES"
            )
        arriving.unlink(missing_ok=True)
        end = time.monotonic() + _PATIENCE
        while True:
            with _locked(self.folder / ".room.lock"):
                if self._make_room(record.bytes):
                    with arriving.open("wb") as file:
                        file.truncate(record.bytes)
                    return
            if time.monotonic() > end:
                raise ValueError(
                    f"no room for {uri}: the {self.limit} bytes of the cache of shards are full "
                    "of what others read; raise SAVE_CACHE_BYTES"
                )
            time.sleep(_POLL)

    def _make_room(self, wanted: int) -> bool:
        self._clear_torn()
        found: list[tuple[int, int, Path]] = []
        used = 0
        for path in [*self.folder.glob("*.tar"), *self.folder.glob(".*.part")]:
            with suppress(FileNotFoundError):
                status = path.stat()
                used += status.st_size
                if path.suffix == ".tar":
                    found.append((status.st_atime_ns, status.st_size, path))
        for _, size, path in sorted(found):
            if used + wanted <= self.limit:
                break
            if _evict(path):
                used -= size
        return used + wanted <= self.limit

    def _clear_torn(self) -> None:
        """Remove what processes that were killed have left of shards on their way."""
        for path in self.folder.glob(".*.part*"):
            lock = self.folder / f".{path.name.strip('.')[:64]}.lock"
            with suppress(BlockingIOError), _locked(lock, wait=False):
                path.unlink(missing_ok=True)


def _default_limit(folder: Path) -> int:
    told = os.environ.get("SAVE_CACHE_BYTES")
    if not told:
        return shutil.disk_usage(folder).total // 2
    if not told.isdecimal() or int(told) == 0:
        raise ValueError(f"SAVE_CACHE_BYTES must be a whole number above 0, got {told!r}")
    return int(told)


def _is_sound(path: Path, record: ShardRecord) -> bool:
    if path.stat().st_size != record.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def _evict(path: Path) -> bool:
    """Remove a shard unless somebody reads it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    path.unlink(missing_ok=True)
    _release(descriptor)
    return True


def _release(descriptor: int) -> None:
    # Closing alone would leave the lock with a process that was forked meanwhile.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``path``, which is there only as long as somebody holds it.

    Raises:
        BlockingIOError: another has it and ``wait`` is False.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            raise
        # Whoever had it before has removed it, and the next one may have made another.
        if os.fstat(descriptor).st_nlink:
            break
        _release(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _release(descriptor)
