"""The corpus format: WebDataset tar shards with a table of member offsets, and one commit point.

::

    <uri>/corpus.json                         the commit point, written last
    <uri>/shards/{split}-{00000}.tar          any WebDataset reader can read it
    <uri>/shards/{split}-{00000}.parquet      one row per sample: where each member lies in the tar
    <uri>/shards/{split}-{00000}.json         the shard's marker, after its tar and parquet
    <uri>/refused.parquet                     every input that was refused: source, id, reason
    <uri>/index.html                          the page for people

A shard is written tar, parquet, marker, and the manifest when every marker stands: whatever
dies in between leaves nothing that a reader would take for whole, and a rerun makes only the
shards without a valid marker. Bytes are a function of the samples alone: mtime 0, fixed owner,
sorted members. The offsets make a tar a random-access store as well as a stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.config import canonical_json
from infra.config import digest as digest_of
from infra.shards import (
    Refused,
    Sample,
    ShardRecord,
    read_markers,
    shard_name,
    write_shard,
)

__all__ = [
    "Corpus",
    "Refused",
    "Sample",
    "ShardRecord",
    "build_manifest",
    "check_free",
    "commit",
    "shard_sizes",
    "standing_shards",
    "write_refused",
    "write_shard",
]

FORMAT_VERSION = 2
MANIFEST = "corpus.json"

_SHARD_PATH = re.compile(r"shards/[A-Za-z0-9_-]+\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST_LIMIT = 1 << 28
# A rerun goes by sizes and would take it for sound.
_DAMAGED = "does not match its checksum: remove it and run the job that makes the corpus again"


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


def write_refused(uri: str, refused: Sequence[Refused]) -> None:
    """Write ``refused.parquet``, sorted by id."""
    rows = [asdict(r) for r in sorted(refused, key=lambda r: (r.id, r.reason))]
    schema = pa.schema([(name, pa.string()) for name in ("id", "source", "reason")])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    storage.write_bytes(storage.join(uri, "refused.parquet"), buffer.getvalue().to_pybytes())


def check_free(uri: str, *, recipe: dict[str, Any], seed: int, sources: dict[str, str]) -> None:
    """Refuse to write over another corpus.

    Raises:
        ValueError: a corpus of another recipe, seed or other sources stands at ``uri``.
    """
    try:
        standing = Corpus.open(uri).manifest
    except FileNotFoundError:
        return
    for name, ours in (("recipe", recipe), ("seed", seed), ("sources", sources)):
        if standing[name] != ours:
            raise ValueError(
                f"another corpus stands at {uri} (its {name} differs): "
                "choose another URI, or remove that one first"
            )


def standing_shards(
    uri: str, plans: Mapping[tuple[str, int], str]
) -> dict[tuple[str, int], tuple[ShardRecord, list[Refused]]]:
    """What ``write_shard`` gave for each shard that stands whole and was made from the same plan.

    One listing tells which files are there and how large. What they should be comes from the
    manifest of a committed corpus, and otherwise from the markers, which are read many at once.

    Args:
        plans: the plan of each shard that is wanted, by split and number.
    """
    sizes = shard_sizes(uri)
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


def commit(uri: str, manifest: dict[str, Any]) -> None:
    """Write ``corpus.json``, after which the corpus stands."""
    storage.write_bytes(storage.join(uri, MANIFEST), canonical_json(manifest))


class Corpus:
    """A committed corpus, read by offset.

    Local shards are read in place; shards on object storage are copied once into the local
    cache, their checksum verified there.
    """

    def __init__(self, uri: str, manifest: dict[str, Any], sha256: str) -> None:
        self.uri = uri
        self.manifest = manifest
        self.sha256 = sha256
        self.shards = [ShardRecord(**record) for record in manifest["shards"]]
        for record in self.shards:
            # A manifest comes from outside and names files that will be read and cached.
            if not _SHARD_PATH.fullmatch(record.path) or not _SHA256.fullmatch(record.sha256):
                raise ValueError(f"{uri}/{MANIFEST} names a shard {record.path!r}: it is damaged")
        self._tables: dict[str, pa.Table] = {}
        self._paths: dict[str, Path] = {}

    @classmethod
    def open(cls, uri: str) -> Corpus:
        """Open the corpus at ``uri``.

        Raises:
            FileNotFoundError: no committed corpus stands there.
            ValueError: its manifest is damaged or of another format version.
        """
        uri = storage.normalise(uri)
        try:
            data = storage.read_bytes(storage.join(uri, MANIFEST), limit=_MANIFEST_LIMIT)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no corpus stands at {uri}: {MANIFEST} is missing; check the URI, or let the "
                "job that makes it run to its end"
            ) from None
        try:
            manifest = json.loads(data)
            version = manifest["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"{uri} has corpus format {version}, this reads {FORMAT_VERSION}: "
                    "write the corpus again"
                )
            return cls(uri, manifest, hashlib.sha256(data).hexdigest())
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError(
                f"{uri}/{MANIFEST} is damaged: remove it and write the corpus again"
            ) from None

    @property
    def splits(self) -> list[str]:
        """The names of the splits."""
        return sorted(self.manifest["splits"])

    @property
    def classes(self) -> list[str]:
        """Every class that sounds anywhere in the corpus, sorted."""
        return sorted({c for s in self.manifest["splits"].values() for c in s["classes"]})

    def table(self, split: str) -> pa.Table:
        """One row per sample, in shard order: key, shard, scene, classes, frames, members, and
        mask_area and loudness_db where the samples told them.

        Raises:
            ValueError: the corpus has no such split, or an index does not match its checksum.
        """
        if split not in self.manifest["splits"]:
            raise ValueError(f"{self.uri} has no split {split!r}, only {', '.join(self.splits)}")
        if split not in self._tables:
            tables = [self._read_index(r) for r in self.shards if r.split == split]
            self._tables[split] = pa.concat_tables(tables)
        return self._tables[split]

    def _read_index(self, record: ShardRecord) -> pa.Table:
        path = storage.join(self.uri, record.index)
        data = storage.read_bytes(path)
        if hashlib.sha256(data).hexdigest() != record.index_sha256:
            raise ValueError(f"{path} {_DAMAGED}")
        table = pq.read_table(pa.BufferReader(data))
        return table.append_column("shard", pa.array([record.path] * len(table), pa.string()))

    def __getstate__(self) -> dict[str, Any]:
        # Cached copies lie on this machine; others make their own.
        return {**self.__dict__, "_paths": {}}

    def read(self, split: str, row: int, *, names: Sequence[str] | None = None) -> Sample:
        """The sample in ``row`` of ``table(split)``, all members or only those in ``names``."""
        table = self.table(split)
        record = table.slice(row, 1).to_pylist()[0]
        members: dict[str, bytes] = {}
        meta: dict[str, Any] = {}
        # Opened anew for every sample: a corpus can have more shards than a process open files.
        with self._path(record["shard"]).open("rb", buffering=0) as file:
            for member in record["members"]:
                name = member["name"]
                if names is not None and name not in names and name != "json":
                    continue
                data = os.pread(file.fileno(), member["size"], member["offset"])
                if len(data) != member["size"]:
                    raise ValueError(
                        f"{self.uri}/{record['shard']} ends inside {record['key']}.{name}: "
                        "the shard is damaged, write it again"
                    )
                if name == "json":
                    meta = json.loads(data)
                else:
                    members[name] = data
        return Sample(key=record["key"], members=members, meta=meta)

    def _path(self, path: str) -> Path:
        """Where a shard lies on this machine."""
        if path not in self._paths:
            uri = storage.join(self.uri, path)
            record = next(r for r in self.shards if r.path == path)
            local = _local_shard(uri, record) if uri.startswith("s3://") else Path(uri)
            if not local.is_file() or local.stat().st_size != record.bytes:
                raise ValueError(f"{uri} is missing or cut short: write the corpus again")
            self._paths[path] = local
        return self._paths[path]


def _local_shard(uri: str, record: ShardRecord) -> Path:
    """The cached copy of a shard; its name is its checksum, so it can never be stale."""
    local = storage.cache_folder() / "shards" / f"{record.sha256}.tar"
    if local.is_file() and local.stat().st_size == record.bytes:
        return local
    # It gets its name when it is known to be right: others take it as it stands.
    arriving = local.with_name(f".{record.sha256}.{os.getpid()}")
    try:
        storage.download(uri, arriving)
        with arriving.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != record.sha256:
            raise ValueError(f"{uri} {_DAMAGED}")
        arriving.replace(local)
    finally:
        arriving.unlink(missing_ok=True)
    return local
