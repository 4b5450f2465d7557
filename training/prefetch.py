"""Batches made ahead of their steps: decoded aside, and their shards fetched before that."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

import torch
import torch.utils.data

from training.batch import Batch
from training.data import FrameSamples, Place

_PREFETCHED_BATCHES = 4
# Shards are asked for this many steps before and after they are next looked at.
_FETCHED_STEPS = 64


def batches(
    samples: FrameSamples,
    *,
    batch: int,
    first: int,
    last: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """A rank's share of the steps ``first`` to ``last`` - 1, decoded ahead.

    Args:
        workers: processes that decode, a step each; 0 decodes on a thread of this process.
    """

    def order(step: int) -> list[Place]:
        return samples.order(step, batch=batch, rank=rank, world=world)

    def load(step: int) -> Batch:
        return samples.load(order(step))

    steps = range(first, last)
    # Processes fork before the thread that fetches starts: they must not inherit its locks.
    loaded = _loaded_by_processes(load, steps, workers) if workers else _loaded_aside(load, steps)
    with _fetching_ahead(samples, order, last) as begin:
        try:
            for step in steps:
                if (step - first) % _FETCHED_STEPS == 0:
                    begin(step)
                yield next(loaded)
        finally:
            loaded.close()


def _loaded_aside(load: Callable[[int], Batch], steps: range) -> Generator[Batch, None, None]:
    """The batches of some steps, made on another thread."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                put(load(step))
                if stopped.is_set():
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


class _Steps(torch.utils.data.Dataset[Batch]):
    """What a worker process is asked for: the batch of a step."""

    def __init__(self, load: Callable[[int], Batch]) -> None:
        self._load = load

    def __getitem__(self, step: int) -> Batch:
        return self._load(step)


def _loaded_by_processes(
    load: Callable[[int], Batch], steps: range, workers: int
) -> Generator[Batch, None, None]:
    """The batches of some steps in their order, each made whole by one of the processes.

    They are forked here and now, and share the tables of this process.
    """
    loader = torch.utils.data.DataLoader(
        _Steps(load),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        multiprocessing_context="fork",
        # It draws a seed, which must not come out of what the model draws from.
        generator=torch.Generator(),
    )
    made = iter(loader)
    return (batch for batch in made)


@contextmanager
def _fetching_ahead(
    samples: FrameSamples, order: Callable[[int], list[Place]], last: int
) -> Iterator[Callable[[int], None]]:
    """Bring the shards of coming steps from object storage on another thread.

    Gives what to call as a step begins. What fails here fails again where it is needed.
    """
    wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while (step := wanted.get()) is not None:
            coming = range(step, min(step + 2 * _FETCHED_STEPS, last))
            indices = [index for ahead in coming for _, index in order(ahead)]
            rows = samples.places_P2[indices, 0].tolist()
            for record in samples.corpus.shards_ahead(samples.split, rows):
                if stopped.is_set():
                    return
                with suppress(OSError, ValueError):
                    samples.corpus.fetch(record)

    if samples.corpus.is_remote:
        threading.Thread(target=work, name="shards", daemon=True).start()
    try:
        yield wanted.put
    finally:
        stopped.set()
        wanted.put(None)
