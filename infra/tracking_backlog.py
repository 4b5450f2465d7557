"""What is still to be written to a tracking server: lines of JSON on a local disk, in order.

A line stands in the file from when it is appended until it is known to be written, so a process
that is killed loses nothing, and however long the server is away, memory holds no more than what is
being written just now.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

# Bytes read at a time.
_AT_A_TIME = 1 << 18


class Backlog:
    """A queue in a file. Any thread may append; one thread takes.

    Whoever takes an entry writes it before saying so, and may die in between: an entry can come
    twice, and writing it again must change nothing.
    """

    def __init__(self, path: Path) -> None:
        """Open the queue, or go on with what a process before this one has left."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._file = self._open()
        self._done = 0
        self._taken: list[bytes] = []
        self._aside: list[bytes] = []
        before = path.read_bytes()
        if before and not before.endswith(b"\n"):
            # The process was killed in mid-line: that must not spoil the next line too.
            self._file.write(b"\n")

    def append(self, entry: dict[str, Any]) -> None:
        """Put an entry at the end; it outlives this process when this returns.

        Raises:
            OSError: the disk does not take it.
        """
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            if self._file.write(line) != len(line):
                self._file.write(b"\n")
                raise OSError(f"{self.path} could not be written to: is the disk full?")

    def take(self) -> list[dict[str, Any]]:
        """The oldest entries, which stay in the queue until they are ``done``.

        None of them when it is empty, or closed.
        """
        with self._lock:
            self._taken = []
            if not self._file.closed:
                with self.path.open("rb") as file:
                    file.seek(self._done)
                    self._taken = file.readlines(_AT_A_TIME)
        return [_entry(line) for line in self._taken]

    def done(self, count: int) -> None:
        """The first ``count`` entries of those taken last are written."""
        with self._lock:
            self._done += sum(map(len, self._taken[:count]))
            del self._taken[:count]
            if not self._file.closed and self._done == os.fstat(self._file.fileno()).st_size:
                self._rewrite(self._aside)

    def keep_first(self) -> None:
        """Leave the first entry of those taken last to the next process, done though it is here."""
        self._aside.append(self._taken[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every entry that the file holds."""
        with self.path.open("rb") as file:
            yield from map(_entry, file)

    def close(self) -> int:
        """Leave in the file what was not written, or no file; returns how many entries are left."""
        with self._lock:
            with self.path.open("rb") as file:
                file.seek(self._done)
                left = [*self._aside, *file]
            self._rewrite(left)
            self._file.close()
            if not left:
                self.path.unlink()
        return len(left)

    def _rewrite(self, lines: list[bytes]) -> None:
        """Have the file hold these lines alone, and all of them count as taken."""
        aside = self.path.with_name(f".{self.path.name}.new")
        aside.write_bytes(b"".join(lines))
        aside.replace(self.path)
        self._file.close()
        self._file = self._open()
        self._done = sum(map(len, lines))

    def _open(self) -> FileIO:
        # Unbuffered: each line is one write, and out of this process at once.
        return self.path.open("ab", buffering=0)


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {"op": "damaged"}
