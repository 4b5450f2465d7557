"""The corpus format: WebDataset tar shards with a table of member offsets, and one commit point.

::

    <uri>/corpus.json                         the commit point, written last
    <uri>/shards/{split}-{00000}.tar          any WebDataset reader can read it
    <uri>/shards/{split}-{00000}.parquet      one row per sample: where each member lies in the tar
    <uri>/shards/{split}-{00000}.json         the shard's marker, after its tar and parquet
    <uri>/index/{split}.parquet               the tables of all shards of a split, joined
    <uri>/refused.parquet                     every input that was refused: source, id, reason
    <uri>/index.html                          the page for people

A shard is written tar, parquet, marker, and the manifest when every marker stands: whatever
dies in between leaves nothing that a reader would take for whole, and a rerun makes only the
shards without a valid marker. Bytes are a function of the samples alone: mtime 0, fixed owner,
sorted members. The offsets make a tar a random-access store as well as a stream.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.config import canonical_json
from infra.config import digest as digest_of
from infra.local_shards import LocalShards
from infra.member_index import Member, MemberIndex, read_members, view_members
from infra.shard_cache import DAMAGED, ShardCache
from infra.shards import Refused, Sample, ShardRecord, read_markers, shard_name, write_shard
from infra.split_table import read_table, write_joined

__all__ = [
    "Corpus",
    "Refused",
    "Sample",
    "ShardRecord",
    "build_manifest",
    "check_free",
    "commit",
    "join_indexes",
    "shard_sizes",
    "standing_shards",
    "write_refused",
    "write_shard",
]

FORMAT_VERSION = 2
MANIFEST = "corpus.json"

_SHARD_PATH = re.compile(r"shards/[A-Za-z0-9_-]+\.tar")
_SPLIT = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST_LIMIT = 1 << 28


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


def join_indexes(uri: str, manifest: dict[str, Any]) -> None:
    """Join the indexes of each split's shards into one, which ``manifest`` then names."""
    records = [ShardRecord(**record) for record in manifest["shards"]]
    manifest["indexes"] = {
        split: write_joined(uri, split, [r for r in records if r.split == split])
        for split in manifest["splits"]
    }


def commit(uri: str, manifest: dict[str, Any]) -> None:
    """Write ``corpus.json``, after which the corpus stands."""
    storage.write_bytes(storage.join(uri, MANIFEST), canonical_json(manifest))


class Corpus:
    """A committed corpus, read by offset.

    Local shards are read in place (``infra.local_shards``); shards on object storage are copied
    once into the local cache (``infra.shard_cache``), their size and sha256 verified there. Of a
    local shard the size is verified, and that it stays the same file, unchanged; its sha256 only
    on request, because that reads all of it.
    """

    def __init__(
        self, uri: str, manifest: dict[str, Any], sha256: str, *, verify: bool = False
    ) -> None:
        self.uri = uri
        self.manifest = manifest
        self.sha256 = sha256
        self.shards = [ShardRecord(**record) for record in manifest["shards"]]
        for record in self.shards:
            # A manifest comes from outside and names files that will be read and cached.
            if not _SHARD_PATH.fullmatch(record.path) or not _SHA256.fullmatch(record.sha256):
                raise ValueError(f"{uri}/{MANIFEST} names a shard {record.path!r}: it is damaged")
        for split in manifest["splits"]:
            if not _SPLIT.fullmatch(split):
                raise ValueError(f"{uri}/{MANIFEST} names a split {split!r}: it is damaged")
        if not isinstance(manifest.get("indexes", {}), dict):
            raise TypeError("indexes are told by split")
        self._verify = verify
        self._tables: dict[str, pa.Table] = {}
        self._indices: dict[str, tuple[MemberIndex, list[ShardRecord], list[int]]] = {}
        self._cache: ShardCache | None = None
        self._local = LocalShards(verify=verify)

    @classmethod
    def open(cls, uri: str, *, verify: bool = False) -> Corpus:
        """Open the corpus at ``uri``.

        Args:
            verify: compare the sha256 of local shards too, each when it is first read.

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
            return cls(uri, manifest, hashlib.sha256(data).hexdigest(), verify=verify)
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
            records = [r for r in self.shards if r.split == split]
            told = self.manifest.get("indexes", {}).get(split)
            self._tables[split] = read_table(self.uri, split, records, told)
        return self._tables[split]

    def index(self, split: str) -> MemberIndex:
        """Where the members of a split's samples lie."""
        return self._index(split)[0]

    def _index(self, split: str) -> tuple[MemberIndex, list[ShardRecord], list[int]]:
        """The index of a split, its shards, and the number of each one's first row, and the end."""
        if split not in self._indices:
            records = [r for r in self.shards if r.split == split]
            first = list(itertools.accumulate((r.samples for r in records), initial=0))
            self._indices[split] = MemberIndex(self.table(split)), records, first
        return self._indices[split]

    def shard_sizes(self, split: str) -> tuple[int, ...]:
        """Samples of each shard of a split, in the order of ``table``."""
        return tuple(record.samples for record in self._index(split)[1])

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files lie on this machine; others have, and look at, their own.
        local = LocalShards(verify=self._verify)
        return {**self.__dict__, "_cache": None, "_local": local, "_indices": {}}

    def read(self, split: str, row: int, *, names: Collection[str] | None = None) -> Sample:
        """The sample in ``row`` of ``table(split)``, all members or only those in ``names``.

        Raises:
            ValueError: the shard is damaged, or of a local corpus missing or changed since it was
                first read.
            FileNotFoundError: it is missing on object storage.
        """
        record, key, places = self._find(split, row, None if names is None else {*names, "json"})
        uri = self._uri_of(record)
        with self._shards().reading(uri, record) as descriptor, _naming(uri):
            members = read_members(descriptor, key, places)
            meta = json.loads(members.pop("json"))
        return Sample(key=key, meta=meta, members=members)

    def view(self, split: str, row: int) -> tuple[str, dict[str, memoryview]]:
        """The key and the members of a sample as they are stored, ``json`` among them, uncopied.

        For bytes that are passed on unseen. While a view is used, nobody may cut the file of a
        local shard short: see ``infra.local_shards``. A cached shard that is evicted keeps its
        disk until its views go.

        Raises:
            ValueError: as for ``read``.
        """
        record, key, places = self._find(split, row, None)
        uri = self._uri_of(record)
        tar = self._shards().mapped(uri, record)
        with _naming(uri):
            return key, view_members(tar, key, places)

    def _find(
        self, split: str, row: int, names: Collection[str] | None
    ) -> tuple[ShardRecord, str, list[Member]]:
        index, records, first = self._index(split)
        return records[bisect.bisect_right(first, row) - 1], *index.find(row, names)

    def shards_ahead(self, split: str, rows: Iterable[int]) -> list[ShardRecord]:
        """What ``fetch`` should bring before some samples are read, in that order.

        No more than half of what the cache may hold, and nothing for a corpus on a disk.
        """
        if not self.is_remote:
            return []
        _, records, first = self._index(split)
        numbers = np.searchsorted(first, np.fromiter(rows, np.int64), side="right") - 1
        ahead: list[ShardRecord] = []
        for number in dict.fromkeys(numbers.tolist()):
            ahead.append(records[number])
            if sum(record.bytes for record in ahead) > self._shard_cache().limit // 2:
                return ahead[:-1]
        return ahead

    def fetch(self, record: ShardRecord) -> None:
        """Bring a shard from object storage into the local cache."""
        self._shard_cache().fetch(self._uri_of(record), record)

    @property
    def is_remote(self) -> bool:
        """Whether its shards lie on object storage and are read from the local cache."""
        return self.uri.startswith("s3://")

    def _uri_of(self, record: ShardRecord) -> str:
        return f"{self.uri}/{record.path}"

    def _shards(self) -> ShardCache | LocalShards:
        return self._shard_cache() if self.is_remote else self._local

    def _shard_cache(self) -> ShardCache:
        if self._cache is None:
            self._cache = ShardCache()
        return self._cache


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Say which shard it is where a member is not."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{uri} {DAMAGED} ({error})") from None
