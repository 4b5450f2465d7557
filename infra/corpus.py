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
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from infra import storage
from infra.config import digest as digest_of
from infra.local_shards import LocalShards
from infra.member_index import Member, MemberIndex, read_members, view_members
from infra.shard_cache import DAMAGED, ShardCache
from infra.shards import Refused, Sample, ShardRecord, write_shard
from infra.split_table import joined_name, read_table

__all__ = ["MANIFEST", "Corpus", "Refused", "Sample", "ShardRecord", "write_shard"]

FORMAT_VERSION = 2
MANIFEST = "corpus.json"

_SHARD_PATH = re.compile(r"shards/[A-Za-z0-9_-]+\.tar")
_SPLIT = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST_LIMIT = 1 << 28
# Of samples and bytes of a shard.
_MOST = 1 << 48


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
            if not _is_sound(record):
                raise ValueError(f"{uri}/{MANIFEST} names a shard {record.path!r}: it is damaged")
        for split in manifest["splits"]:
            if not _SPLIT.fullmatch(split):
                raise ValueError(f"{uri}/{MANIFEST} names a split {split!r}: it is damaged")
        self._files: dict[str, Any] = manifest.get("files", {})
        if not isinstance(self._files, dict):
            raise ValueError(f"{uri}/{MANIFEST} is damaged: write the corpus again")
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
            # What a corpus is does not change with what is made of it.
            itself = {name: value for name, value in manifest.items() if name != "files"}
            return cls(uri, manifest, digest_of(itself), verify=verify)
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
            told = self._files.get(joined_name(split))
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


def _is_sound(record: ShardRecord) -> bool:
    """Whether a shard lies where it may, and is of a size that can be."""
    counts = (record.samples, record.bytes, record.index_bytes)
    return (
        _SHARD_PATH.fullmatch(record.path) is not None
        and _SHA256.fullmatch(record.sha256) is not None
        and all(isinstance(count, int) and 0 <= count < _MOST for count in counts)
    )


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Say which shard it is where a member is not."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{uri} {DAMAGED} ({error})") from None
