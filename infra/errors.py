"""Errors that a person can mend; anything else is a bug and keeps its traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class JobFailed(Exception):
    """A job ended without its result; the message says why and what to do."""


class DiskFull(OSError):
    """Nothing more can be written; the message says where and what to do."""


USER_ERRORS = (ValueError, FileNotFoundError, PermissionError, ConnectionError, DiskFull, JobFailed)


@contextmanager
def space_for(what: str | Path) -> Iterator[None]:
    """Tell of a full disk in one sentence, as ``DiskFull``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"no space left for {what} ({error}): free some or go elsewhere") from None
