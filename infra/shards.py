"""Shards: WebDataset tars with a table of member offsets, and a marker that commits them.

A shard is written tar, parquet, marker; where one is made anew its old marker goes first. Its bytes
are a function of the samples alone: mtime 0, fixed owner, sorted members.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import stopwatch, storage
from infra.config import canonical_json
from infra.errors import space_for

_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MEMBER = re.compile(r"(frame\d+\.(jpg|png)|(mask|label)\d+\.png|audio\.(flac|wav))")
_MARKER_LIMIT = 1 << 28
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("scene", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("frames", pa.int32()),
        # Of the picture that the masks cover, the mean over the annotated frames.
        ("mask_area", pa.float64()),
        # Root mean square of the sound, in dB of full scale.
        ("loudness_db", pa.float64()),
        (
            "members",
            pa.list_(
                pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
            ),
        ),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training or evaluation clip."""

    key: str
    """ASCII letters, digits, ``_`` and ``-``, at most 100; unique in the corpus."""
    members: dict[str, bytes]
    """``frame{k}.jpg|png``, ``mask{k}.png``, ``label{k}.png``, ``audio.flac|wav``."""
    meta: dict[str, Any]
    """The ``json`` member: at least ``scene``, ``classes`` (what sounds) and ``frames``. The
    index repeats these, and ``mask_area`` and ``loudness_db`` where they are given."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An input that was refused. ``reason`` begins with its kind and a colon (``silent: ...``)."""

    id: str
    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What the manifest says of a shard; its marker lists what was refused on the way."""

    path: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str
    refused: int
    """Inputs that were refused while it was made."""
    plan: str
    """sha256 of everything the shard's bytes depend on."""
    classes: dict[str, int] = field(default_factory=dict)
    """Samples in which each class sounds."""

    @property
    def index(self) -> str:
        """Path of the table of member offsets."""
        return self.path.removesuffix(".tar") + ".parquet"

    @property
    def marker(self) -> str:
        """Path of the marker."""
        return self.path.removesuffix(".tar") + ".json"

    def is_whole(self, sizes: Mapping[str, int]) -> bool:
        """Whether a listing of the corpus (``storage.list_sizes``) has all three files.

        A file that is damaged and has the right size is the reader's to find: it knows the sha256.
        """
        return (
            sizes.get(self.path) == self.bytes
            and sizes.get(self.index) == self.index_bytes
            and self.marker in sizes
        )


def write_shard(
    uri: str,
    split: str,
    number: int,
    samples: Iterable[Sample | Refused],
    *,
    plan: str,
    anew: bool = False,
) -> tuple[ShardRecord, list[Refused]]:
    """Write one shard and commit it with its marker.

    ``samples`` may be a generator: the tar is spooled to a local file, one sample in memory. What
    it yields as refused is kept in the marker and given back.

    Args:
        anew: whether the marker of an earlier shard stands there.

    Raises:
        ValueError: a key or member name that the format does not allow, or a key given twice.
        DiskFull: no space is left, there or for the spooled tar.
    """
    name = shard_name(split, number)
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    classes: dict[str, int] = {}
    seen: set[str] = set()
    # Without a name: it goes away with this process, however that ends.
    spool = f"the tar of {name} in {tempfile.gettempdir()}"
    with space_for(spool), tempfile.TemporaryFile() as tar:
        digest = hashlib.sha256()
        for sample in samples:
            if isinstance(sample, Refused):
                refused.append(sample)
                continue
            if sample.key in seen:
                raise ValueError(f"the key {sample.key!r} is given twice in {name}.tar")
            seen.add(sample.key)
            with stopwatch.time("write"):
                rows.append(_write_sample(tar, digest, sample))
            for sounding in sample.meta["classes"]:
                classes[sounding] = classes.get(sounding, 0) + 1
        # The end of a tar: two empty blocks, padded to a whole record.
        end = tar.tell() + 2 * tarfile.BLOCKSIZE
        padding = -end % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE
        tar.write(bytes(padding))
        digest.update(bytes(padding))
        size = tar.tell()
        tar.flush()
        with stopwatch.time("write"):
            index = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), index, compression="zstd")
            index_data = index.getvalue().to_pybytes()
            record = ShardRecord(
                path=f"{name}.tar",
                split=split,
                samples=len(rows),
                bytes=size,
                sha256=digest.hexdigest(),
                index_bytes=len(index_data),
                index_sha256=hashlib.sha256(index_data).hexdigest(),
                refused=len(refused),
                plan=plan,
                classes=dict(sorted(classes.items())),
            )
            marker = {**asdict(record), "refused": [asdict(r) for r in refused]}
            if anew:
                # Padded, another tar can have the size that the old marker vouches for.
                storage.remove(storage.join(uri, record.marker))
            storage.upload(Path(f"/dev/fd/{tar.fileno()}"), storage.join(uri, record.path))
            storage.write_bytes(storage.join(uri, record.index), index_data)
            storage.write_bytes(storage.join(uri, record.marker), canonical_json(marker))
    return record, refused


def shard_name(split: str, number: int) -> str:
    """Where a shard lies in its corpus, without the ending of its three files."""
    return f"shards/{split}-{number:05d}"


def _write_sample(tar: IO[bytes], digest: Any, sample: Sample) -> dict[str, Any]:
    if not _KEY.fullmatch(sample.key):
        raise ValueError(
            f"{sample.key!r} is no corpus key: use 1 to 100 ASCII letters, digits, '_' and '-'"
        )
    members = dict(sample.members)
    for name in members:
        if not _MEMBER.fullmatch(name):
            raise ValueError(f"{name!r} is no member name of the corpus format")
    members["json"] = canonical_json(sample.meta)
    placed = []
    for name in sorted(members):
        data = members[name]
        info = tarfile.TarInfo(f"{sample.key}.{name}")
        info.size, info.mtime, info.mode = len(data), 0, 0o644
        header = info.tobuf(tarfile.PAX_FORMAT)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        placed.append({"name": name, "offset": tar.tell() + len(header), "size": len(data)})
        for piece in (header, data, padding):
            tar.write(piece)
            digest.update(piece)
    meta = sample.meta
    return {
        "key": sample.key,
        "scene": meta["scene"],
        "classes": meta["classes"],
        "frames": meta["frames"],
        "mask_area": meta.get("mask_area"),
        "loudness_db": meta.get("loudness_db"),
        "members": placed,
    }


def read_markers(
    uri: str, names: Iterable[str]
) -> Iterator[tuple[str, ShardRecord, list[Refused]]]:
    """What ``write_shard`` gave, by shard name, for those whose markers stand and are sound."""
    wanted = list(names)
    uris = [storage.join(uri, f"{name}.json") for name in wanted]
    for name, data in zip(wanted, storage.read_many(uris, limit=_MARKER_LIMIT), strict=True):
        try:
            marker = json.loads(data or b"")
            refused = [Refused(**row) for row in marker.pop("refused")]
            record = ShardRecord(**marker, refused=len(refused))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if record.path == f"{name}.tar":
            yield name, record, refused
