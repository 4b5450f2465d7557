"""A small made corpus for tests: coloured squares that each have a tone of their own.

Every scene shows two squares of different classes side by side on a grey ground. In train a scene
is one sample, every eighth of them silent with an empty mask; in every other split a scene is a
pair of samples, with the sound of either square. A class is a colour and a pitch, so the corpus
can be learned, and a fake model can read the answer out of it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping

import numpy as np

from infra import media
from infra.commit import build_manifest, commit
from infra.corpus import Corpus, Sample, write_shard
from infra.masks import encode_mask_rle

SAMPLES = {"train": 24, "val": 8, "test": 8}


def class_names(classes: int) -> list[str]:
    return [f"tone{number}" for number in range(classes)]


def colour(number: int, classes: int) -> np.ndarray:
    """uint8 ``[3]``: one hue a class."""
    return (np.array(colorsys.hsv_to_rgb(number / classes, 1.0, 1.0)) * 255).astype(np.uint8)


def pitch(number: int) -> float:
    """Hz: two thirds of an octave between neighbours."""
    return 250.0 * 2.0 ** (number * 2 / 3)


def tone(number: int, frames: int) -> np.ndarray:
    """float32 ``[N]``, as long as ``frames`` VGGish examples need."""
    times_N = np.arange(15360 * (frames - 1) + 15600) / media.SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * pitch(number) * times_N)).astype(np.float32)


def write_made_corpus(
    uri: str,
    *,
    samples: Mapping[str, int] | None = None,
    classes: int = 4,
    size: int = 64,
    frames: int = 1,
    shard_samples: int = 16,
    with_objects: bool = True,
    first_mask_only: bool = False,
    seed: int = 0,
) -> Corpus:
    """Write and open the corpus.

    Args:
        samples: samples of each split, even outside train; ``SAMPLES`` by default.
        with_objects: False leaves the object masks out of the metadata, as real footage has none.
        first_mask_only: annotate only the first frame of train, as AVSBench S4 does.
    """
    shards = []
    for split, count in (SAMPLES if samples is None else samples).items():
        made = list(_samples(split, count, classes, size, frames, seed))
        for sample in made:
            if not with_objects:
                del sample.meta["objects"]
            if first_mask_only and split == "train":
                for frame in range(1, frames):
                    del sample.members[f"mask{frame}.png"]
        for number, first in enumerate(range(0, count, shard_samples)):
            shard = made[first : first + shard_samples]
            record, _ = write_shard(uri, split, number, shard, plan=f"{seed}-{split}-{number}")
            shards.append(record)
    manifest = build_manifest(
        kind="made",
        seed=seed,
        recipe={"classes": classes, "size": size, "frames": frames},
        sources={"made": "0" * 64},
        licences=["CC0-1.0"],
        shards=shards,
        refused=[],
    )
    commit(uri, manifest)
    return Corpus.open(uri)


def _samples(
    split: str, count: int, classes: int, size: int, frames: int, seed: int
) -> Iterator[Sample]:
    names = class_names(classes)
    for index in range(count):
        paired = split != "train"
        scene = index // 2 if paired else index
        random = np.random.default_rng([seed, sum(split.encode()), scene])
        pair = random.permutation(classes)[:2]
        sounding = index % 2 if paired else int(random.integers(2))
        silent = not paired and index % 8 == 7
        members: dict[str, bytes] = {}
        objects = []
        ground_HWC = random.integers(90, 130, (size, size, 3)).astype(np.uint8)
        corners = [
            (int(random.integers(0, size - size // 3)), half * size // 2 + int(random.integers(6)))
            for half in range(2)
        ]
        for frame in range(frames):
            image_HWC = ground_HWC.copy()
            truth_HW = np.zeros((size, size), bool)
            shown = []
            for place, (number, (top, left)) in enumerate(zip(pair, corners, strict=True)):
                # One pixel down a frame, so that frames differ.
                visible_HW = np.zeros((size, size), bool)
                visible_HW[top + frame : top + frame + size // 3, left : left + size // 3] = True
                image_HWC[visible_HW] = colour(int(number), classes)
                sounds = place == sounding and not silent
                truth_HW |= visible_HW & sounds
                shown.append(
                    {
                        "class": names[number],
                        "asset": f"square-{names[number]}",
                        "sounding": sounds,
                        "visible": encode_mask_rle(visible_HW),
                    }
                )
            objects.append(shown)
            members[f"frame{frame}.png"] = media.encode_png(image_HWC)
            members[f"mask{frame}.png"] = media.encode_png(truth_HW)
        wave_N = tone(int(pair[sounding]), frames) * (0.0 if silent else 1.0)
        members["audio.flac"] = media.encode_flac(wave_N)
        meta = {
            "key": f"made-{split}-{index:05d}",
            "kind": "made",
            "split": split,
            "scene": f"{split}-{scene:05d}",
            "classes": [] if silent else [names[pair[sounding]]],
            "frames": frames,
            "objects": objects,
            "audio_seconds": len(wave_N) / media.SAMPLE_RATE,
            "sound": [] if silent else [f"tone-{names[pair[sounding]]}"],
        }
        yield Sample(key=meta["key"], members=members, meta=meta)
