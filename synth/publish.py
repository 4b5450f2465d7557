"""The last steps of every job that makes a corpus: refusals, page and indexes, and the commit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra import storage
from infra.commit import build_manifest, commit, is_committed, join_indexes, refused_table
from infra.corpus import Corpus, Refused
from infra.split_table import joined_name
from synth.distribute import Written
from synth.page import PAGE, draw_page

logger = logging.getLogger(__name__)


def publish(
    uri: str,
    written: Written,
    *,
    kind: str,
    seed: int,
    recipe: dict[str, Any],
    sources: dict[str, str],
    licences: Sequence[str],
    refused: Sequence[Refused],
    notes: Sequence[str],
    about: Mapping[str, Any] | None = None,
    before_commit: Callable[[], None] = lambda: None,
    earlier_retries: int = 0,
) -> dict[str, Any]:
    """Commit the shards at ``uri`` as a corpus and return the job's summary, logged as well.

    Where just this corpus stands already, with all that comes with it, nothing is written.

    Args:
        refused: what was refused before any shard was written.
        kind, seed, recipe, sources, licences, notes: as ``build_manifest`` takes them.
        about: more that the manifest says of the corpus.
        before_commit: called before the manifest and each file that comes with it is written;
            raises when it must not be.
        earlier_retries: requests that had to be sent again beside those of writing the shards.
    """
    retries = storage.retries()
    # One file that many samples would have used is refused once.
    refused = sorted({*refused, *written.refused}, key=lambda row: (row.id, row.source, row.reason))
    manifest = build_manifest(
        kind=kind,
        seed=seed,
        recipe=recipe,
        sources=sources,
        licences=licences,
        shards=written.records,
        refused=refused,
        notes=notes,
    )
    manifest.update(about or {})
    made = Corpus(storage.normalise(uri), manifest, sha256="")
    names = {"refused.parquet", PAGE, *map(joined_name, made.splits)}
    if written.made or not is_committed(uri, manifest, names):
        files = {
            "refused.parquet": refused_table(refused),
            PAGE: draw_page(made, refused),
            **join_indexes(made),
        }
        commit(uri, manifest, files, check=before_commit)
    committed = Corpus.open(uri)
    summary = {
        "uri": storage.normalise(uri),
        "kind": kind,
        "manifest_sha256": committed.sha256,
        "samples": sum(split["samples"] for split in manifest["splits"].values()),
        "splits": {name: split["samples"] for name, split in manifest["splits"].items()},
        "classes": committed.classes,
        "shards": len(written.records),
        "shards_made": written.made,
        "refused": len(refused),
        "refused_by_reason": dict(Counter(row.reason.split(":")[0] for row in refused)),
        "seconds": round(written.seconds, 2),
        "bytes_made": written.bytes,
        "samples_made": written.samples,
        "samples_per_second": round(written.samples / max(written.seconds, 1e-9), 1),
        "retries": earlier_retries + written.retries + storage.retries() - retries,
        "stage_seconds": {name: round(spent, 3) for name, spent in written.timings.items()},
    }
    _log(summary)
    return summary


def _log(summary: Mapping[str, Any]) -> None:
    spent = ", ".join(f"{name} {seconds:.2f}" for name, seconds in summary["stage_seconds"].items())
    logger.info(
        "%d samples in %d shards made in %.1f s (%.1f a second, %.1f MB); %d inputs refused, "
        "%d requests sent again; seconds of all workers together: %s",
        summary["samples_made"],
        summary["shards_made"],
        summary["seconds"],
        summary["samples_per_second"],
        summary["bytes_made"] / 1e6,
        summary["refused"],
        summary["retries"],
        spent or "none",
    )
