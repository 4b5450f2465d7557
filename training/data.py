"""From a corpus to tensors: clips for evaluation, batches of single frames for training.

Every annotated frame is a training sample of its own, with its second of sound: frame k hears
VGGish example k (samples 15360 k to 15360 k + 15600 at 16 kHz); where the sound is too short, its
last example is heard again, as AVSBench does.

What a batch holds is a function of the corpus, the seed and the step alone. Each epoch is a
permutation of all samples drawn from (seed, epoch); the epochs follow each other without a gap,
and step s is the stretch from s * batch to (s + 1) * batch. Ranks take contiguous slices of it. So
no sample is lost or seen twice in an epoch, whatever the number of workers, and a run resumes at
any step without reading what came before.

Shapes: B samples, T frames, S side of the model's input, G = S/16 its grid, M = 96 mels of an
example, F = 64 mel bands, N sound samples, C classes, H x W pixels.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infra import media
from infra.corpus import Corpus, Sample
from infra.masks import decode_mask_rle
from model import log_mel_examples

EXAMPLE_SAMPLES = 15_600
EXAMPLE_HOP = 15_360
PATCH = 16
IGNORED_CELL = -100

IMAGE_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGE_SPREAD = np.array([0.229, 0.224, 0.225], np.float32)

_MASK_MEMBER = re.compile(r"mask(\d+)\.png")
_PREFETCHED_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Seeded changes of training samples; each is a function of (seed, epoch, sample)."""

    flip: float = 0.5
    """Share of samples mirrored left to right."""
    light: float = 0.2
    """Brightness and contrast are multiplied by 1 - light to 1 + light."""
    colour: float = 0.1
    """Each colour channel is multiplied by 1 - colour to 1 + colour."""
    gain: tuple[float, float] = (0.5, 1.5)
    """The sound is multiplied by a number between these."""
    noise: float = 0.003
    """Largest standard deviation of white noise added to the sound, of full scale 1."""
    shift: bool = True
    """Rotate the 0.975 s of sound by a random time."""
    silent_share: float = 0.1
    """Share of samples that hear nothing and have an empty mask."""

    def __post_init__(self) -> None:
        for name in ("flip", "light", "colour", "silent_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"augmentation.{name} must lie between 0 and 1, got {value}")
        if not 0.0 < self.gain[0] <= self.gain[1]:
            raise ValueError(f"augmentation.gain must be two rising positives, got {self.gain}")


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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training samples of one step, or a rank's share of them."""

    image_B3SS: Tensor
    log_mel_B1MF: Tensor
    mask_B1SS: Tensor
    """float32, 0 or 1."""
    class_BC: Tensor
    """Shares of the classes heard: a row sums to 1, or to 0 where nothing known is heard."""
    cell_BGG: Tensor
    """Class of the object at the centre of each grid cell, C for background, -100 unknown."""

    def __len__(self) -> int:
        return len(self.image_B3SS)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


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
            [normalise_image(_frame(sample, k), image_size) for k in range(count)]
        ),
        log_mel_T1MF=clip_log_mel(sample_sound(sample), count),
        masks=tuple(_mask(sample, k) for k in range(count)),
        meta=sample.meta,
    )


def load_sound(corpus: Corpus, split: str, row: int) -> np.ndarray:
    """The sound of a sample alone: float32 ``[N]`` at 16 kHz."""
    return sample_sound(corpus.read(split, row, names=["audio.flac", "audio.wav"]))


def normalise_image(image_HWC: np.ndarray, image_size: int) -> Tensor:
    """A uint8 ``[H, W, 3]`` picture as the model's input ``[3, S, S]``: squashed to a square."""
    image_SS3 = media.resize_image(image_HWC[..., :3], image_size, image_size)
    normal_SS3 = (image_SS3.astype(np.float32) / 255.0 - IMAGE_MEAN) / IMAGE_SPREAD
    return torch.from_numpy(np.ascontiguousarray(normal_SS3.transpose(2, 0, 1)))


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
    """``[1, 1, M, F]`` of one example's 15,600 samples."""
    return log_mel_examples(torch.from_numpy(window_N), media.SAMPLE_RATE)


def sample_sound(sample: Sample) -> np.ndarray:
    """float32 ``[N]`` at 16 kHz."""
    data = sample.members.get("audio.flac") or sample.members.get("audio.wav")
    if data is None:
        raise ValueError(f"{sample.key} has no sound: write the corpus again")
    wave_N, rate = media.decode_audio(data)
    return media.resample(wave_N, rate)


def _frame(sample: Sample, frame: int) -> np.ndarray:
    for suffix in ("jpg", "png"):
        data = sample.members.get(f"frame{frame}.{suffix}")
        if data is not None:
            return media.decode_image(data)
    raise ValueError(f"{sample.key} has no frame {frame}: write the corpus again")


def _mask(sample: Sample, frame: int) -> np.ndarray | None:
    data = sample.members.get(f"mask{frame}.png")
    return None if data is None else media.decode_mask(data)


def sample_order(
    *, samples: int, batch: int, seed: int, step: int, rank: int = 0, world: int = 1
) -> list[tuple[int, int]]:
    """``(epoch, sample)`` of each place that a rank fills in a step.

    Args:
        samples: in an epoch.
        batch: samples of a step over all ranks.
    """
    first, last = batch * rank // world, batch * (rank + 1) // world
    places = range(step * batch + first, step * batch + last)
    return [
        (place // samples, int(_epoch_order(samples, seed, place // samples)[place % samples]))
        for place in places
    ]


@lru_cache(maxsize=4)
def _epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(samples)


class FrameSamples:
    """The annotated frames of a split as training samples.

    Args:
        classes: names of the classes that the labels count; those of the corpus by default.
        augmentation: None leaves every sample as it is.

    Raises:
        ValueError: the split is not there, or no frame of it has a mask.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        *,
        image_size: int,
        seed: int,
        augmentation: Augmentation | None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.corpus = corpus
        self.split = split
        self.image_size = image_size
        self.seed = seed
        self.augmentation = augmentation
        self.classes = list(corpus.classes if classes is None else classes)
        self._class_index = {name: index for index, name in enumerate(self.classes)}
        self.places = _annotated_frames(corpus, split)
        if not self.places:
            raise ValueError(f"{corpus.uri} has no mask in its split {split!r}: nothing to learn")

    def __len__(self) -> int:
        return len(self.places)

    def load(self, order: Sequence[tuple[int, int]]) -> Batch:
        """The samples at ``(epoch, sample)`` places, as ``sample_order`` gives them."""
        loaded = [self._load_one(epoch, sample) for epoch, sample in order]
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*loaded, strict=True)]
        image_B3SS, window_BN, mask_B1SS, class_BC, cell_BGG = columns
        return Batch(
            image_B3SS=image_B3SS,
            log_mel_B1MF=torch.cat([example_log_mel(window_N.numpy()) for window_N in window_BN]),
            mask_B1SS=mask_B1SS,
            class_BC=class_BC,
            cell_BGG=cell_BGG,
        )

    def _load_one(self, epoch: int, index: int) -> tuple[np.ndarray, ...]:
        row, frame = self.places[index]
        names = [f"frame{frame}.jpg", f"frame{frame}.png", f"mask{frame}.png"]
        sample = self.corpus.read(self.split, row, names=[*names, "audio.flac", "audio.wav"])
        size = self.image_size
        image_SS3 = media.resize_image(_frame(sample, frame)[..., :3], size, size)
        pixels_SS3 = image_SS3.astype(np.float32) / 255.0
        mask_HW = _mask(sample, frame)
        assert mask_HW is not None
        mask_SS = _resize_mask(mask_HW, size).astype(np.float32)
        window_N = example_window(sample_sound(sample), frame)
        class_C = self._class_shares(sample.meta)
        cell_GG = self._cell_classes(sample.meta, frame)
        if self.augmentation is not None:
            random = np.random.default_rng([self.seed, epoch, index])
            change = self.augmentation
            if random.random() < change.flip:
                pixels_SS3, mask_SS, cell_GG = (
                    pixels_SS3[:, ::-1], mask_SS[:, ::-1], cell_GG[:, ::-1]
                )  # fmt: skip
            pixels_SS3 = _relight(pixels_SS3, change, random)
            if random.random() < change.silent_share:
                window_N, mask_SS, class_C = (
                    np.zeros_like(window_N), np.zeros_like(mask_SS), np.zeros_like(class_C)
                )  # fmt: skip
            else:
                window_N = _resound(window_N, change, random)
        normal_SS3 = (pixels_SS3 - IMAGE_MEAN) / IMAGE_SPREAD
        return (
            normal_SS3.transpose(2, 0, 1),
            window_N,
            mask_SS[None],
            class_C,
            cell_GG,
        )

    def _class_shares(self, meta: dict[str, Any]) -> np.ndarray:
        shares_C = np.zeros(len(self.classes), np.float32)
        known = [self._class_index[c] for c in meta["classes"] if c in self._class_index]
        shares_C[known] = 1.0 / max(len(known), 1)
        return shares_C

    def _cell_classes(self, meta: dict[str, Any], frame: int) -> np.ndarray:
        """Objects of unknown class count as background; without object masks nothing is known."""
        grid = self.image_size // PATCH
        if "objects" not in meta:
            return np.full((grid, grid), IGNORED_CELL, np.int64)
        cell_GG = np.full((grid, grid), len(self.classes), np.int64)
        for thing in meta["objects"][frame]:
            index = self._class_index.get(thing["class"])
            if index is None:
                continue
            visible_HW = decode_mask_rle(thing["visible"])
            rows, columns = (
                ((np.arange(grid) + 0.5) * side / grid).astype(int) for side in visible_HW.shape
            )
            cell_GG[visible_HW[np.ix_(rows, columns)]] = index
        return cell_GG


def _annotated_frames(corpus: Corpus, split: str) -> list[tuple[int, int]]:
    """``(row, frame)`` of every frame that has a mask."""
    names = corpus.table(split).column("members").to_pylist()
    places = []
    for row, members in enumerate(names):
        found = (_MASK_MEMBER.fullmatch(member["name"]) for member in members)
        places += sorted((row, int(match[1])) for match in found if match)
    return places


def _resize_mask(mask_HW: np.ndarray, size: int) -> np.ndarray:
    if mask_HW.shape == (size, size):
        return mask_HW
    picture = Image.fromarray(mask_HW.astype(np.uint8))
    return np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)).astype(bool)


def _relight(
    pixels_SS3: np.ndarray, change: Augmentation, random: np.random.Generator
) -> np.ndarray:
    # Plain floats and float32 arrays: a float64 scalar of numpy's would widen every pixel.
    contrast = float(random.uniform(1 - change.light, 1 + change.light))
    brightness = float(random.uniform(1 - change.light, 1 + change.light))
    tint_3 = random.uniform(1 - change.colour, 1 + change.colour, 3) * brightness
    mean = float(pixels_SS3.mean())
    scale_3 = (contrast * tint_3).astype(np.float32)
    offset_3 = ((1 - contrast) * mean * tint_3).astype(np.float32)
    return np.clip(pixels_SS3 * scale_3 + offset_3, 0.0, 1.0)


def _resound(window_N: np.ndarray, change: Augmentation, random: np.random.Generator) -> np.ndarray:
    if change.shift:
        window_N = np.roll(window_N, int(random.integers(len(window_N))))
    gain = float(random.uniform(*change.gain))
    spread = float(random.uniform(0.0, change.noise))
    noise_N = random.standard_normal(len(window_N), np.float32)
    return np.clip(gain * window_N + spread * noise_N, -1.0, 1.0)


def batches(
    samples: FrameSamples, *, batch: int, first: int, last: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """A rank's share of the steps ``first`` to ``last`` - 1, decoded ahead on another thread."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(first, last):
                order = sample_order(
                    samples=len(samples), batch=batch, seed=samples.seed, step=step,
                    rank=rank, world=world,
                )  # fmt: skip
                put(samples.load(order))
                if stopped.is_set():
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in range(first, last):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
