"""Seeded changes of training samples: picture, mask, labels and sound.

Shapes: S side of the model's input, N sound samples, H x W pixels, C channels if any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

IMAGE_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGE_SPREAD = np.array([0.229, 0.224, 0.225], np.float32)
_WHITE = np.float32(255)
_BYTES = np.arange(256, dtype=np.float32)

_LARGEST_SCALE = 8.0

# What was added later draws from generators of its own, so that runs without it stay as they were.
_CROP, _SOUND = 1, 2


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Seeded changes of training samples; each is a function of (seed, epoch, sample)."""

    flip: float = 0.5
    """Share of samples mirrored left to right."""
    light: float = 0.2
    """Brightness and contrast are multiplied by 1 - light to 1 + light."""
    colour: float = 0.1
    """Each colour channel is multiplied by 1 - colour to 1 + colour."""
    scale: float = 1.0
    """Largest enlargement, of a part of the picture chosen at random; 1 keeps it whole."""
    gain: tuple[float, float] = (0.5, 1.5)
    """The sound is multiplied by a number between these."""
    noise: float = 0.003
    """Largest standard deviation of white noise added to the sound, of full scale 1."""
    shift: bool = True
    """Rotate the 0.975 s of sound by a random time."""
    silent_share: float = 0.1
    """Share of samples that hear nothing and have an empty mask."""
    redraw_sound: bool = False
    """Where one class sounds and nothing else, hear in each epoch a sample of the split that is
    drawn anew from those in which the same class sounds alone. For synthetic corpora, whose sound
    was paired with its picture by class in the first place."""

    def __post_init__(self) -> None:
        for name in ("flip", "light", "colour", "silent_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"augmentation.{name} must lie between 0 and 1, got {value}")
        if not 1.0 <= self.scale <= _LARGEST_SCALE:
            raise ValueError(
                f"augmentation.scale must lie between 1 and {_LARGEST_SCALE:.0f}, got {self.scale}"
            )
        if not 0.0 <= self.noise <= 1.0:
            raise ValueError(f"augmentation.noise must lie between 0 and 1, got {self.noise}")
        if not 0.0 < self.gain[0] <= self.gain[1] < math.inf:
            raise ValueError(f"augmentation.gain must be two rising positives, got {self.gain}")


Part = tuple[float, float, float]
"""Top, left and side of a part of a picture, as shares of its height and width."""
WHOLE: Part = (0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Light:
    """Another light: the contrast around the picture's mean, then a factor for each channel."""

    contrast: float
    tint_3: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for one training sample; nothing is changed by default."""

    part: Part = WHOLE
    flip: bool = False
    light: Light | None = None
    silent: bool = False
    random: np.random.Generator | None = None
    """Draws how its sound is changed."""


def draw(change: Augmentation, seed: int, epoch: int, sample: int) -> Drawn:
    """How a training sample is changed in an epoch."""
    random = np.random.default_rng([seed, epoch, sample])
    flip = bool(random.random() < change.flip)
    # A plain float: a float64 scalar of numpy's would widen every pixel.
    contrast = float(random.uniform(1 - change.light, 1 + change.light))
    brightness = float(random.uniform(1 - change.light, 1 + change.light))
    tint_3 = random.uniform(1 - change.colour, 1 + change.colour, 3) * brightness
    return Drawn(
        part=_draw_part(change.scale, seed, epoch, sample),
        flip=flip,
        light=Light(contrast=contrast, tint_3=tint_3),
        silent=bool(random.random() < change.silent_share),
        random=random,
    )


def _draw_part(scale: float, seed: int, epoch: int, sample: int) -> Part:
    if scale == 1.0:
        return WHOLE
    random = np.random.default_rng([seed, epoch, sample, _CROP])
    side = 1.0 / float(random.uniform(1.0, scale))
    top, left = (float(n) for n in random.uniform(0.0, 1.0 - side, 2))
    return top, left, side


def crop(array_HWC: np.ndarray, part: Part) -> np.ndarray:
    """That part of a picture or mask, to whole pixels."""
    if part == WHOLE:
        return array_HWC
    return array_HWC[pixels_of(part, array_HWC.shape[0], array_HWC.shape[1])]


def pixels_of(part: Part, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of that part, at least one of each."""
    top, left, side = part
    return _pixels(top, side, height), _pixels(left, side, width)


def _pixels(start: float, side: float, length: int) -> slice:
    first = min(round(start * length), length - 1)
    return slice(first, max(round((start + side) * length), first + 1))


def sound_draw(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """What decides whose sound a sample hears in an epoch."""
    return np.random.default_rng([seed, epoch, sample, _SOUND])


def normalise(image_SS3: np.ndarray, out_3SS: np.ndarray) -> None:
    """Write a uint8 picture as the model's input: float32, ImageNet's mean and spread."""
    for channel, plane_SS in enumerate(out_3SS):
        # One channel at a time stays in the processor's cache from the first pass to the last.
        np.divide(image_SS3[..., channel], _WHITE, out=plane_SS)
        plane_SS -= IMAGE_MEAN[channel]
        plane_SS /= IMAGE_SPREAD[channel]


def relight(image_SS3: np.ndarray, light: Light, out_3SS: np.ndarray) -> None:
    """``normalise`` in another light."""
    # A sum's rounding depends on its order: a mirrored picture is summed up as a mirrored one.
    mean = float(np.divide(image_SS3, _WHITE, dtype=np.float32).mean())
    scale_3 = (light.contrast * light.tint_3).astype(np.float32)
    offset_3 = ((1 - light.contrast) * mean * light.tint_3).astype(np.float32)
    for channel, plane_SS in enumerate(out_3SS):
        # There are 256 different values: they are changed once each, and looked up for the pixels.
        value_K = _BYTES / _WHITE * scale_3[channel] + offset_3[channel]
        value_K = (np.clip(value_K, 0.0, 1.0) - IMAGE_MEAN[channel]) / IMAGE_SPREAD[channel]
        # No byte is out of bounds; but to find that out, "raise" would work on a copy.
        np.take(value_K, image_SS3[..., channel], out=plane_SS, mode="clip")


def resound(window_N: np.ndarray, change: Augmentation, random: np.random.Generator) -> np.ndarray:
    """The sound shifted, louder or softer, and with noise."""
    if change.shift:
        window_N = np.roll(window_N, int(random.integers(len(window_N))))
    gain = float(random.uniform(*change.gain))
    spread = float(random.uniform(0.0, change.noise))
    changed_N = random.standard_normal(len(window_N), np.float32)
    changed_N *= spread
    changed_N += gain * window_N
    return np.clip(changed_N, -1.0, 1.0, out=changed_N)
