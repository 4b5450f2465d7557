"""Batches of single frames for training, in an order that depends on nothing but the seed.

Every annotated frame is a training sample of its own, with its second of sound. What a batch holds
is a function of the corpus, the seed and the step alone (``training.order``), whoever decodes it
and on how many cores.

Shapes: B samples, P training samples of an epoch, S side of the model's input, G = S/16 its grid,
M = 96 mels of an example, F = 64 mel bands, N sound samples, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from infra.corpus import Corpus, Sample
from infra.masks import sample_mask_rle
from training.augmentation import (
    Augmentation,
    Drawn,
    crop,
    draw,
    normalise,
    pixels_of,
    relight,
    resound,
    sound_draw,
)
from training.batch import IGNORED_CELL, Batch
from training.order import Window, sample_order
from training.samples import (
    EXAMPLE_SAMPLES,
    SOUND_NAMES,
    example_log_mel,
    frame_names,
    read_frame,
    read_mask,
    resize_mask,
    sample_window,
)

PATCH = 16

_MASK_MEMBER = re.compile(r"mask(\d+)\.png")
# Samples with a sound off screen too are not told by the index: another is drawn.
_SOUND_DRAWS = 16

Place = tuple[int, int]
"""``(epoch, sample)``, as ``sample_order`` gives them."""


class FrameSamples:
    """The annotated frames of a split as training samples.

    Args:
        classes: names of the classes that the labels count; those of the corpus by default.
        augmentation: None leaves every sample as it is.
        window: shards within which samples are shuffled, see ``training.order``; None shuffles
            all of them.
        rows: of the split's table, all that is learned from; None learns from all of it.

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
        window: int | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.corpus = corpus
        self.split = split
        self.image_size = image_size
        self.seed = seed
        self.augmentation = augmentation
        self.classes = list(corpus.classes if classes is None else classes)
        self._class_index = {name: index for index, name in enumerate(self.classes)}
        self._rows = rows
        self.places_P2 = _annotated_frames(corpus, split)
        """Row in the split's table and frame, int32."""
        if rows is not None:
            self.places_P2 = self.places_P2[np.isin(self.places_P2[:, 0], rows)]
        if not len(self.places_P2):
            raise ValueError(f"{corpus.uri} has no mask in its split {split!r}: nothing to learn")
        self.window: Window | None = None
        if window is not None:
            ends = np.cumsum(corpus.shard_sizes(split))
            samples = np.diff(np.searchsorted(self.places_P2[:, 0], ends), prepend=0)
            self.window = Window(shards=window, sizes=tuple(samples.tolist()))

    def __len__(self) -> int:
        return len(self.places_P2)

    def order(self, step: int, *, batch: int, rank: int = 0, world: int = 1) -> list[Place]:
        """The places that a rank fills in a step."""
        return sample_order(
            samples=len(self),
            batch=batch,
            seed=self.seed,
            step=step,
            rank=rank,
            world=world,
            window=self.window,
        )

    def load(self, order: Sequence[Place]) -> Batch:
        """The samples at some places."""
        size, grid = self.image_size, self.image_size // PATCH
        image_B3SS = np.empty((len(order), 3, size, size), np.float32)
        mask_B1SS = np.zeros((len(order), 1, size, size), np.float32)
        class_BC = np.zeros((len(order), len(self.classes)), np.float32)
        cell_BGG = np.empty((len(order), grid, grid), np.int64)
        samples = [self._take(epoch, index) for epoch, index in order]
        # One kind of work after the other: what a decoder needs then stays in the processor's cache
        # for all of the batch.
        for image_3SS, taken in zip(image_B3SS, samples, strict=True):
            self._write_image(taken, image_3SS)
        for number, taken in enumerate(samples):
            cell_BGG[number] = self._cell_classes(taken)
            if not taken.drawn.silent:
                mask_B1SS[number, 0] = self._mask(taken)
                class_BC[number] = self._class_shares(taken.sample.meta)
        heard = [self._heard_second(taken) for taken in samples]
        return Batch(
            image_B3SS=torch.from_numpy(image_B3SS),
            log_mel_B1MF=torch.cat([example_log_mel(window_N) for window_N in heard]),
            mask_B1SS=torch.from_numpy(mask_B1SS),
            class_BC=torch.from_numpy(class_BC),
            cell_BGG=torch.from_numpy(cell_BGG),
        )

    def _take(self, epoch: int, index: int) -> _Taken:
        """Read a sample, and draw how it is changed."""
        row, frame = self.places_P2[index].tolist()
        sample = self.corpus.read(self.split, row, names=frame_names(frame))
        change = self.augmentation
        drawn = Drawn() if change is None else draw(change, self.seed, epoch, index)
        return _Taken(epoch, index, frame, sample, drawn)

    def _write_image(self, taken: _Taken, out_3SS: np.ndarray) -> None:
        image_SS3 = read_frame(taken.sample, taken.frame, self.image_size, taken.drawn.part)
        if taken.drawn.flip:
            image_SS3 = image_SS3[:, ::-1]
        if taken.drawn.light is None:
            normalise(image_SS3, out_3SS)
        else:
            relight(image_SS3, taken.drawn.light, out_3SS)

    def _mask(self, taken: _Taken) -> np.ndarray:
        mask_HW = read_mask(taken.sample, taken.frame)
        assert mask_HW is not None
        mask_SS = resize_mask(crop(mask_HW, taken.drawn.part), self.image_size)
        return mask_SS[:, ::-1] if taken.drawn.flip else mask_SS

    def _heard_second(self, taken: _Taken) -> np.ndarray:
        """The sound that is heard, changed as it was drawn; each call draws its noise anew."""
        change, random = self.augmentation, taken.drawn.random
        if taken.drawn.silent:
            return np.zeros(EXAMPLE_SAMPLES, np.float32)
        if change is None:
            return sample_window(taken.sample, taken.frame)
        assert random is not None, "drawn with an augmentation"
        heard = self._heard(taken, change)
        return resound(sample_window(heard, taken.frame), change, random)

    def _heard(self, taken: _Taken, change: Augmentation) -> Sample:
        """The sample whose sound is heard: this one, or one drawn for the epoch."""
        if change.redraw_sound and _sounds_alone(taken.sample):
            rows = self._rows_alone[taken.sample.meta["classes"][0]]
            random = sound_draw(self.seed, taken.epoch, taken.index)
            for _ in range(_SOUND_DRAWS):
                row = int(rows[random.integers(len(rows))])
                other = self.corpus.read(self.split, row, names=SOUND_NAMES)
                if _sounds_alone(other):
                    return other
        return taken.sample

    @cached_property
    def _rows_alone(self) -> dict[str, np.ndarray]:
        """The rows in which one class sounds, by that class."""
        classes = self.corpus.table(self.split)["classes"].combine_chunks()
        first_R = classes.offsets.to_numpy()
        alone = np.flatnonzero(np.diff(first_R) == 1)
        if self._rows is not None:
            alone = np.intersect1d(alone, self._rows)
        named = classes.flatten().take(first_R[alone] - first_R[0]).dictionary_encode()
        code = named.indices.to_numpy()
        return {name: alone[code == n] for n, name in enumerate(named.dictionary.to_pylist())}

    def _class_shares(self, meta: dict[str, Any]) -> np.ndarray:
        shares_C = np.zeros(len(self.classes), np.float32)
        known = [self._class_index[c] for c in meta["classes"] if c in self._class_index]
        shares_C[known] = 1.0 / max(len(known), 1)
        return shares_C

    def _cell_classes(self, taken: _Taken) -> np.ndarray:
        """Objects of unknown class count as background; without object masks nothing is known."""
        grid, meta = self.image_size // PATCH, taken.sample.meta
        if "objects" not in meta:
            return np.full((grid, grid), IGNORED_CELL, np.int64)
        cell_GG = np.full((grid, grid), len(self.classes), np.int64)
        for thing in meta["objects"][taken.frame]:
            index = self._class_index.get(thing["class"])
            if index is None:
                continue
            visible = thing["visible"]
            rows, columns = (
                shown.start
                + ((np.arange(grid) + 0.5) * (shown.stop - shown.start) / grid).astype(int)
                for shown in pixels_of(taken.drawn.part, *visible["size"])
            )
            cell_GG[sample_mask_rle(visible, rows, columns)] = index
        return cell_GG[:, ::-1] if taken.drawn.flip else cell_GG


@dataclass(frozen=True)
class _Taken:
    """A training sample on its way into a batch."""

    epoch: int
    index: int
    frame: int
    sample: Sample
    drawn: Drawn


def _sounds_alone(sample: Sample) -> bool:
    return len(sample.meta["classes"]) == 1 and not sample.meta.get("off_screen")


def _annotated_frames(corpus: Corpus, split: str) -> np.ndarray:
    """Row and frame of every frame that has a mask: int32 ``[P, 2]``, sorted."""
    index = corpus.index(split)
    found = [_MASK_MEMBER.fullmatch(name) for name in index.names]
    frame_K = np.array([int(match[1]) if match else -1 for match in found], np.int32)
    member_P = np.flatnonzero((frame_K >= 0)[index.code_M])
    row_P = np.searchsorted(index.first_R, member_P, side="right").astype(np.int32) - 1
    places_P2 = np.stack([row_P, frame_K[index.code_M[member_P]]], 1)
    # Names are sorted as text: mask10 comes before mask2.
    return places_P2[np.lexsort((places_P2[:, 1], places_P2[:, 0]))]
