"""From the workers to the driver while training runs: lines for people, points of the curves.

Rank 0 posts to a small actor and never waits for it; a thread of the driver reads it. So progress
is shown, and curves are recorded, in one place and in one process, wherever the workers are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

logger = logging.getLogger("training")

Point = dict[str, float]

_SECONDS_BETWEEN_LOOKS = 1.0
_PATIENCE_SECONDS = 30.0


class _Board:
    def __init__(self) -> None:
        self._posted: list[str | Point] = []

    def post(self, item: str | Point) -> None:
        self._posted.append(item)

    def since(self, first: int) -> list[str | Point]:
        return self._posted[first:]


@contextmanager
def follow(on_point: Callable[[Point], None]) -> Iterator[Any]:
    """Gives what ``post`` needs; until the block ends, lines are logged and points handed on."""
    board = ray.remote(num_cpus=0)(_Board).remote()
    ended = threading.Event()
    thread = threading.Thread(target=_read, args=(board, ended, on_point), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join()
        ray.kill(board)


def post(board: Any, item: str | Point) -> None:
    """Show a line or record a point; losing one must not stop training, so nobody waits."""
    board.post.remote(item)


def _read(board: Any, ended: threading.Event, on_point: Callable[[Point], None]) -> None:
    seen = 0
    while True:
        last_look = ended.wait(_SECONDS_BETWEEN_LOOKS)
        try:
            items = ray.get(board.since.remote(seen), timeout=_PATIENCE_SECONDS)
        except ray.exceptions.RayError:
            items = []
        for item in items:
            if isinstance(item, str):
                logger.info(item)
                continue
            try:
                on_point(item)
            except Exception:
                # A tracking server that is away must not stop training.
                logger.exception("a point of the curves could not be recorded")
        seen += len(items)
        if last_look:
            return
