"""The loader against other readers of the same shards and files, and against the decoders alone.

::

    python -m tests.benchmarks.loader

One run, the same samples, the same decoders, one core a side; sides take turns. A sample is a
picture of 256 pixels (JPEG), its mask (PNG), 5 s of sound (FLAC) and metadata (JSON). Tensors are
the normalised picture, the mask and the log-mel of the frame's second; no side augments but in the
lines on worker processes, which tell both. CPU time is told beside wall time: on a busy machine
only the first compares.

The floors take bytes that lie in memory, with nothing else: ``decoders alone`` unpacks picture,
mask and all of the sound, sample by sample; ``same work`` makes the tensors of a batch with the
functions and in the order that the loader does, all pictures before all masks before all sounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.utils.data
import webdataset
from PIL import Image

from infra import media
from infra.commit import build_manifest, commit
from infra.corpus import Corpus, Sample, write_shard
from tests.benchmarks.first_batch import resume
from training.augmentation import Augmentation, normalise
from training.data import FrameSamples
from training.order import epoch_order
from training.prefetch import batches
from training.samples import (
    example_log_mel,
    normalise_image,
    read_frame,
    read_mask,
    resize_mask,
    sample_window,
)

SIZE = 256
BATCH = 32
NEEDED = 2_000.0
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def made_samples(count: int) -> Iterator[Sample]:
    """Pictures with detail, a disc as mask, and a chirp in noise: sizes as real ones have."""
    rows_HW, columns_HW = np.ogrid[:SIZE, :SIZE]
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (20, 20, 3)).astype(np.uint8))
        smooth_HW3 = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        image_HW3 = np.clip(smooth_HW3 + random.normal(0, 6, (SIZE, SIZE, 3)), 0, 255)
        y, x, radius = random.integers(60, 190, 3) * [1, 1, 0.5]
        times_N = np.arange(5 * media.SAMPLE_RATE) / media.SAMPLE_RATE
        wave_N = 0.3 * np.sin(2000 * times_N**1.2 + number) + random.normal(0, 0.02, len(times_N))
        yield Sample(
            key=f"made-{number:06d}",
            members={
                "frame0.jpg": media.encode_jpeg(image_HW3.astype(np.uint8), quality=92),
                "mask0.png": media.encode_png(
                    (rows_HW - y) ** 2 + (columns_HW - x) ** 2 < radius**2
                ),
                "audio.flac": media.encode_flac(wave_N.astype(np.float32)),
            },
            meta={"scene": f"s{number}", "classes": ["bell"], "frames": 1, "split": "train"},
        )


def write_corpus(folder: Path, count: int, shard_samples: int) -> Corpus:
    """The corpus, and the same members as loose files in ``folder/loose``."""
    loose, uri = folder / "loose", str(folder / "corpus")
    loose.mkdir()
    made = made_samples(count)
    records = []

    def kept(samples: int) -> Iterator[Sample]:
        for _, sample in zip(range(samples), made, strict=False):
            for name, data in sample.members.items():
                (loose / f"{sample.key}.{name}").write_bytes(data)
            yield sample

    for number in range(0, count, shard_samples):
        samples = min(shard_samples, count - number)
        records.append(
            write_shard(uri, "train", number // shard_samples, kept(samples), plan=str(number))[0]
        )
    manifest = build_manifest(
        kind="made", seed=0, recipe={}, sources={}, licences=[], shards=records, refused=[]
    )
    commit(uri, manifest)
    return Corpus.open(uri)


def tensors(members: dict[str, bytes]) -> Tensors:
    """What the peers make of the members of a sample."""
    sample = Sample(key="", members=members, meta={})
    mask_SS = resize_mask(media.decode_mask(members["mask0.png"]), SIZE)
    return (
        normalise_image(media.decode_image(members["frame0.jpg"]), SIZE),
        torch.from_numpy(mask_SS.astype(np.float32)[None]),
        example_log_mel(sample_window(sample, 0))[0],
    )


def same_work(samples: Sequence[Sample]) -> Tensors:
    """What the loader makes of the samples of a batch, one kind of work after the other."""
    image_B3SS = np.empty((len(samples), 3, SIZE, SIZE), np.float32)
    mask_B1SS = np.empty((len(samples), 1, SIZE, SIZE), np.float32)
    for image_3SS, sample in zip(image_B3SS, samples, strict=True):
        normalise(read_frame(sample, 0, SIZE), image_3SS)
    for mask_1SS, sample in zip(mask_B1SS, samples, strict=True):
        mask_HW = read_mask(sample, 0)
        assert mask_HW is not None
        mask_1SS[0] = resize_mask(mask_HW, SIZE)
    heard = [sample_window(sample, 0) for sample in samples]
    log_mel_B1MF = torch.cat([example_log_mel(window_N) for window_N in heard])
    return torch.from_numpy(image_B3SS), torch.from_numpy(mask_B1SS), log_mel_B1MF


def decoders_alone(samples: Sequence[Sample]) -> None:
    for sample in samples:
        media.decode_image(sample.members["frame0.jpg"])
        media.decode_mask(sample.members["mask0.png"])
        media.decode_audio(sample.members["audio.flac"])


class LooseFiles(torch.utils.data.Dataset[Tensors]):
    """Each member a file of its own, read at random."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self._folder, self._keys = folder, keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Tensors:
        members = {}
        for name in ("frame0.jpg", "mask0.png", "audio.flac"):
            members[name] = (self._folder / f"{self._keys[index]}.{name}").read_bytes()
        return tensors(members)


def forget(folder: Path) -> None:
    """Let the system drop its copies of these files from memory, if it will."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def take_turns(
    sides: dict[str, Callable[[], int]], turns: int, before: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Samples per CPU second of each side, the median of its turns; both times are printed."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        order = list(sides.items())
        for name, side in order if turn % 2 else order[::-1]:
            before()
            wall, cpu = time.perf_counter(), time.process_time()
            count = side()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            # The first turn fills caches.
            if turn or turns == 1:
                found[name].append((count / cpu, count / wall))
    rates = {}
    for name, pairs in found.items():
        by_cpu, by_wall = (statistics.median(column) for column in zip(*pairs, strict=True))
        rates[name] = by_cpu
        low, high = min(pairs)[0], max(pairs)[0]
        print(
            f"  {name:<36} {by_cpu:10.0f} samples/s of CPU ({low:.0f}-{high:.0f}) "
            f"{by_wall:10.0f} of wall time",
            flush=True,
        )
    return rates


def raw_records(corpus: Corpus, turns: int) -> None:
    count = len(corpus.table("train"))
    tars = [f"{corpus.uri}/{record.path}" for record in corpus.shards]
    order = epoch_order(count, 0, 0).tolist()

    def viewed() -> int:
        return sum(len(corpus.view("train", row)[1]) > 0 for row in order)

    def copied() -> int:
        return sum(len(corpus.read("train", row).members) > 0 for row in order)

    def theirs() -> int:
        return sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False))

    print("raw records, all members (ours at random, the other copies in its order)")
    rates = take_turns(
        {"ours, mapped": viewed, "ours, copied": copied, "webdataset": theirs}, turns
    )
    for ours in ("ours, mapped", "ours, copied"):
        print(f"  ratio of {ours}: {rates[ours] / rates['webdataset']:.1f}")


def to_tensors(corpus: Corpus, loose: Path, turns: int) -> None:
    count = len(corpus.table("train"))
    tars = [f"{corpus.uri}/{record.path}" for record in corpus.shards]
    samples = FrameSamples(corpus, "train", image_size=SIZE, seed=0, augmentation=None)
    steps = count // BATCH
    held = [corpus.read("train", row) for row in range(count)]
    keys = [corpus.index("train").key(row) for row in range(count)]
    made = samples.load([(0, row) for row in range(BATCH)])
    for left, right in zip(
        same_work(held[:BATCH]), (made.image_B3SS, made.mask_B1SS, made.log_mel_B1MF), strict=True
    ):
        assert torch.equal(left, right), "a floor of other work"

    def ours() -> int:
        for step in range(steps):
            samples.load(samples.order(step, batch=BATCH))
        return steps * BATCH

    def pipeline() -> int:
        reader = webdataset.WebDataset(tars, shardshuffle=False).map(tensors).batched(BATCH)
        return sum(len(batch[0]) for batch in reader)

    def files() -> int:
        loader = torch.utils.data.DataLoader(LooseFiles(loose, keys), BATCH, shuffle=True)
        return sum(len(batch[0]) for batch in loader)

    def floor(work: Callable[[Sequence[Sample]], object]) -> Callable[[], int]:
        def run() -> int:
            for first in range(0, count, BATCH):
                work(held[first : first + BATCH])
            return count

        return run

    sides = {"ours": ours, "webdataset pipeline": pipeline, "DataLoader over loose files": files}
    floors = {"floor: decoders alone": floor(decoders_alone), "floor: same work": floor(same_work)}
    print("samples to batches of tensors, warm")
    rates = take_turns({**sides, **floors}, turns)
    for name in floors:
        shares = (f"{side} {rates[side] / rates[name]:.0%}" for side in sides)
        print(f"  share of {name}: {', '.join(shares)}")
    per_core = rates["ours"]
    print(
        f"  {per_core:.0f} samples/s/core, handed to nobody: {NEEDED:.0f}/s need "
        f"{NEEDED / per_core:.1f} cores of 16"
    )
    held.clear()
    print("the same, cold (the system was asked to forget the files)")
    take_turns(sides, turns, before=lambda: forget(loose.parent))


def with_workers(corpus: Corpus, workers: int) -> None:
    """Wall time of all of the loader, and memory that each of its processes has for itself."""
    paces = []
    for augmentation in (None, Augmentation()):
        samples = FrameSamples(corpus, "train", image_size=SIZE, seed=0, augmentation=augmentation)
        steps = 4 * max(len(samples) // BATCH, 1)
        loader = batches(samples, batch=BATCH, first=0, last=steps, workers=workers)
        next(loader)
        started = time.perf_counter()
        seen = sum(len(batch) for batch in loader)
        paces.append(seen / (time.perf_counter() - started))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if workers else 0.0
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"  {workers} worker processes: {paces[0]:8.0f} samples/s of wall time, {paces[1]:.0f} "
        "with training's augmentation; "
        f"peak memory {own:.0f} MiB here, {children:.0f} MiB in the largest worker "
        "(shared pages counted in both)",
        flush=True,
    )


def seek(corpus: Corpus, turns: int) -> None:
    """To a random sample, against reading a tar up to it."""
    count = len(corpus.table("train"))
    rows = np.random.default_rng(1).integers(0, count, 20).tolist()
    tars = [f"{corpus.uri}/{record.path}" for record in corpus.shards]

    def ours() -> int:
        return sum(len(corpus.read("train", row).members) > 0 for row in rows)

    def up_to() -> int:
        for row in rows:
            reader = iter(webdataset.WebDataset(tars, shardshuffle=False))
            for _ in range(row + 1):
                next(reader)
        return len(rows)

    print(f"seek to a random one of {count} samples")
    rates = take_turns({"ours": ours, "reading up to it": up_to}, turns)
    print(f"  ratio {rates['ours'] / rates['reading up to it']:.0f}")


def sound(corpus: Corpus, turns: int) -> None:
    """The second that a frame needs, against all of the sound."""
    held = [corpus.read("train", row) for row in range(min(len(corpus.table("train")), 200))]

    def second() -> int:
        return sum(len(sample_window(sample, 2)) > 0 for sample in held)

    def whole() -> int:
        return sum(len(media.decode_audio(s.members["audio.flac"])[0]) > 0 for s in held)

    print("sound: one second of five")
    rates = take_turns({"the second": second, "all of it": whole}, turns)
    print(f"  ratio {rates['the second'] / rates['all of it']:.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--samples", type=int, default=2_048)
    options.add_argument("--shard-samples", type=int, default=256)
    options.add_argument("--turns", type=int, default=5, help="timed turns of each side")
    options.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--smoke", action="store_true", help="few samples: does it run at all")
    options.add_argument("--only-workers", nargs=2, metavar=("URI", "WORKERS"), help="internal")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.only_workers:
        uri, workers = chosen.only_workers
        return with_workers(Corpus.open(uri), int(workers))
    count, size, turns = chosen.samples, chosen.shard_samples, chosen.turns
    if chosen.smoke:
        count, size, turns = BATCH, 16, 1
    with tempfile.TemporaryDirectory(prefix="save-loader-") as name:
        folder = Path(name)
        corpus = write_corpus(folder, count, size)
        sizes = {k: len(v) for k, v in corpus.read("train", 0).members.items()}
        print(
            f"{date.today()}, {os.cpu_count()} cores, {count} samples of {json.dumps(sizes)} bytes"
        )
        raw_records(corpus, turns)
        to_tensors(corpus, folder / "loose", turns)
        seek(corpus, 1 if chosen.smoke else 3)
        sound(corpus, turns)
        resume(folder, 10 if chosen.smoke else 3_907, 256)
        print("the loader with worker processes")
        for workers in chosen.workers[:2] if chosen.smoke else chosen.workers:
            # A process of its own: peak memory is a process's, and never falls.
            code = [sys.executable, "-m", "tests.benchmarks.loader", "--only-workers"]
            subprocess.run([*code, corpus.uri, str(workers)], check=True)


if __name__ == "__main__":
    main()
