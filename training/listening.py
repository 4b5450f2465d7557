"""Whether a model listens: two objects in a picture, and the sound of one of them.

Shapes: S the side of the model's input, M mels of a frame (96), F mel bands (64), B samples in one
batch, H x W pixels of the true masks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.corpus import Corpus, Sample
from model import SAVE
from training.clips import (
    certain_logits,
    chosen_rows,
    forward,
    heard,
    in_batches,
    load_annotated,
    resize_logits,
    visible_masks,
    with_class,
)
from training.metrics import jaccard


def listening(
    model: SAVE, corpus: Corpus, split: str, *, limit: int | None = None
) -> dict[str, float] | None:
    """Whether the mask follows the sound where two objects stand in the first frame.

    Only samples count whose first frame shows exactly two objects with a class, exactly one of
    them sounding.

    Returns:
        None where the split has no such sample, else ``samples``; ``m_j`` of the sounding object;
        ``m_j_sound_blind``, that of the mask of both; ``picked_right``, the share whose mask
        overlaps the sounding object more than the silent one (IoU; empty or tied is wrong);
        ``scenes``, pairs of samples with one picture and the sound of either object;
        ``flips``, the share of the scenes in which both are picked right (0 without scenes);
        ``silence_empty``, the share whose mask has no pixel when nothing is heard.
    """
    answers: list[_Answer] = []
    rows = (
        r for r in chosen_rows(corpus, split, limit) if _is_duel(corpus.read(split, r, names=[]))
    )
    duels = (load_annotated(model, corpus, split, row, first_only=True) for row in rows)
    for clips in in_batches(model, (clip for clip in duels if clip.frames == [0])):
        images_B3SS = torch.cat([clip.images_T3SS for clip in clips])
        own_B1MF = torch.cat([heard(corpus, split, clip, "own") for clip in clips])
        silence_B1MF = torch.cat([heard(corpus, split, clip, "silence") for clip in clips])
        own_BSS = forward(model, images_B3SS, own_B1MF)
        silence_BSS = forward(model, images_B3SS, silence_B1MF)
        answers += [
            _judge(clip.meta, own_SS, silence_SS)
            for clip, own_SS, silence_SS in zip(clips, own_BSS, silence_BSS, strict=True)
        ]
    if not answers:
        return None
    scenes: dict[str, dict[int, bool]] = defaultdict(dict)
    for answer in answers:
        scenes[answer.scene][answer.sounding] = answer.right
    pairs = [all(sides.values()) for sides in scenes.values() if len(sides) == 2]
    return {
        "samples": len(answers),
        "m_j": float(np.mean([answer.overlap for answer in answers])),
        "m_j_sound_blind": float(np.mean([answer.overlap_blind for answer in answers])),
        "picked_right": float(np.mean([answer.right for answer in answers])),
        "scenes": len(pairs),
        "flips": float(np.mean(pairs)) if pairs else 0.0,
        "silence_empty": float(np.mean([answer.silence_empty for answer in answers])),
    }


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What a model did in front of two objects."""

    scene: str
    sounding: int
    """Which of the two sounds, 0 or 1."""
    right: bool
    overlap: float
    overlap_blind: float
    silence_empty: bool


def _judge(meta: dict[str, Any], own_SS: Tensor, silence_SS: Tensor) -> _Answer:
    things = with_class(meta["objects"][0])
    sounding = 0 if things[0]["sounding"] else 1
    masks_2HW = torch.from_numpy(np.stack(visible_masks(things)))
    size = masks_2HW.shape[1:]
    # An empty mask overlaps nothing, whatever AVSBench's score says of fully hidden objects.
    predicted_1HW = resize_logits(own_SS[None], size).sigmoid() > 0.5
    shared_2 = (predicted_1HW & masks_2HW).flatten(1).sum(1)
    overlap_2 = shared_2 / (predicted_1HW | masks_2HW).flatten(1).sum(1).clamp(min=1)
    truth_1HW = masks_2HW[sounding : sounding + 1]
    return _Answer(
        scene=meta["scene"],
        sounding=sounding,
        right=bool(overlap_2[sounding] > overlap_2[1 - sounding]),
        overlap=float(jaccard(resize_logits(own_SS[None], size), truth_1HW)),
        overlap_blind=float(jaccard(certain_logits(masks_2HW.any(0).numpy()[None]), truth_1HW)),
        silence_empty=not bool((resize_logits(silence_SS[None], size).sigmoid() > 0.5).any()),
    )


def _is_duel(sample: Sample) -> bool:
    objects = sample.meta.get("objects")
    things = with_class(objects[0]) if objects else []
    return len(things) == 2 and sum(bool(thing["sounding"]) for thing in things) == 1
