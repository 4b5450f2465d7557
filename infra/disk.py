"""What a disk asks for beyond a file system: files that appear whole, conditions, a long walk.

``infra.storage`` calls these for paths as it calls ``infra.s3`` for S3. A path is absolute.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.s3 import Stored

# What the name of a file ends with that is still being written.
_ASIDE = ".aside"


def read(path: str, *, limit: int) -> bytes:
    """The whole file; ValueError where it is larger than ``limit`` bytes."""
    with Path(path).open("rb") as file:
        # Asked for the limit, Python would set that much memory aside for each small file.
        data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than the {limit} bytes that are read of such a file")
    return data


def read_stored(path: str, *, limit: int) -> Stored:
    """The file with its tag and age."""
    with Path(path).open("rb") as file:
        data = file.read(limit)
        written = os.fstat(file.fileno()).st_mtime
    # The disk's own clock, which may be another machine's.
    with tempfile.TemporaryFile(dir=Path(path).parent) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    return Stored(data=data, etag=_etag(data), age=now - written)


def write(path: str, data: bytes) -> None:
    """Write a file whole or not at all."""
    with aside(Path(path)) as place:
        _write_through(place, data)


def create(path: str, data: bytes) -> str | None:
    """Write a file where none stands; its tag, or None where another stands."""
    try:
        with aside(Path(path), os.link) as place:
            _write_through(place, data)
    except FileExistsError:
        return None
    return _etag(data)


def replace_if(path: str, data: bytes, etag: str) -> str | None:
    """Write a file over the one with the tag ``etag``; its new tag, or None where that is gone."""
    target = Path(path)
    while True:
        try:
            with target.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not os.path.samestat(os.fstat(file.fileno()), target.stat()):
                    continue  # replaced by whoever had the lock before
                if _etag(file.read()) != etag:
                    return None
                write(path, data)
                return _etag(data)
        except FileNotFoundError:
            return None


def upload(local: Path, path: str) -> None:
    """Copy a file to ``path``, whole or not at all."""
    with aside(Path(path)) as place:
        shutil.copyfile(local, place)
        with place.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def aside(target: Path, place: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
    """A file beside ``target`` that takes its name when the block ends well.

    Args:
        place: ``os.link`` to fail with FileExistsError where a file has that name already.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Several may try to be the first: what one of them writes is not for another to clear.
    ending = "" if place is os.link else _ASIDE
    handle, name = tempfile.mkstemp(ending, f".{target.name[:80]}.", target.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        place(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def clear_leftovers(path: str) -> None:
    """Remove what was written aside in a folder and those just below it by who was killed."""
    for pattern in (f".*{_ASIDE}", f"*/.*{_ASIDE}"):
        for left in Path(path).glob(pattern):
            left.unlink(missing_ok=True)


def walk(path: str) -> Iterator[str]:
    """The path below ``path`` of every file at any depth, in any order."""
    folders = [path] if os.path.isdir(path) else []
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    yield entry.path[len(path) + 1 :]


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
