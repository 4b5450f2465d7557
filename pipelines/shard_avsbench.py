"""A tree in AVSBench's own layout, the real one or a miniature -> corpus."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from infra import cluster, config, corpus, lease
from infra.corpus import Refused, Sample
from synth import avsbench
from synth.avsbench import ClipRow, Layout
from synth.distribute import ShardTask, write_shards
from synth.publish import publish

logger = logging.getLogger(__name__)

AVSBENCH_LICENCE = "CC-BY-NC-4.0"
AVSBENCH_NOTE = (
    "AVSBench is licensed CC BY-NC 4.0: neither it nor what is trained on it may be used "
    "commercially."
)


@dataclass(frozen=True, kw_only=True)
class ShardAvsbenchConfig:
    """The sharding job."""

    tree: str
    """The folder that holds Single-source/ or Multi-sources/: a path, file:// or s3:// URI."""
    subset: Literal["s4", "ms3"]
    """The single-source or the multi-source subset."""
    uri: str
    """Where the corpus goes: a path, file:// or s3:// URI."""
    samples_per_shard: int = 64
    """Clips in one tar."""
    parallelism: int | None = None
    """Shards written at once; all CPUs of the cluster by default."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}: use at least 1")


def run(job: ShardAvsbenchConfig) -> dict[str, Any]:
    """Shard AVSBench; a rerun makes only what is missing."""
    with lease.hold(job.uri, owner=cluster.job_name("shard_avsbench")) as held:
        return _shard(job, held)


def _shard(job: ShardAvsbenchConfig, held: lease.Held) -> dict[str, Any]:
    layout = avsbench.find(job.tree, job.subset)
    rows, refused = avsbench.clips(layout)
    recipe = {"subset": job.subset, "samples_per_shard": job.samples_per_shard}
    sources = {layout.kind: layout.fingerprint}
    corpus.check_free(job.uri, recipe=recipe, seed=0, sources=sources)
    logger.info("%s: %d clips, %d refused", layout.kind, len(rows), len(refused))

    cluster.connect()
    plans = avsbench.plan_shards(rows, job.samples_per_shard)
    tasks = [
        ShardTask(
            split=split,
            number=number,
            plan=config.digest([sources, recipe, [row.key for row in shard]]),
            samples=len(shard),
        )
        for (split, number), shard in plans.items()
    ]
    written = write_shards(job.uri, tasks, partial(_make, plans=plans), parallelism=job.parallelism)
    if len(written.refused) == len(rows):
        first = (refused + written.refused)[-1]
        raise ValueError(f"no clip of {layout.uri} can be used: {first.reason}")
    return publish(
        job.uri,
        written,
        kind=layout.kind,
        seed=0,
        recipe=recipe,
        sources=sources,
        licences=layout.miniature.get("licences", [AVSBENCH_LICENCE]),
        refused=refused,
        notes=_notes(layout),
        before_commit=held.check,
    )


def _make(
    task: ShardTask, *, plans: dict[tuple[str, int], list[ClipRow]]
) -> Iterator[Sample | Refused]:
    return avsbench.read_clips(plans[task.split, task.number])


def _notes(layout: Layout) -> list[str]:
    if not layout.miniature:
        return [AVSBENCH_NOTE]
    return [str(layout.miniature.get("note", ""))]


if __name__ == "__main__":
    config.main(run, ShardAvsbenchConfig)
