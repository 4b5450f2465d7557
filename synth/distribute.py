"""The one file of synth that knows Ray: pure functions on rows, spread over a cluster."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

import ray.data
import ray.exceptions

from infra import retrying, stopwatch, storage
from infra.commit import shard_sizes, standing_shards
from infra.corpus import MANIFEST, Refused, Sample, ShardRecord, write_shard
from infra.errors import USER_ERRORS
from infra.shards import shard_name

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Enough tasks to keep a cluster busy, few enough that none is shorter than its own overhead.
_BLOCKS_PER_WORKER = 8
# Of one task: its worker or node died. Ray Data's own default is to try for ever, which a picture
# that crashes its decoder would use.
_DEATHS = 3
_SECONDS_BETWEEN_LINES = 5.0


def map_rows(
    rows: list[dict[str, Any]],
    fn: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    parallelism: int | None = None,
) -> list[dict[str, Any]]:
    """``fn`` of every row as a Ray Data job, in no particular order.

    Args:
        rows: dictionaries with the same keys and plain values.
        parallelism: how many tasks run at once; as many as the cluster has CPUs by default.

    Raises:
        ValueError: ``fn`` refused a row, with its reason.
    """
    if not rows:
        return []
    blocks = (parallelism or workers()) * _BLOCKS_PER_WORKER
    return list(_stream(rows, fn, blocks=blocks, parallelism=parallelism))


def workers() -> int:
    """How many tasks the cluster runs at once."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class Shared(Generic[T]):
    """A large value that tasks need: in the memory of each node once, not in every task."""

    _known: ClassVar[tuple[str, Any]] = ("", None)

    def __init__(self, value: T) -> None:
        self._ref = ray.put(value)

    def get(self) -> T:
        """The value; a process that asks again gets what it had."""
        name = self._ref.hex()
        if Shared._known[0] != name:
            Shared._known = name, ray.get(self._ref)
        value: T = Shared._known[1]
        return value


def _stream(
    rows: list[dict[str, Any]],
    fn: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    blocks: int,
    parallelism: int | None,
) -> Iterator[dict[str, Any]]:
    def answer(row: dict[str, Any]) -> dict[str, Any]:
        before, made, told = storage.retries(), "", ""
        # What a person can mend travels as a sentence; raised, it would arrive as a traceback.
        try:
            made = json.dumps(fn(row))
        except USER_ERRORS as error:
            if os.environ.get("SAVE_TRACEBACK"):
                raise
            told = str(error) or type(error).__name__
        return {"made": made, "error": told, "retries": storage.retries() - before}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), blocks))
    with warnings.catch_warnings():
        # Ray means to drop this argument in 2.64 and has no other one for it yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        answers = data.map(answer, concurrency=parallelism, max_retries=_DEATHS)
    try:
        for row in answers.iter_rows():
            # A job's retries are those of its workers as well.
            for _ in range(row["retries"]):
                retrying.count_retry()
            if row["error"]:
                raise ValueError(row["error"])
            yield json.loads(row["made"])
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise ValueError(
            f"a worker died ({_DEATHS + 1} times over the same task, so not by chance): look for "
            "too little memory or an input that crashes its decoder, "
            f"and in Ray's logs ({type(error).__name__})"
        ) from None


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to write. ``plan`` is the sha256 of all that its bytes depend on."""

    split: str
    number: int
    plan: str
    samples: int
    first: int = 0
    """The number of its first sample in the split, for whoever counts them."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """All shards of a corpus, whether this run made them or found them standing."""

    records: list[ShardRecord]
    refused: list[Refused]
    made: int
    """Shards that this run made; what follows is of these."""
    samples: int
    bytes: int
    """Of their tars and indexes."""
    retries: int
    """Requests that the storage had to be asked again."""
    seconds: float
    timings: dict[str, float]
    """Seconds in each stage (``infra.stopwatch``), summed over the workers."""


def write_shards(
    uri: str,
    tasks: Sequence[ShardTask],
    make: Callable[[ShardTask], Iterable[Sample | Refused]],
    *,
    parallelism: int | None = None,
    max_refused: float = 1.0,
    retry_refused: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Written:
    """Write the shards that do not stand yet, one task and one commit each.

    A task whose worker or node dies is given to another; a storage that stumbles is asked again.

    Args:
        make: a picklable pure function from a task to its samples.
        parallelism: how many shards are written at once; all CPUs of the cluster by default.
        max_refused: largest share of all samples that may be refused.
        retry_refused: make shards anew of which samples were refused; where there are any, no
            corpus stands until it is committed again.
        check: called here as each shard is finished; raises when no more may be written.

    Raises:
        ValueError: a shard could not be made from what it was given, with the reason, or too many
            samples were refused.
    """
    start, retries = time.monotonic(), storage.retries()
    there = shard_sizes(uri)
    found = standing_shards(uri, {(t.split, t.number): t.plan for t in tasks}, there)
    if retry_refused and any(refused for _, refused in found.values()):
        found = {shard: standing for shard, standing in found.items() if not standing[1]}
        # A manifest must not vouch for shards that are others by now.
        check()
        storage.remove(storage.join(uri, MANIFEST))
    missing = [task for task in tasks if (task.split, task.number) not in found]
    rows = [
        {"task": asdict(t), "anew": f"{shard_name(t.split, t.number)}.json" in there}
        for t in missing
    ]
    most = max_refused * sum(task.samples for task in tasks)
    _check_refused([r for _, some in found.values() for r in some], most)
    if found:
        logger.info("%d of %d shards stand already", len(found), len(tasks))

    def write_one(row: dict[str, Any]) -> dict[str, Any]:
        task = ShardTask(**row["task"])
        stopwatch.take()  # what a task that failed has left
        record, refused = write_shard(
            uri, task.split, task.number, make(task), plan=task.plan, anew=row["anew"]
        )
        return {
            **row["task"],
            "record": asdict(record),
            "refused": [asdict(r) for r in refused],
            "timings": stopwatch.take(),
        }

    made: list[ShardRecord] = []
    timings: Counter[str] = Counter()
    if missing:
        stream = _stream(rows, write_one, blocks=len(rows), parallelism=parallelism)
        for row in _followed(stream, missing):
            check()
            record = ShardRecord(**row["record"])
            refused = [Refused(**r) for r in row["refused"]]
            found[row["split"], row["number"]] = record, refused
            _check_refused([r for _, some in found.values() for r in some] if refused else [], most)
            made.append(record)
            timings.update(row["timings"])
        sizes = shard_sizes(uri)
        for record in made:
            if not record.is_whole(sizes):
                raise ValueError(
                    f"the shard {record.path} at {uri} vanished after it was written: does "
                    "another job write there?"
                )
    return Written(
        records=[record for record, _ in found.values()],
        refused=[r for _, refused in found.values() for r in refused],
        made=len(made),
        samples=sum(record.samples for record in made),
        bytes=sum(record.bytes + record.index_bytes for record in made),
        retries=storage.retries() - retries,
        seconds=time.monotonic() - start,
        timings=dict(sorted(timings.items())),
    )


def _check_refused(refused: Sequence[Refused], most: float) -> None:
    if len(refused) <= most:
        return
    kinds = Counter(row.reason.split(":")[0] for row in refused)
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    first = min(refused, key=lambda row: (row.id, row.reason))
    raise ValueError(
        f"{len(refused)} samples were refused ({said}), more than the {most:.0f} that max_refused "
        f"allows; the first is {first.id} ({first.reason}): mend the media and run the job again, "
        "or raise max_refused"
    )


def _followed(
    finished: Iterator[dict[str, Any]], tasks: Sequence[ShardTask]
) -> Iterator[dict[str, Any]]:
    """The shards as they come in, with progress in the log."""
    total = sum(task.samples for task in tasks)
    start = last = time.monotonic()
    done = shards = 0
    for row in finished:
        done, shards = done + row["samples"], shards + 1
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or shards == len(tasks):
            rate = done / (now - start)
            logger.info(
                "%d of %d shards, %d samples, %.0f a second, %.0f s left",
                shards,
                len(tasks),
                done,
                rate,
                (total - done) / max(rate, 1e-9),
            )
            last = now
        yield row
