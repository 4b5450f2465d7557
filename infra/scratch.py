"""Temporary folders for large files, which a killed process does not leave lying for ever."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder, gone after the block.

    That of a process that was killed is removed by the next one that asks for a folder. They lie
    where ``TMPDIR`` says.

    Args:
        purpose: beginning of its name.

    Raises:
        PermissionError: another user has the place of this one's folders.
    """
    root = _root()
    _clear(root)
    folder, lock = _locked_folder(root, purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Closing alone would leave the lock with a process that was forked meanwhile.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _root() -> Path:
    root = Path(tempfile.gettempdir()) / f"save-pipelines-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise PermissionError(f"{root} belongs to another user: set TMPDIR to another folder")
    return root


def _locked_folder(root: Path, purpose: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=root))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Another process took it for one that was left.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, lock
        os.close(lock)


def _clear(root: Path) -> None:
    """Remove the folders that nobody holds."""
    for folder in root.iterdir():
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # Gone meanwhile, or no folder of ours.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
