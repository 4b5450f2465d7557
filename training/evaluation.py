"""How good a model is, and whether it listens.

M_J and M_F say how well masks fit. They say little about hearing: where two objects stand in a
picture, a mask of both scores 0.5 without a sound. So the same clips are also scored with the
sound of something else and with silence, against the score of the best answer that is blind to
sound, and pairs of samples that share a picture show whether the mask follows the sound.

Shapes: T frames, H x W pixels of the true masks, S the side of the model's input, M mels of a
frame (96), F mel bands (64), B frames of several clips in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra import media
from infra.corpus import Corpus, Sample
from model import SAVE
from training.clips import (
    SOUNDS,
    Sound,
    certain_logits,
    chosen_rows,
    first_picture,
    forward,
    heard,
    in_batches,
    load_annotated,
    resize_logits,
    swapped_row,
    visible_masks,
    with_class,
)
from training.metrics import f_measure, jaccard
from training.overlay import Row


def predict_clip(
    model: SAVE, images_T3SS: Tensor, log_mel_T1MF: Tensor, size: tuple[int, int]
) -> Tensor:
    """Mask logits of a clip at the size of its true masks.

    Args:
        images_T3SS: normalised frames; frame k is answered with sound k.
        log_mel_T1MF: ``[T, 1, 96, 64]``.
        size: height and width of the answer; the model's logits are resized bilinearly.

    Returns:
        float32 ``[T, H, W]`` on the CPU.
    """
    return resize_logits(forward(model, images_T3SS, log_mel_T1MF), size)


def score(
    model: SAVE, corpus: Corpus, split: str, *, sound: Sound = "own", limit: int | None = None
) -> dict[str, float]:
    """``score_sounds`` for one kind of sound."""
    return score_sounds(model, corpus, split, sounds=(sound,), limit=limit)[sound]


def score_sounds(
    model: SAVE,
    corpus: Corpus,
    split: str,
    *,
    sounds: Sequence[Sound] = SOUNDS,
    limit: int | None = None,
) -> dict[Sound, dict[str, float]]:
    """M_J and M_F of a split for each kind of sound, in one pass over the clips.

    Args:
        sounds: ``own``: what is heard in the clip. ``swapped``: the sound of another clip, see
            ``swapped_row``. ``silence``: zeros. The true mask is the clip's own in every case.
        limit: score this many clips, spread evenly over the split.

    Returns:
        for each sound ``m_j`` (mean over the annotated frames), ``m_f`` (mean over the clips),
        ``clips`` and ``frames``.

    Raises:
        ValueError: the split is unknown or has no annotated frame, or nothing can be swapped in
            (``can_swap`` asks beforehand).
    """
    scores = {sound: _Scores() for sound in sounds}
    loaded = (
        load_annotated(model, corpus, split, row) for row in chosen_rows(corpus, split, limit)
    )
    for clips in in_batches(model, (clip for clip in loaded if clip.frames)):
        images_B3SS = torch.cat([clip.images_T3SS for clip in clips])
        lengths = [len(clip.frames) for clip in clips]
        for sound in sounds:
            log_mel_B1MF = torch.cat([heard(corpus, split, clip, sound) for clip in clips])
            logits_BSS = forward(model, images_B3SS, log_mel_B1MF)
            for clip, logits_TSS in zip(clips, logits_BSS.split(lengths), strict=True):
                scores[sound].add(
                    resize_logits(logits_TSS, clip.truth_THW.shape[1:]), clip.truth_THW
                )
    return {sound: found.result(corpus, split) for sound, found in scores.items()}


def sound_blind(corpus: Corpus, split: str, *, limit: int | None = None) -> dict[str, float] | None:
    """The score of the best answer without ears: the mask of every object that has a class.

    None where the corpus does not tell where its objects are, as real footage does not.
    """
    scores = _Scores()
    for row in chosen_rows(corpus, split, limit):
        sample = corpus.read(split, row)
        if not sample.meta.get("objects"):
            return None
        answers, truths = [], []
        for frame in _annotated(sample):
            truth_HW = media.decode_mask(sample.members[f"mask{frame}.png"])
            answer_HW = np.zeros_like(truth_HW)
            for mask_HW in visible_masks(with_class(sample.meta["objects"][frame])):
                answer_HW |= mask_HW
            answers.append(answer_HW)
            truths.append(truth_HW)
        if truths:
            scores.add(certain_logits(np.stack(answers)), torch.from_numpy(np.stack(truths)))
    return scores.result(corpus, split)


def examples(model: SAVE, corpus: Corpus, split: str, rows: Sequence[int]) -> list[Row]:
    """Rows of a contact sheet: the first annotated frame, its truth, the answers to two sounds."""
    sheet = []
    for row in rows:
        clip = load_annotated(model, corpus, split, row, first_only=True)
        if not clip.frames:
            raise ValueError(f"row {row} of {corpus.uri} {split} has no annotated frame to show")
        height, width = clip.truth_THW.shape[1:]
        sounds = (clip.log_mel_T1MF, heard(corpus, split, clip, "swapped"))
        own_HW, swapped_HW = (
            np.asarray(
                predict_clip(model, clip.images_T3SS, heard, (height, width))[0].sigmoid() > 0.5
            )
            for heard in sounds
        )
        other = corpus.read(split, swapped_row(corpus, split, row), names=[])
        sheet.append(
            Row(
                caption=_named(clip.meta),
                image_HW3=media.resize_image(first_picture(corpus, split, clip), height, width),
                truth_HW=clip.truth_THW[0].numpy(),
                predicted_HW=own_HW,
                swapped_HW=swapped_HW,
                swapped_caption=_named(other.meta),
            )
        )
    return sheet


class _Scores:
    """Sums of both scores over clips."""

    def __init__(self) -> None:
        self.overlaps: list[Tensor] = []
        self.f_measures: list[float] = []

    def add(self, logits_THW: Tensor, truth_THW: Tensor) -> None:
        self.overlaps.append(jaccard(logits_THW, truth_THW))
        self.f_measures.append(f_measure(logits_THW, truth_THW))

    def result(self, corpus: Corpus, split: str) -> dict[str, float]:
        if not self.overlaps:
            raise ValueError(f"{corpus.uri} {split} has no annotated frame to score")
        overlaps = torch.cat(self.overlaps)
        return {
            "m_j": float(overlaps.mean()),
            "m_f": float(np.mean(self.f_measures)),
            "clips": len(self.f_measures),
            "frames": len(overlaps),
        }


def _annotated(sample: Sample) -> list[int]:
    return [k for k in range(sample.meta["frames"]) if f"mask{k}.png" in sample.members]


def _named(meta: dict[str, Any]) -> str:
    return ", ".join(meta["classes"]) or "no class"
