"""What makes a corpus stand: its manifest and what comes with it, and what stands already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.config import canonical_json
from infra.config import digest as digest_of
from infra.corpus import FORMAT_VERSION, MANIFEST, Corpus
from infra.shards import Refused, ShardRecord, read_markers, shard_name
from infra.split_table import joined_bytes, joined_name


def build_manifest(
    *,
    kind: str,
    seed: int,
    recipe: dict[str, Any],
    sources: dict[str, str],
    licences: Sequence[str],
    shards: Sequence[ShardRecord],
    refused: Sequence[Refused],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of ``corpus.json``.

    Args:
        kind: what the corpus is, for instance ``synthetic`` or ``avsbench_s4``.
        recipe: the resolved recipe, without anything that leaves the bytes as they are.
        sources: fingerprint of each source that the samples were made from.
        notes: sentences that whoever uses the corpus should read.
    """
    ordered = sorted(shards, key=lambda record: record.path)
    splits: dict[str, dict[str, Any]] = {}
    for record in ordered:
        split = splits.setdefault(record.split, {"samples": 0, "bytes": 0, "classes": {}})
        split["samples"] += record.samples
        split["bytes"] += record.bytes
        for name, count in record.classes.items():
            split["classes"][name] = split["classes"].get(name, 0) + count
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "seed": seed,
        "recipe": recipe,
        "recipe_sha256": digest_of(recipe),
        "sources": sources,
        "licences": sorted(set(licences)),
        "notes": list(notes),
        "refused": len(refused),
        "splits": splits,
        "shards": [asdict(record) for record in ordered],
    }


def refused_table(refused: Sequence[Refused]) -> bytes:
    """The content of ``refused.parquet``, sorted by id."""
    rows = [asdict(r) for r in sorted(refused, key=lambda r: (r.id, r.reason))]
    schema = pa.schema([(name, pa.string()) for name in ("id", "source", "reason")])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def check_free(
    uri: str, *, recipe: dict[str, Any], seed: int, sources: dict[str, str] | None = None
) -> None:
    """Refuse to write over another corpus.

    Args:
        sources: None where they are not known yet; then they may be any.

    Raises:
        ValueError: a corpus of another recipe, seed or other sources stands at ``uri``.
    """
    try:
        standing = Corpus.open(uri).manifest
    except FileNotFoundError:
        return
    theirs = standing["sources"]
    differing = [
        name for name, ours in (("recipe", recipe), ("seed", seed)) if standing[name] != ours
    ]
    if sources is not None:
        differing += [n for n in {**sources, **theirs} if sources.get(n) != theirs.get(n)]
    if differing:
        raise ValueError(
            f"another corpus stands at {uri} (its {differing[0]} differs): "
            "choose another URI, or remove that one first"
        )


def standing_shards(
    uri: str, plans: Mapping[tuple[str, int], str], sizes: Mapping[str, int] | None = None
) -> dict[tuple[str, int], tuple[ShardRecord, list[Refused]]]:
    """What ``write_shard`` gave for each shard that stands whole and was made from the same plan.

    One listing tells which files are there and how large. What they should be comes from the
    manifest of a committed corpus, and otherwise from the markers, which are read many at once.

    Args:
        plans: the plan of each shard that is wanted, by split and number.
        sizes: ``shard_sizes(uri)``, where that is known already.
    """
    sizes = shard_sizes(uri) if sizes is None else sizes
    names = {shard_name(*shard): shard for shard in plans}
    records: dict[str, tuple[ShardRecord, list[Refused]]] = {}
    with suppress(FileNotFoundError):
        for record in Corpus.open(uri).shards:
            name = record.path.removesuffix(".tar")
            # What was refused stands in the marker alone.
            if name in names and record.plan == plans[names[name]] and not record.refused:
                records[name] = record, []
    unknown = [name for name in names if name not in records and f"{name}.json" in sizes]
    for name, record, refused in read_markers(uri, unknown):
        records[name] = record, refused
    return {
        shard: records[name]
        for name, shard in names.items()
        if name in records
        and records[name][0].plan == plans[shard]
        and records[name][0].is_whole(sizes)
    }


def shard_sizes(uri: str) -> dict[str, int]:
    """Bytes of every file of the shards, by its path in the corpus."""
    sizes = storage.list_sizes(storage.join(uri, "shards"))
    return {f"shards/{name}": size for name, size in sizes.items()}


def join_indexes(corpus: Corpus) -> dict[str, bytes]:
    """The joined index of each split, by its name in the corpus."""
    return {joined_name(split): joined_bytes(corpus.table(split)) for split in corpus.splits}


def commit(
    uri: str,
    manifest: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write what comes with a corpus and then ``corpus.json``, after which it stands.

    Args:
        files: what is made of shards and manifest, by its name in the corpus. The manifest tells
            size and sha256 of each, as it tells those of the shards.
        check: called before each file is written; raises when no more may be.
    """
    told = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in (files or {}).items()
    }
    for name, data in (files or {}).items():
        check()
        storage.write_bytes(storage.join(uri, name), data)
    check()
    storage.write_bytes(storage.join(uri, MANIFEST), canonical_json({**manifest, "files": told}))


def is_committed(uri: str, manifest: dict[str, Any], files: Collection[str]) -> bool:
    """Whether this very corpus stands with all of ``files``, each as its manifest tells it."""
    try:
        there = Corpus.open(uri).manifest
        told = there.pop("files", {})
        same = told.keys() == set(files) and canonical_json(there) == canonical_json(manifest)
        return same and all(
            hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest()
            == told[name]["sha256"]
            for name in files
        )
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return False
