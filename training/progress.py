"""From the workers to the driver while training runs: points of the curves, pictures, reasons.

Workers post to a small actor and never wait for it; a thread of the driver reads it. So progress is
shown, and curves are recorded, in one place and in one process, wherever the workers are.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger("training")

Point = dict[str, float]

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 10.0
_PATIENCE_SECONDS = 30.0


class Started(NamedTuple):
    """Workers have begun to train, for the first time or again."""

    text: str
    step: int
    """Done before."""
    steps: int


class File(NamedTuple):
    """Something to keep beside the curves, such as a picture."""

    name: str
    data: bytes


Item = Started | Point | File | str

SECONDS_LEFT = "seconds_left"
"""Of a point: for the people who wait, and no part of the curves."""


class _Actor:
    def __init__(self) -> None:
        self._posted: list[Item] = []
        self._given_up = ""

    def post(self, item: Item) -> None:
        self._posted.append(item)

    def take(self) -> list[Item]:
        taken, self._posted = self._posted, []
        return taken

    def give_up(self, reason: str) -> None:
        self._given_up = self._given_up or reason

    def given_up(self) -> str:
        return self._given_up


@dataclass(frozen=True)
class Board:
    """What a worker needs to be heard."""

    actor: Any

    def post(self, item: Item) -> None:
        """Show or record something; losing one must not stop training, so nobody waits."""
        self.actor.post.remote(item)

    def give_up(self, reason: str) -> None:
        """Note that trying again is of no use, and why."""
        ray.get(self.actor.give_up.remote(reason))

    def given_up(self) -> str:
        """The reason that was noted, or nothing."""
        return str(ray.get(self.actor.given_up.remote()))

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """While the block runs, the worker that runs it dies soon after a reason is noted."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_SECONDS_BETWEEN_LOOKS):
                if self.given_up():
                    # Nothing else ends a step, or a collective that waits for the others.
                    ray.kill(ray.get_runtime_context().current_actor)

        threading.Thread(target=watch, name="obeyed", daemon=True).start()
        try:
            yield
        finally:
            ended.set()


@contextmanager
def follow(
    stage: str,
    *,
    on_point: Callable[[Point], None],
    on_file: Callable[[str, bytes], None],
    must_stop: Callable[[], str],
) -> Iterator[Board]:
    """Gives the board; until the block ends, progress is shown and points and files handed on.

    Args:
        must_stop: why training must not go on, or nothing; asked at each look, so it must not wait.
    """
    # Where the driver is: a node that dies must not take the board along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Actor).remote()
    ended = threading.Event()
    line = _Bar(stage) if sys.stderr.isatty() else _Lines(stage)

    def read() -> None:
        asked = None
        while True:
            ending = ended.wait(_SECONDS_BETWEEN_LOOKS)
            if reason := must_stop():
                actor.give_up.remote(reason)
            # What was asked before the end need not be all.
            last_look = ending and asked is None
            # Taking empties the actor: of an answer that is late there is no second one.
            asked = asked or actor.take.remote()
            try:
                items = ray.get(asked, timeout=_PATIENCE_SECONDS)
            except ray.exceptions.GetTimeoutError:
                if ending:
                    logger.warning("%s: the last points of the curves came too late", stage)
                    return
                continue
            except ray.exceptions.RayError:
                items = []
            asked = None
            for item in items:
                line.show(item)
                if isinstance(item, dict):
                    on_point({name: v for name, v in item.items() if name != SECONDS_LEFT})
                elif isinstance(item, File):
                    on_file(item.name, item.data)
            if last_look:
                return

    thread = threading.Thread(target=read, name="progress", daemon=True)
    with line:
        thread.start()
        try:
            yield Board(actor)
        finally:
            ended.set()
            thread.join()
            ray.kill(actor)


@contextmanager
def tell_of_room(stage: str, workers: int, each: Mapping[str, float]) -> Iterator[None]:
    """Say so when the cluster is too small for the workers: Ray waits for more without a word.

    Args:
        workers: the fewest that a stage trains with.
        each: what each of them needs, by Ray's names.
    """
    ended = threading.Event()
    needed = {name: workers * count for name, count in each.items()}

    def look() -> None:
        is_short = False
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                has = ray.cluster_resources()
            except ray.exceptions.RayError:
                continue
            was_short = is_short
            is_short = any(has.get(name, 0) < count for name, count in needed.items())
            if is_short and not was_short:
                logger.warning(
                    "%s: waits for room: %d workers need %s, and the cluster has %s; add nodes, or "
                    "stop and ask for fewer with --workers.count or --workers.min_count",
                    stage,
                    workers,
                    _resources(needed),
                    _resources({name: has.get(name, 0) for name in needed}),
                )

    thread = threading.Thread(target=look, name="room", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _resources(counts: Mapping[str, float]) -> str:
    return " and ".join(f"{count:g} {name}" for name, count in counts.items())


class _Lines:
    """A log line now and then."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._steps = 0
        self._shown = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, item: Item) -> None:
        if isinstance(item, Started):
            self._steps = item.steps
            logger.info("%s: %s", self._stage, item.text)
        elif isinstance(item, str):
            logger.info("%s: %s", self._stage, item)
        elif isinstance(item, dict) and "val_m_j" in item:
            logger.info("%s: step %.0f, %s", self._stage, item["step"], _scores(item))
        elif isinstance(item, dict):
            now = time.monotonic()
            if now - self._shown < _SECONDS_BETWEEN_LINES and item["step"] < self._steps:
                return
            self._shown = now
            logger.info(
                "%s: step %.0f of %d, %s, %.1f samples/s, %s left",
                self._stage,
                item["step"],
                self._steps,
                _loss(item),
                item["samples_per_second"],
                _time(item[SECONDS_LEFT]),
            )


class _Bar:
    """One line of a terminal that is written over."""

    def __init__(self, stage: str) -> None:
        self._bar = tqdm(desc=stage, unit="step", dynamic_ncols=True, file=sys.stderr)
        self._logs = logging_redirect_tqdm([logging.getLogger(), logger])
        self._score = ""

    def __enter__(self) -> _Bar:
        self._logs.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
        self._logs.__exit__(*error)

    def show(self, item: Item) -> None:
        if isinstance(item, Started):
            self._bar.total, self._bar.initial = item.steps, item.step
            self._bar.n = item.step
            logger.info("%s: %s", self._bar.desc, item.text)
        elif isinstance(item, str):
            logger.info("%s: %s", self._bar.desc, item)
        elif isinstance(item, dict) and "val_m_j" in item:
            self._score = _scores(item)
        elif isinstance(item, dict):
            pace = f"{_loss(item)}, {item['samples_per_second']:.1f} samples/s"
            self._bar.set_postfix_str(f"{pace}, {self._score}" if self._score else pace, False)
            self._bar.update(int(item["step"]) - self._bar.n)


def _loss(point: Point) -> str:
    """A point has none where fp16 skipped each of its steps."""
    return f"loss {point['loss']:.4f}" if "loss" in point else "every step skipped"


def _scores(point: Point) -> str:
    return f"val M_J {point['val_m_j']:.4f}, M_F {point['val_m_f']:.4f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
