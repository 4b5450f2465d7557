"""Seconds and memory from a catalog of a million objects to a shard's plan.

::

    python -m tests.benchmarks.planning

Writes a catalog of made columns (no media), of which a process of its own reads, selects, deals
out and plans what ``pipelines/synthesize.py`` does before the first sample is rendered. Masks are
as long as COCO's, and as hard to compress.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from infra import masks
from synth.catalog import Catalog
from synth.plan import plan_digest, plan_sample, plan_shards
from synth.pools import select, split_assets
from synth.recipe import Recipe, Samples
from synth.rows import Rows, schema
from synth.tables import MEDIA, Background, Clip, Object, Photo, Refused

T = TypeVar("T")

CLASSES = 100
MASK_LENGTH = 300
WIDTH, HEIGHT = 640, 480
_URL_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def recipe_of(samples: int) -> Recipe:
    """Natural scenes as in ``pipelines/recipes/natural.yaml``, of so many samples."""
    tenth = samples // 20
    return Recipe(
        scenes="natural",
        samples=Samples(train=samples - 2 * tenth, val=tenth, test=tenth, unseen=0),
        order="classes",
        crop=(0.6, 1.0),
        min_mask_area=0.005,
        off_screen=0.05,
        stretch="loudest",
    )


def made_catalog(objects: int, photographs: int, clips: int) -> Catalog:
    """Columns like those of LVIS and VGGSound; the files that they speak of do not exist."""
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "objects": Rows(Object, _objects(rng, objects, photographs)),
        "clips": Rows(Clip, _clips(rng, clips)),
    }
    for name, kind in (
        ("backgrounds", Background),
        ("silent", Object),
        ("photos", Photo),
        ("refused", Refused),
    ):
        parts[name] = Rows.of(kind, [])
    return Catalog(roots={MEDIA: "/made", "lvis": "/made/lvis", "vggsound": "/made/vgg"}, **parts)


def _objects(rng: np.random.Generator, count: int, photographs: int) -> pa.Table:
    photograph = np.sort(rng.integers(0, photographs, count))
    left, top = rng.integers(0, WIDTH - 80, count), rng.integers(0, HEIGHT - 80, count)
    right = left + rng.integers(20, WIDTH - left)
    bottom = top + rng.integers(20, HEIGHT - top)
    absent = ["|".join(_class(int(c)) for c in rng.integers(0, CLASSES, 4)) for _ in range(2000)]
    columns = {
        "id": pa.array([f"lvis:{number:08d}" for number in range(count)]),
        "class_name": _classes(rng, count),
        "uri": _coded(photograph, [f"lvis:train2017/{n:012d}.jpg" for n in range(photographs)]),
        "source": _coded(np.zeros(count, int), ["lvis"]),
        "licence": _coded(photograph % 8, [f"Licence {n} of Flickr" for n in range(8)]),
        "author": _coded(np.zeros(count, int), [""]),
        "origin": _coded(
            photograph, [f"http://farm.example.com/{n:012d}_o.jpg" for n in range(photographs)]
        ),
        "width": np.full(count, WIDTH),
        "height": np.full(count, HEIGHT),
        "left": left,
        "top": top,
        "right": right,
        "bottom": bottom,
        "mask_fraction": 0.6 * (right - left) * (bottom - top) / (WIDTH * HEIGHT),
        "mask": _mask_texts(rng, count),
        "crowd": rng.random(count) < 0.01,
        "partial": rng.random(count) < 0.02,
        "absent": _coded(photograph % len(absent), absent),
        "picture": _coded(photograph, _drawn(rng, photographs, 64, b"0123456789abcdef")),
        "sha256": _drawn(rng, count, 64, b"0123456789abcdef"),
        "file_sha256": _coded(photograph, _drawn(rng, photographs, 64, b"0123456789abcdef")),
    }
    return _table(Object, columns)


def _clips(rng: np.random.Generator, count: int) -> pa.Table:
    each = np.arange(count)
    videos = _drawn(rng, count, 11, _URL_SAFE)
    columns = {
        "id": pa.array([f"vggsound:{number:08d}" for number in each]),
        "class_name": _classes(rng, count),
        "uri": _coded(each, [f"vggsound:{video}_000030.flac" for video in videos.to_pylist()]),
        "source": _coded(np.zeros(count, int), ["vggsound"]),
        "licence": _coded(np.zeros(count, int), ["CC BY 4.0"]),
        "author": _coded(np.zeros(count, int), [""]),
        "origin": _coded(each, [f"https://youtu.be/{video}" for video in videos.to_pylist()]),
        "video": _coded(each, videos),
        "recording": [""] * count,
        "seconds": np.full(count, 10.0),
        "loudest": rng.integers(0, 90, count) / 10,
        "rate": np.full(count, 44_100),
        "rms": rng.random(count),
        "peak": rng.random(count),
        "sha256": _drawn(rng, count, 64, b"0123456789abcdef"),
        "file_sha256": _coded(each, _drawn(rng, count, 64, b"0123456789abcdef")),
    }
    return _table(Clip, columns)


def _table(row_type: type[Any], columns: dict[str, Any]) -> pa.Table:
    return pa.table(columns).cast(schema(row_type))


def _class(number: int) -> str:
    return f"class_{number:02d}"


def _classes(rng: np.random.Generator, count: int) -> pa.DictionaryArray:
    """As in LVIS a few classes have most objects."""
    shares = 1 / np.arange(1, CLASSES + 1)
    kinds = rng.choice(CLASSES, count, p=shares / shares.sum())
    return _coded(kinds, [_class(number) for number in range(CLASSES)])


def _coded(codes: np.ndarray, values: Any) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(values))


def _drawn(rng: np.random.Generator, count: int, length: int, letters: bytes) -> pa.Array:
    """Strings of ``length`` random letters."""
    known = np.frombuffer(letters, np.uint8)
    return _strings(np.full(count, length), known[rng.integers(0, len(known), count * length)])


def _strings(lengths: np.ndarray, letters: np.ndarray) -> pa.Array:
    """The strings that follow each other in ``letters``."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(letters))


def _mask_texts(rng: np.random.Generator, count: int) -> pa.Array:
    """Strings of the lengths and letters that coded masks have; no mask is meant."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    angle = np.arctan2(rows - HEIGHT / 2, columns - WIDTH / 2)
    edge = 120 + sum(rng.uniform(2, 40) / k * np.sin(k * angle + k * k) for k in range(1, 30))
    mask_HW = np.hypot(rows - HEIGHT / 2, columns - WIDTH / 2) < edge
    real = np.frombuffer(masks.encode_mask_rle(mask_HW)["counts"].encode(), np.uint8)
    lengths = np.maximum(8, rng.lognormal(np.log(MASK_LENGTH) - 0.32, 0.8, count)).astype(np.int64)
    return _strings(lengths, real[rng.integers(0, len(real), lengths.sum(), dtype=np.uint16)])


def plan(uri: str, samples: int) -> None:
    """Read and plan, and print how long each part takes and the peak memory of this process."""
    recipe = recipe_of(samples)
    began = time.perf_counter()
    catalog = _timed("read and check", lambda: Catalog.read(uri))
    chosen = _timed("select", lambda: select(catalog, recipe))
    pools = _timed("split", lambda: split_assets(chosen.catalog, recipe))

    def digests() -> list[str]:
        return [
            plan_digest(shard, sources=chosen.sources, recipe=recipe, seed=0)
            for shard in plan_shards(recipe)
        ]

    shards = _timed("digests of all shards", digests)

    def first() -> None:
        for number in range(min(recipe.samples_per_shard, samples)):
            plan_sample(pools["train"], recipe, seed=0, split="train", number=number)

    _timed("samples of one shard", first)
    print(
        f"{'together':<24}{time.perf_counter() - began:8.2f} s, peak {_peak():.2f} GiB, "
        f"{len(shards)} shards",
        flush=True,
    )


def _timed(label: str, call: Callable[[], T]) -> T:
    started, before = time.perf_counter(), time.process_time()
    result = call()
    print(
        f"{label:<24}{time.perf_counter() - started:8.2f} s"
        f"{time.process_time() - before:8.2f} s of CPU   peak so far {_peak():.2f} GiB",
        flush=True,
    )
    return result


def _peak() -> float:
    """GiB of main memory at most of this process so far."""
    # Not getrusage: what it tells of a new process begins with what its parent had.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000, help="marked in photographs")
    parser.add_argument("--photographs", type=int, default=200_000, help="that they are in")
    parser.add_argument("--clips", type=int, default=200_000, help="sounds, each of its own video")
    parser.add_argument("--smoke", action="store_true", help="few rows: does it run at all")
    parser.add_argument("--catalog", help="plan with the one that stands there, in this process")
    options = parser.parse_args()
    if options.catalog:
        plan(options.catalog, options.objects)
        return
    sizes = (options.objects, options.photographs, options.clips)
    objects, photographs, clips = (20_000, 4_000, 4_000) if options.smoke else sizes
    print(
        f"{date.today()}, {objects} objects in {photographs} photographs, {clips} clips", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="save-planning-") as folder:
        catalog = made_catalog(objects, photographs, clips)
        _timed("write", lambda: catalog.write(folder))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{size / 1e6:.0f} MB of Parquet; then in a process of its own:", flush=True)
        module = ["-m", "tests.benchmarks.planning"]
        command = [sys.executable, *module, "--catalog", folder, "--objects", str(objects)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
