"""Where a process spends its time: seconds by name, summed until somebody takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class _Running(threading.local):
    """The names being timed in this thread, the innermost last, and when that one went on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.since = 0.0


_running = _Running()
_spent: dict[str, float] = {}
_lock = threading.Lock()


@contextmanager
def time(name: str) -> Iterator[None]:
    """Time the block under ``name``. An inner block's time is its own and not the outer's.

    A generator must not yield inside: what its consumer does would be timed too.
    """
    _book()
    _running.names.append(name)
    try:
        yield
    finally:
        _book()
        _running.names.pop()


def take() -> dict[str, float]:
    """Seconds by name since the last call, of all threads of this process."""
    with _lock:
        taken = dict(_spent)
        _spent.clear()
    return taken


def _book() -> None:
    """Book the time since the last change on whatever ran since."""
    now = perf_counter()
    if _running.names:
        name = _running.names[-1]
        with _lock:
            _spent[name] = _spent.get(name, 0.0) + now - _running.since
    _running.since = now
