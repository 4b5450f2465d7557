"""SQLite's own temporary database, in which a reader gathers more than memory should hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from infra.errors import DiskFull


@contextmanager
def temporary_database() -> Iterator[sqlite3.Connection]:
    """In memory while small, then in a file without a name, which goes away with the process.

    Raises:
        DiskFull: when that file finds no more room.
    """
    with closing(sqlite3.connect("")) as database:
        try:
            database.execute("PRAGMA journal_mode = OFF")
            yield database
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise DiskFull(
                f"no space left for SQLite's temporary file ({error}): free some, or set "
                "SQLITE_TMPDIR to a folder that has more"
            ) from None
