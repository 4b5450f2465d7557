"""A tree in AVSBench's own layout, the real one or a miniature -> corpus, or a check of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from infra import cluster, config, lease, storage
from infra.commit import check_free
from infra.console import say, table
from infra.corpus import Refused, Sample
from pipelines.catalog import check_parallelism
from synth import avsbench
from synth.avsbench import ClipRow, Layout
from synth.distribute import ShardTask, Shared, map_rows, write_shards
from synth.publish import publish

logger = logging.getLogger(__name__)

AVSBENCH_LICENCE = "CC-BY-NC-4.0"
AVSBENCH_NOTE = (
    "AVSBench is licensed CC BY-NC 4.0: neither it nor what is trained on it may be used "
    "commercially."
)
# Clips that are looked at between two lines of progress.
_BATCH = 2_000


@dataclass(frozen=True, kw_only=True)
class ShardAvsbenchConfig:
    """The sharding job."""

    tree: str
    """The benchmark's folder or a zip file: a path, file:// or s3:// URI. Zip files that lie in
    the folder are looked into and need not be unpacked."""
    subset: Literal["s4", "ms3", "v1s", "v1m", "v2", "avss"]
    """s4 and ms3 of AVSBench-object; v1s, v1m, v2 of AVSBench-semantic, avss for these three."""
    uri: str | None = None
    """Where the corpus goes: a path, file:// or s3:// URI. A check needs none."""
    samples_per_shard: int = 64
    """Clips in one tar."""
    parallelism: int | None = None
    """Shards written at once; all CPUs of the cluster by default."""
    check: bool = False
    """Say what is missing, damaged or odd in the tree, and write nothing."""
    splits: Literal["published", "clean"] = "published"
    """clean leaves every clip out of train whose video has clips in val or test (116 of 296 in ms3,
    none in s4); val and test stay the published ones."""
    frame_size: Literal["224", "native"] = "224"
    """Of frames that are missing and have to be taken from raw_videos: squashed to 224x224 as the
    published ones are, or the video's own size."""

    retry_refused: bool = False
    """Make the shards anew in which clips were refused: their files were fetched again since."""

    def __post_init__(self) -> None:
        check_parallelism(self.parallelism)
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}: use at least 1")
        if self.uri is None and not self.check:
            raise ValueError("uri is missing: say where the corpus goes, or --check the tree only")


def run(job: ShardAvsbenchConfig) -> dict[str, Any]:
    """Shard AVSBench, or check its tree; a rerun makes only what is missing."""
    if job.check or job.uri is None:
        return _check(job)
    with lease.hold(job.uri, owner=cluster.job_name("shard_avsbench")) as held:
        return _shard(job, job.uri, held)


def _shard(job: ShardAvsbenchConfig, uri: str, held: lease.Held) -> dict[str, Any]:
    retries = storage.retries()
    layout = avsbench.find(job.tree, job.subset)
    rows, refused = avsbench.clips(layout, splits=job.splits, side=_side(job))
    recipe = {
        "subset": job.subset,
        "samples_per_shard": job.samples_per_shard,
        "splits": job.splits,
        "frame_size": job.frame_size,
    }
    sources = {layout.kind: layout.fingerprint}
    check_free(uri, recipe=recipe, seed=0, sources=sources)
    logger.info("%s: %d clips, %d refused", layout.kind, len(rows), len(refused))
    if layout.left_out[avsbench.PICKLED]:
        logger.info(avsbench.pickles_note(layout.left_out[avsbench.PICKLED]))

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
    make = partial(_make, plans=Shared(plans))
    written = write_shards(
        uri,
        tasks,
        make,
        parallelism=job.parallelism,
        retry_refused=job.retry_refused,
        check=held.check,
    )
    if len(written.refused) == len(rows):
        first = (refused + written.refused)[-1]
        raise ValueError(f"no clip of {layout.uri} can be used: {first.reason}")
    return publish(
        uri,
        written,
        kind=layout.kind,
        seed=0,
        recipe=recipe,
        sources=sources,
        licences=layout.miniature.get("licences", [AVSBENCH_LICENCE]),
        refused=refused,
        notes=_notes(layout, job.splits),
        about={"label_classes": list(layout.label_classes)} if layout.label_classes else None,
        before_commit=held.check,
        earlier_retries=storage.retries() - retries - written.retries,
    )


def _side(job: ShardAvsbenchConfig) -> int | None:
    return None if job.frame_size == "native" else int(job.frame_size)


def _make(
    task: ShardTask, *, plans: Shared[dict[tuple[str, int], list[ClipRow]]]
) -> Iterator[Sample | Refused]:
    return avsbench.read_clips(plans.get()[task.split, task.number])


def _notes(layout: Layout, splits: avsbench.Splits) -> list[str]:
    entries, _ = avsbench.table_of(layout)
    first = str(layout.miniature.get("note", "")) if layout.miniature else AVSBENCH_NOTE
    return [first, avsbench.note_on(entries, splits)]


def _check(job: ShardAvsbenchConfig) -> dict[str, Any]:
    started = time.monotonic()
    layout = avsbench.find(job.tree, job.subset)
    entries, stray_headers = avsbench.table_of(layout)
    rows, refused = avsbench.rows_of(layout, entries, splits="published", side=_side(job))
    if rows:
        cluster.connect()
    verdicts = _verdicts(rows, job.parallelism)
    report = avsbench.summarise(layout, entries, stray_headers, refused, verdicts)
    for clip in sorted({*report.refused, *report.odd}):
        lost = [f"refused: {report.refused[clip]}"] if clip in report.refused else []
        say(f"{clip}  {'; '.join([*lost, *report.odd.get(clip, [])])}")
    say("\n".join(["", _counts(report.summary), "", *report.remarks]))
    if not any(report.summary["usable"].values()):
        reason = next(iter(report.refused.values()), "its table has no clips")
        raise ValueError(f"nothing in {storage.normalise(job.tree)} can be used: {reason}")
    return {**report.summary, "seconds": round(time.monotonic() - started, 2)}


def _verdicts(rows: list[ClipRow], parallelism: int | None) -> list[dict[str, Any]]:
    """What reading each clip tells, in the order of the rows."""
    if not rows:
        return []
    shared, found = Shared(rows), []
    for first in range(0, len(rows), _BATCH):
        numbers = [{"number": n} for n in range(first, min(first + _BATCH, len(rows)))]
        found += map_rows(numbers, partial(_look, rows=shared), parallelism=parallelism)
        logger.info("%d of %d clips looked at", len(found), len(rows))
    return sorted(found, key=lambda verdict: verdict["number"])


def _look(row: dict[str, Any], *, rows: Shared[list[ClipRow]]) -> dict[str, Any]:
    return {**row, **avsbench.look(rows.get()[row["number"]])}


def _counts(summary: dict[str, Any]) -> str:
    heads = ("split", "published", "in the table", "usable")
    names = ("published", "listed", "usable")
    lines = [table(heads, [(s, *(summary[n][s] for n in names)) for s in avsbench.SPLITS])]
    for title, kinds in (("refused", summary["refused_by_reason"]), ("odd", summary["odd"])):
        if kinds:
            lines += ["", table((title, "clips"), list(kinds.items()))]
    return "\n".join(lines)


if __name__ == "__main__":
    config.main(run, ShardAvsbenchConfig)
