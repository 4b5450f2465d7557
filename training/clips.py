"""Annotated clips as a model meets them: their frames, their sound, or the sound of another.

Shapes: T frames, H x W pixels of the true masks, S the side of the model's input, M mels of a
frame (96), F mel bands (64), B frames of several clips in one batch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra import media
from infra.corpus import Corpus
from infra.masks import decode_mask_rle
from model import SAVE
from training.samples import clip_log_mel, load_clip, load_sound

Sound = Literal["own", "swapped", "silence"]
SOUNDS: tuple[Sound, ...] = ("own", "swapped", "silence")

# Frames of 256 x 256 in one forward pass; larger frames go in smaller batches.
FRAMES_PER_BATCH = 16
# Logit of a pixel that is certainly inside.
CERTAIN = 20.0


@dataclass(frozen=True, kw_only=True)
class AnnotatedClip:
    """Some frames of a clip, ready for the model, with their true masks."""

    row: int
    frames: list[int]
    images_T3SS: Tensor
    log_mel_T1MF: Tensor
    truth_THW: Tensor
    """bool, at the size it is stored in."""
    meta: dict[str, Any]


def load_annotated(
    model: SAVE, corpus: Corpus, split: str, row: int, *, first_only: bool = False
) -> AnnotatedClip:
    """The annotated frames of one clip, or the first of them."""
    clip = load_clip(corpus, split, row, model.config.image_size)
    truths = {k: mask_HW for k, mask_HW in enumerate(clip.masks) if mask_HW is not None}
    frames = list(truths)[:1] if first_only else list(truths)
    return AnnotatedClip(
        row=row,
        frames=frames,
        images_T3SS=clip.images_T3SS[frames],
        log_mel_T1MF=clip.log_mel_T1MF[frames],
        truth_THW=torch.from_numpy(np.stack([truths[k] for k in frames] or [np.zeros((1, 1))])),
        meta=clip.meta,
    )


def first_picture(corpus: Corpus, split: str, clip: AnnotatedClip) -> np.ndarray:
    """The first of the clip's annotated frames as it is stored, uint8 ``[h, w, 3]``."""
    names = [f"frame{clip.frames[0]}.{kind}" for kind in ("png", "jpg")]
    (data,) = corpus.read(split, clip.row, names=names).members.values()
    return media.decode_image(data)[..., :3]


def heard(corpus: Corpus, split: str, clip: AnnotatedClip, sound: Sound) -> Tensor:
    """The examples that are played to the clip's frames."""
    if sound == "own":
        return clip.log_mel_T1MF
    if sound == "silence":
        silence_11MF = clip_log_mel(np.zeros(0, np.float32), 1)
        return silence_11MF.expand(len(clip.frames), -1, -1, -1)
    wave_N = load_sound(corpus, split, swapped_row(corpus, split, clip.row))
    return clip_log_mel(wave_N, max(clip.frames) + 1)[clip.frames]


def chosen_rows(corpus: Corpus, split: str, limit: int | None) -> list[int]:
    """All rows, or ``limit`` of them spread evenly: neighbours are often of one class.

    Neighbours stay together in twos, since the two sounds of one scene are neighbours.
    """
    count = len(corpus.table(split))
    if limit is None or limit >= count:
        return list(range(count))
    twos = (limit + 1) // 2
    firsts = [number * (count // 2) // twos * 2 for number in range(twos)]
    return [row for first in firsts for row in (first, first + 1)][:limit]


def in_batches(model: SAVE, clips: Iterable[AnnotatedClip]) -> Iterator[list[AnnotatedClip]]:
    """Clips in groups whose frames fill one forward pass."""
    full = _frames_per_batch(model.config.image_size)
    batch: list[AnnotatedClip] = []
    for clip in clips:
        batch.append(clip)
        if sum(len(held.frames) for held in batch) >= full:
            yield batch
            batch = []
    if batch:
        yield batch


def _frames_per_batch(side: int) -> int:
    return max(1, FRAMES_PER_BATCH * 256**2 // side**2)


def forward(model: SAVE, images_B3SS: Tensor, log_mel_B1MF: Tensor) -> Tensor:
    """Logits at the model's size, float32 ``[B, S, S]`` on the CPU; batches of bounded size."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    size = _frames_per_batch(images_B3SS.shape[-1])
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logits = [
                model(image_B3SS.to(device), log_mel_b1MF.to(device))[:, 0].float().cpu()
                for image_B3SS, log_mel_b1MF in zip(
                    images_B3SS.split(size), log_mel_B1MF.split(size), strict=True
                )
            ]
    finally:
        model.train(training)
    return torch.cat(logits)


def resize_logits(logits_TSS: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(logits_TSS.shape[1:]) == tuple(size):
        return logits_TSS
    return F.interpolate(logits_TSS[:, None], tuple(size), mode="bilinear", align_corners=False)[
        :, 0
    ]


def can_swap(corpus: Corpus, split: str) -> bool:
    """Whether every clip of the split has one to swap sounds with."""
    try:
        for row in range(len(corpus.table(split))):
            swapped_row(corpus, split, row)
    except ValueError:
        return False
    return True


def swapped_row(corpus: Corpus, split: str, row: int) -> int:
    """The row whose sound stands in for that of ``row``: the same one every time.

    It is a clip in which none of this clip's sounding classes sounds. Where this clip shows a
    silent object, clips are preferred in which nothing but such an object sounds: a model that
    does not listen has no reason to give this one up. In a split that names no classes (MS3) it is
    any other clip.

    Raises:
        ValueError: every other clip sounds the same.
    """
    by_classes = _rows_by_classes(corpus, split)
    sample = corpus.read(split, row, names=[])
    sounding = set(sample.meta["classes"])
    things = itertools.chain.from_iterable(sample.meta.get("objects") or [])
    silent = {thing["class"] for thing in with_class(things)} - sounding
    others = {found: rows for found, rows in by_classes.items() if found and not sounding & found}
    preferred = {found: rows for found, rows in others.items() if found <= silent}
    if set(by_classes) == {frozenset()}:
        others = by_classes
    rows = sorted(r for found in (preferred or others).values() for r in found if r != row)
    if not rows:
        raise ValueError(
            f"no sound can be swapped in: in every other clip of {corpus.uri} {split} sounds what "
            f"sounds in {sample.key}"
        )
    number = int.from_bytes(hashlib.sha256(sample.key.encode()).digest()[:8], "big")
    return rows[number % len(rows)]


def with_class(things: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects that could sound; a silent distractor has no class."""
    return [thing for thing in things if thing.get("class")]


def visible_masks(things: Iterable[dict[str, Any]]) -> list[np.ndarray]:
    return [decode_mask_rle(thing["visible"]) for thing in things]


def certain_logits(mask_THW: np.ndarray) -> Tensor:
    """A mask as the logits of a model that has no doubt."""
    return (torch.from_numpy(mask_THW).float() * 2 - 1) * CERTAIN


@lru_cache(maxsize=8)
def _rows_by_classes(corpus: Corpus, split: str) -> dict[frozenset[str], list[int]]:
    rows: dict[frozenset[str], list[int]] = defaultdict(list)
    for row, classes in enumerate(corpus.table(split)["classes"].to_pylist()):
        rows[frozenset(classes)].append(row)
    return dict(rows)
