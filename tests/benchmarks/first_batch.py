"""What a run does before its first batch: the manifest, the tables, the order of any step.

::

    python -m tests.benchmarks.loader

That one calls it. The index files are as a job writes them, and there are no tars: none is read
before that batch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.commit import build_manifest, commit, join_indexes
from infra.config import digest
from infra.corpus import Corpus, ShardRecord
from infra.shards import INDEX_SCHEMA
from training.data import FrameSamples
from training.order import epoch_order


def write_indices(folder: Path, shards: int, shard_samples: int) -> str:
    """All that a run reads before its first batch: a corpus without its tars."""
    uri, random = str(folder / "indices"), np.random.default_rng(0)
    (folder / "indices/shards").mkdir(parents=True)
    names, low, high = zip(
        ("audio.flac", 60_000, 120_000),
        ("frame0.jpg", 8_000, 40_000),
        ("json", 300, 900),
        ("mask0.png", 300, 2_000),
        strict=True,
    )
    members = shard_samples * len(names)
    firsts = np.arange(0, members + 1, len(names), dtype=np.int32)
    records = []
    for shard in range(shards):
        size_M = random.integers(low, high, (shard_samples, len(names))).ravel()
        end_M = np.cumsum(512 + (size_M + 511) // 512 * 512)
        offset_M = end_M - (size_M + 511) // 512 * 512
        places = range(shard * shard_samples, (shard + 1) * shard_samples)
        placed = pa.StructArray.from_arrays(
            [pa.array(names * shard_samples), pa.array(offset_M), pa.array(size_M)],
            ["name", "offset", "size"],
        )
        columns = [
            [f"made-{place:09d}" for place in places],
            [f"s{place}" for place in places],
            [["bell"]] * shard_samples,
            [1] * shard_samples,
            random.random(shard_samples),
            -60 * random.random(shard_samples),
            pa.ListArray.from_arrays(pa.array(firsts), placed),
        ]
        table = pa.table(dict(zip(INDEX_SCHEMA.names, columns, strict=True))).cast(INDEX_SCHEMA)
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue().to_pybytes()
        record = ShardRecord(
            path=f"shards/train-{shard:05d}.tar",
            split="train",
            samples=shard_samples,
            bytes=int(end_M[-1]) + 2 * 512,
            sha256=digest(shard),
            index_bytes=len(data),
            index_sha256=hashlib.sha256(data).hexdigest(),
            refused=0,
            plan="made",
            classes={"bell": shard_samples},
        )
        (folder / "indices" / record.index).write_bytes(data)
        records.append(record)
    manifest = build_manifest(
        kind="made", seed=0, recipe={}, sources={}, licences=[], shards=records, refused=[]
    )
    with timed("joining the indexes, by the job"):
        commit(uri, manifest, join_indexes(Corpus(uri, manifest, sha256="")))
    return uri


@contextmanager
def timed(what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  {what:<36} {cpu:8.2f} s of CPU {wall:8.2f} s of wall time", flush=True)


def resume(folder: Path, shards: int, shard_samples: int) -> None:
    """What a run does before its first batch, from the manifest to the order of any step."""
    samples = shards * shard_samples
    print(f"resume at any step of {samples:,} samples in {shards:,} shards, just written to a disk")
    uri = write_indices(folder, shards, shard_samples)
    epoch_order.cache_clear()
    with timed("all of it"):
        with timed("manifest"):
            corpus = Corpus.open(uri)
        with timed("tables, read and checked"):
            corpus.table("train")
        with timed("where every member lies"):
            corpus.index("train")
        with timed("every annotated frame"):
            frames = FrameSamples(corpus, "train", image_size=256, seed=0, augmentation=None)
        with timed("order of an epoch"):
            frames.order(3 * samples // 32 + 7, batch=32)
    assert len(frames) == samples
