"""The last steps of every job that makes a corpus: what was refused, the page, the commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from infra import corpus, storage
from infra.corpus import Corpus, Refused
from synth.distribute import Written
from synth.page import write_page


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
) -> dict[str, Any]:
    """Commit the shards at ``uri`` as a corpus and return the job's summary.

    Args:
        refused: what was refused before any shard was written.
        kind, seed, recipe, sources, licences, notes: as ``corpus.build_manifest`` takes them.
    """
    refused = [*refused, *written.refused]
    manifest = corpus.build_manifest(
        kind=kind,
        seed=seed,
        recipe=recipe,
        sources=sources,
        licences=licences,
        shards=written.records,
        refused=refused,
        notes=notes,
    )
    corpus.write_refused(uri, refused)
    write_page(uri, manifest, refused)
    corpus.commit(uri, manifest)
    committed = Corpus.open(uri)
    return {
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
    }
