"""A tree in AVSBench's own layout, the real one or a miniature -> corpus."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from infra import cluster, config, corpus, storage
from infra.corpus import Corpus, Refused, Sample
from synth import avsbench
from synth.avsbench import ClipRow, Layout
from synth.distribute import ShardTask, write_shards
from synth.page import write_page

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
    layout = avsbench.find(job.tree, job.subset)
    rows, refused = avsbench.clips(layout)
    recipe = {"subset": job.subset, "samples_per_shard": job.samples_per_shard}
    sources = {layout.kind: layout.fingerprint}
    corpus.check_free(job.uri, recipe=recipe, seed=0, sources=sources)
    logger.info("%s: %d clips, %d refused", layout.kind, len(rows), len(refused))

    cluster.connect()
    plans = plan_shards(rows, job.samples_per_shard)
    tasks = [
        ShardTask(
            split=split,
            number=number,
            plan=config.digest([sources, recipe, [row.key for row in shard]]),
            samples=len(shard),
        )
        for (split, number), shard in plans.items()
    ]
    written = write_shards(job.uri, tasks, partial(make, plans=plans), parallelism=job.parallelism)
    refused = [*refused, *written.refused]
    if len(written.refused) == len(rows):
        raise ValueError(f"no clip of {layout.uri} can be used: {refused[-1].reason}")
    manifest = corpus.build_manifest(
        kind=layout.kind,
        seed=0,
        recipe=recipe,
        sources=sources,
        licences=layout.miniature.get("licences", [AVSBENCH_LICENCE]),
        shards=written.records,
        refused=refused,
        notes=_notes(layout),
    )
    corpus.write_refused(job.uri, refused)
    write_page(job.uri, manifest, refused)
    corpus.commit(job.uri, manifest)
    return {
        "uri": storage.normalise(job.uri),
        "kind": layout.kind,
        "manifest_sha256": Corpus.open(job.uri).sha256,
        "samples": sum(split["samples"] for split in manifest["splits"].values()),
        "splits": {name: split["samples"] for name, split in manifest["splits"].items()},
        "classes": Corpus.open(job.uri).classes,
        "shards": len(written.records),
        "shards_made": written.made,
        "refused": len(refused),
        "refused_by_reason": dict(Counter(r.reason.split(":")[0] for r in refused)),
        "seconds": round(written.seconds, 2),
    }


def plan_shards(
    rows: list[ClipRow], samples_per_shard: int
) -> dict[tuple[str, int], list[ClipRow]]:
    """The clips of each shard by (split, number), in the order of their keys."""
    plans: dict[tuple[str, int], list[ClipRow]] = {}
    for split in avsbench.SPLITS:
        own = [row for row in rows if row.split == split]
        for number, first in enumerate(range(0, len(own), samples_per_shard)):
            plans[split, number] = own[first : first + samples_per_shard]
    return plans


def make(
    task: ShardTask, *, plans: dict[tuple[str, int], list[ClipRow]]
) -> Iterator[Sample | Refused]:
    """The samples of one shard; a clip that cannot be decoded is refused with its reason."""
    for row in plans[task.split, task.number]:
        try:
            yield avsbench.to_sample(row)
        except (ValueError, FileNotFoundError) as error:
            identity = f"{row.subset}/{row.split}/{row.name}"
            yield Refused(id=identity, source=row.kind, reason=str(error))


def _notes(layout: Layout) -> list[str]:
    if not layout.miniature:
        return [AVSBENCH_NOTE]
    return [str(layout.miniature.get("note", ""))]


if __name__ == "__main__":
    config.main(run, ShardAvsbenchConfig)
