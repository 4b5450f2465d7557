"""The one file of synth that knows Ray: pure functions on rows, spread over a cluster."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray.data

from infra import corpus
from infra.config import USER_ERRORS
from infra.corpus import Refused, Sample, ShardRecord

logger = logging.getLogger(__name__)

# Enough tasks to keep a cluster busy, few enough that none is shorter than its own overhead.
_BLOCKS_PER_WORKER = 8
_RETRIES = 2
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
    workers = parallelism or max(1, int(ray.cluster_resources().get("CPU", 1)))
    return list(_stream(rows, fn, blocks=workers * _BLOCKS_PER_WORKER, parallelism=parallelism))


def _stream(
    rows: list[dict[str, Any]],
    fn: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    blocks: int,
    parallelism: int | None,
) -> Iterator[dict[str, Any]]:
    def answer(row: dict[str, Any]) -> dict[str, str]:
        # What a person can mend travels as a sentence; raised, it would arrive as a traceback.
        try:
            return {"made": json.dumps(fn(row)), "error": ""}
        except USER_ERRORS as error:
            if os.environ.get("SAVE_TRACEBACK"):
                raise
            return {"made": "", "error": str(error) or type(error).__name__}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), blocks))
    for row in data.map(answer, concurrency=parallelism).iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield json.loads(row["made"])


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to write. ``plan`` is the sha256 of all that its bytes depend on."""

    split: str
    number: int
    plan: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """All shards of a corpus, whether this run made them or found them standing."""

    records: list[ShardRecord]
    refused: list[Refused]
    made: int
    seconds: float


def write_shards(
    uri: str,
    tasks: Sequence[ShardTask],
    make: Callable[[ShardTask], Iterable[Sample | Refused]],
    *,
    parallelism: int | None = None,
) -> Written:
    """Write the shards that do not stand yet, one task and one commit each.

    Args:
        make: a picklable pure function from a task to its samples.
        parallelism: how many shards are written at once; all CPUs of the cluster by default.

    Raises:
        ValueError: a shard could not be made from what it was given, with the reason.
    """
    start = time.monotonic()
    found: dict[tuple[str, int], tuple[ShardRecord, list[Refused]]] = {}
    missing: list[dict[str, Any]] = []
    for task in tasks:
        standing = corpus.committed_shard(uri, task.split, task.number, plan=task.plan)
        if standing is None:
            missing.append(asdict(task))
        else:
            found[task.split, task.number] = standing
    if found:
        logger.info("%d of %d shards stand already", len(found), len(tasks))

    def write_one(row: dict[str, Any]) -> dict[str, Any]:
        task = ShardTask(**row)
        error: Exception | None = None
        for attempt in range(_RETRIES + 1):
            # A storage that stumbles gets the same shard again; bad input stays bad.
            try:
                corpus.write_shard(uri, task.split, task.number, make(task), plan=task.plan)
                return row
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as caught:
                error = caught
                if attempt < _RETRIES:
                    time.sleep(2.0**attempt)
        assert error is not None
        raise error

    if missing:
        _follow(_stream(missing, write_one, blocks=len(missing), parallelism=parallelism), missing)
    for row in missing:
        made = corpus.committed_shard(uri, row["split"], row["number"], plan=row["plan"])
        if made is None:
            raise ValueError(
                f"the shard {row['split']}-{row['number']:05d} at {uri} vanished after it was "
                "written: does another job write there?"
            )
        found[row["split"], row["number"]] = made
    return Written(
        records=[record for record, _ in found.values()],
        refused=[r for _, refused in found.values() for r in refused],
        made=len(missing),
        seconds=time.monotonic() - start,
    )


def _follow(finished: Iterator[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    """Log progress while shards come in."""
    total = sum(row["samples"] for row in rows)
    start = last = time.monotonic()
    done = shards = 0
    for row in finished:
        done, shards = done + row["samples"], shards + 1
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or shards == len(rows):
            rate = done / (now - start)
            logger.info(
                "%d of %d shards, %d samples, %.0f a second, %.0f s left",
                shards,
                len(rows),
                done,
                rate,
                (total - done) / max(rate, 1e-9),
            )
            last = now
