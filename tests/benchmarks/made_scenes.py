"""Made photographs and sounds that are as much work as real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from infra import masks, media
from synth.tables import Annotation, Candidate

WIDTH, HEIGHT = 640, 480
CLASSES = ("cat", "cow", "dog", "sheep")


def made_candidates(folder: Path, *, photographs: int, clips: int) -> list[Candidate]:
    """Files below ``folder``, and what a source would offer of them."""
    found = [_photograph(folder, number) for number in range(photographs)]
    return found + [_sound(folder, number) for number in range(clips)]


def _photograph(folder: Path, number: int) -> Candidate:
    rng = np.random.default_rng((number, 0))
    image_HW3 = np.full((HEIGHT, WIDTH, 3), 120, np.float32)
    # What is twice as fine is half as strong, as in photographs.
    for octave in range(1, 9):
        coarse = rng.standard_normal((HEIGHT >> (8 - octave), WIDTH >> (8 - octave), 3))
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel].astype(np.float32))
            image_HW3[..., channel] += (
                120
                * 0.55**octave
                * np.asarray(layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
            )
    name = f"photographs/{number:06d}.jpg"
    _write(folder / name, media.encode_jpeg(image_HW3.clip(0, 255).astype(np.uint8), quality=90))
    kinds = [CLASSES[number % len(CLASSES)], *rng.choice(CLASSES, int(rng.integers(0, 5)))]
    marked = [
        Annotation(
            id=f"{number}-{k}",
            class_name=str(kind),
            segmentation=json.dumps(masks.encode_mask_rle(_blob(rng))),
        )
        for k, kind in enumerate(kinds)
    ]
    return Candidate(role="annotated", source="made", path=name, annotations=tuple(marked))


def _blob(rng: np.random.Generator) -> np.ndarray:
    """bool ``[H, W]``: an outline as rough as what people draw, some 300 characters when coded."""
    x, y = rng.uniform(160, WIDTH - 160), rng.uniform(120, HEIGHT - 120)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    angle_HW = np.arctan2(rows - y, columns - x)
    edge_HW = np.full((HEIGHT, WIDTH), rng.uniform(50, 110))
    for wave in range(1, 12):
        edge_HW += rng.uniform(0, 24) / wave * np.sin(wave * angle_HW + rng.uniform(0, math.tau))
    return np.hypot(rows - y, columns - x) < edge_HW


def _sound(folder: Path, number: int) -> Candidate:
    rng = np.random.default_rng((number, 1))
    rate = (44_100, 16_000)[number % 2]
    ending, encode = (("flac", media.encode_flac), ("wav", media.encode_wav))[number // 2 % 2]
    times_N = np.arange(10 * rate) / rate
    wave_N = 0.02 * rng.standard_normal(times_N.size)
    for overtone in range(1, 9):
        wave_N += 0.2 / overtone * np.sin(math.tau * overtone * rng.uniform(90, 900) * times_N)
    wave_N *= 0.15 + np.exp(-0.5 * (times_N - rng.uniform(1, 9)) ** 2)
    name = f"sounds/{number:06d}.{ending}"
    _write(folder / name, encode(wave_N.astype(np.float32), rate))
    # Not by the number's remainder, which decides the kind of file.
    kind = CLASSES[number // 4 % len(CLASSES)]
    return Candidate(role="sound", source="made", path=name, class_name=kind)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
