"""From the members of a sample to arrays: pictures, masks and the sound of each frame.

Frame k hears VGGish example k (samples 15360 k to 15360 k + 15600 at 16 kHz); where the sound is
too short, its last example is heard again, as AVSBench does.

Shapes: T frames, S side of the model's input, M = 96 mels of an example, F = 64 mel bands, N sound
samples, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infra import media
from infra.corpus import Corpus, Sample
from model import log_mel_examples
from training.augmentation import WHOLE, Part, normalise, pixels_of

EXAMPLE_SAMPLES = 15_600
EXAMPLE_HOP = 15_360

SOUND_NAMES = ("audio.flac", "audio.wav")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One sample of a corpus, whole."""

    key: str
    images_T3SS: Tensor
    """float32, normalised with ImageNet's mean and spread."""
    log_mel_T1MF: Tensor
    """float32, example k for frame k."""
    masks: tuple[np.ndarray | None, ...]
    """bool ``[H, W]`` at the size it was annotated in, None for a frame without annotation."""
    meta: dict[str, Any]


def load_clip(corpus: Corpus, split: str, row: int, image_size: int) -> Clip:
    """All frames of a sample with their sound, for evaluation.

    Args:
        row: of ``corpus.table(split)``.
        image_size: side of the model's input in pixels.
    """
    sample = corpus.read(split, row)
    count = int(sample.meta["frames"])
    return Clip(
        key=sample.key,
        images_T3SS=torch.stack(
            [normalise_image(read_frame(sample, k, image_size), image_size) for k in range(count)]
        ),
        log_mel_T1MF=clip_log_mel(sample_sound(sample), count),
        masks=tuple(read_mask(sample, k) for k in range(count)),
        meta=sample.meta,
    )


def load_sound(corpus: Corpus, split: str, row: int) -> np.ndarray:
    """The sound of a sample alone: float32 ``[N]`` at 16 kHz."""
    return sample_sound(corpus.read(split, row, names=SOUND_NAMES))


def frame_names(frame: int) -> list[str]:
    """The members that frame ``frame`` of a sample with a mask may need."""
    return [f"frame{frame}.jpg", f"frame{frame}.png", f"mask{frame}.png", *SOUND_NAMES]


def read_frame(sample: Sample, frame: int, size: int, part: Part = WHOLE) -> np.ndarray:
    """A frame, or a part of it, squashed to a square: uint8 ``[S, S, 3]``."""
    members = sample.members
    data = members.get(f"frame{frame}.jpg") or members.get(f"frame{frame}.png")
    if not data:
        raise ValueError(f"{sample.key} has no frame {frame}: write the corpus again")
    # Pillow's picture all the way: to an array and back costs as much as the resizing.
    with _naming(sample.key):
        image = media.load_image(data)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if part != WHOLE:
        rows, columns = pixels_of(part, image.height, image.width)
        image = image.crop((columns.start, rows.start, columns.stop, rows.stop))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def read_mask(sample: Sample, frame: int) -> np.ndarray | None:
    """The mask of a frame as bool ``[H, W]``, None where it is not annotated."""
    data = sample.members.get(f"mask{frame}.png")
    if data is None:
        return None
    with _naming(sample.key):
        return media.decode_mask(data)


def resize_mask(mask_HW: np.ndarray, size: int) -> np.ndarray:
    """bool ``[S, S]``, each pixel as the nearest one was."""
    if mask_HW.shape == (size, size):
        return mask_HW
    picture = Image.fromarray(mask_HW.astype(np.uint8))
    return np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)).astype(bool)


def normalise_image(image_HWC: np.ndarray, image_size: int) -> Tensor:
    """A uint8 ``[H, W, 3]`` picture as the model's input ``[3, S, S]``: squashed to a square."""
    normal_3SS = np.empty((3, image_size, image_size), np.float32)
    normalise(media.resize_image(image_HWC[..., :3], image_size, image_size), normal_3SS)
    return torch.from_numpy(normal_3SS)


def clip_log_mel(wave_N: np.ndarray, count: int) -> Tensor:
    """Log-mel examples 0 to ``count`` - 1 of a 16 kHz sound: ``[T, 1, M, F]``."""
    return torch.cat([example_log_mel(example_window(wave_N, k)) for k in range(count)])


def example_window(wave_N: np.ndarray, example: int) -> np.ndarray:
    """The 15,600 samples of an example, or of the last one that the sound has.

    A sound too short for any example is filled up with silence.
    """
    last = max((len(wave_N) - EXAMPLE_SAMPLES) // EXAMPLE_HOP, 0)
    start = min(example, last) * EXAMPLE_HOP
    window_N = np.zeros(EXAMPLE_SAMPLES, np.float32)
    heard_N = wave_N[start : start + EXAMPLE_SAMPLES]
    window_N[: len(heard_N)] = heard_N
    return window_N


def example_log_mel(window_N: np.ndarray) -> Tensor:
    """``[1, 1, M, F]`` of one example's 15,600 samples.

    One at a time: how a matrix product rounds may depend on its rows, and a rank's share of a batch
    must not.
    """
    return log_mel_examples(torch.from_numpy(window_N), media.SAMPLE_RATE)


def sample_sound(sample: Sample) -> np.ndarray:
    """float32 ``[N]`` at 16 kHz."""
    data = _sound_of(sample.key, sample.members)
    with _naming(sample.key):
        wave_N, rate = media.decode_audio(data)
    return media.resample(wave_N, rate)


def sample_window(sample: Sample, example: int) -> np.ndarray:
    """``example_window(sample_sound(sample), example)``, without decoding the rest of the sound."""
    data = _sound_of(sample.key, sample.members)
    start = example * EXAMPLE_HOP
    # In the middle of two samples, so that no rounding decides which are meant.
    seconds = (
        (start + 0.5) / media.SAMPLE_RATE,
        (start + EXAMPLE_SAMPLES - 0.5) / media.SAMPLE_RATE,
    )
    try:
        window_N, rate = media.decode_audio(data, seconds=seconds)
    except ValueError:
        # It ends before, or is damaged: decoding all of it tells.
        return example_window(sample_sound(sample), example)
    if rate == media.SAMPLE_RATE and len(window_N) == EXAMPLE_SAMPLES:
        return window_N
    return example_window(sample_sound(sample), example)


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Say of which sample it is that something cannot be decoded."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}: its shard is damaged, write the corpus again") from None


def _sound_of(key: str, members: Mapping[str, bytes]) -> bytes:
    for name in SOUND_NAMES:
        if members.get(name):
            return members[name]
    raise ValueError(f"{key} has no sound: write the corpus again")
