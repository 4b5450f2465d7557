"""What a run does before its first batch: the manifest, the tables, the order of any step.

::

    python -m tests.benchmarks.loader

That one calls it. The index files are real, and there are no tars: none is read before that batch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.config import digest
from infra.corpus import Corpus, Sample, build_manifest, commit, write_shard
from training.data import FrameSamples
from training.order import epoch_order


def write_indices(folder: Path, shards: int, shard_samples: int) -> str:
    """All that a run reads before its first batch: a corpus without its tars."""
    uri, random = str(folder / "indices"), np.random.default_rng(0)

    def made() -> Iterator[Sample]:
        for number in range(shard_samples):
            sizes = random.integers([8_000, 300, 60_000], [40_000, 2_000, 120_000]).tolist()
            names = ("frame0.jpg", "mask0.png", "audio.flac")
            yield Sample(
                key=f"made-{number:09d}",
                members={name: bytes(size) for name, size in zip(names, sizes, strict=True)},
                meta={"scene": f"s{number}", "classes": ["bell"], "frames": 1},
            )

    first, _ = write_shard(uri, "train", 0, made(), plan="0")
    table = pq.read_table(f"{uri}/{first.index}")
    (folder / "indices" / first.path).unlink()
    records = []
    for shard in range(shards):
        # Keys of one length leave every member where it is in the first shard's tar.
        for column, kind in ((0, "made-{:09d}"), (1, "s{}")):
            places = range(shard * shard_samples, (shard + 1) * shard_samples)
            named = pa.array([kind.format(place) for place in places])
            table = table.set_column(column, table.column_names[column], named)
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue().to_pybytes()
        record = replace(
            first,
            path=f"shards/train-{shard:05d}.tar",
            sha256=digest(shard),
            index_bytes=len(data),
            index_sha256=hashlib.sha256(data).hexdigest(),
        )
        (folder / "indices" / record.index).write_bytes(data)
        records.append(record)
    manifest = build_manifest(
        kind="made", seed=0, recipe={}, sources={}, licences=[], shards=records, refused=[]
    )
    commit(uri, manifest)
    return uri


@contextmanager
def timed(what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  {what:<36} {cpu:8.2f} s of CPU {wall:8.2f} s of wall time", flush=True)


def resume(folder: Path, shards: int, shard_samples: int) -> None:
    """What a run does before its first batch, from the manifest to the order of any step."""
    uri, samples = write_indices(folder, shards, shard_samples), shards * shard_samples
    epoch_order.cache_clear()
    print(f"resume at any step of {samples:,} samples in {shards:,} shards, just written to a disk")
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
