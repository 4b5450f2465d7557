"""How good a model is, and whether it listens.

M_J and M_F say how well masks fit. They say little about hearing: where two objects stand in a
picture, a mask of both scores 0.5 without a sound. So the same clips are also scored with the
sound of something else and with silence, against the score of the best answer that is blind to
sound, and pairs of samples that share a picture show whether the mask follows the sound.

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
from infra.corpus import Corpus, Sample
from model import SAVE
from training.data import clip_log_mel, load_clip, load_sound
from training.metrics import f_measure, jaccard
from training.overlay import Row

Sound = Literal["own", "swapped", "silence"]
SOUNDS: tuple[Sound, ...] = ("own", "swapped", "silence")

# Frames of 256 x 256 in one forward pass; larger frames go in smaller batches.
FRAMES_PER_BATCH = 16
# Logit of a pixel that is certainly inside.
CERTAIN = 20.0


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
    return _resize(_forward(model, images_T3SS, log_mel_T1MF), size)


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
    loaded = (_load(model, corpus, split, row) for row in _rows(corpus, split, limit))
    for clips in _batches(model, (clip for clip in loaded if clip.frames)):
        images_B3SS = torch.cat([clip.images_T3SS for clip in clips])
        lengths = [len(clip.frames) for clip in clips]
        for sound in sounds:
            log_mel_B1MF = torch.cat([_heard(corpus, split, clip, sound) for clip in clips])
            logits_BSS = _forward(model, images_B3SS, log_mel_B1MF)
            for clip, logits_TSS in zip(clips, logits_BSS.split(lengths), strict=True):
                scores[sound].add(_resize(logits_TSS, clip.truth_THW.shape[1:]), clip.truth_THW)
    return {sound: found.result(corpus, split) for sound, found in scores.items()}


def sound_blind(corpus: Corpus, split: str, *, limit: int | None = None) -> dict[str, float] | None:
    """The score of the best answer without ears: the mask of every object that has a class.

    None where the corpus does not tell where its objects are, as real footage does not.
    """
    scores = _Scores()
    for row in _rows(corpus, split, limit):
        sample = corpus.read(split, row)
        if not sample.meta.get("objects"):
            return None
        answers, truths = [], []
        for frame in _annotated(sample):
            truth_HW = media.decode_mask(sample.members[f"mask{frame}.png"])
            answer_HW = np.zeros_like(truth_HW)
            for mask_HW in _masks(_with_class(sample.meta["objects"][frame])):
                answer_HW |= mask_HW
            answers.append(answer_HW)
            truths.append(truth_HW)
        if truths:
            scores.add(_certain(np.stack(answers)), torch.from_numpy(np.stack(truths)))
    return scores.result(corpus, split)


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
    rows = (r for r in _rows(corpus, split, limit) if _is_duel(corpus.read(split, r, names=[])))
    duels = (_load(model, corpus, split, row, first_only=True) for row in rows)
    for clips in _batches(model, (clip for clip in duels if clip.frames == [0])):
        images_B3SS = torch.cat([clip.images_T3SS for clip in clips])
        own_B1MF = torch.cat([_heard(corpus, split, clip, "own") for clip in clips])
        silence_B1MF = torch.cat([_heard(corpus, split, clip, "silence") for clip in clips])
        own_BSS = _forward(model, images_B3SS, own_B1MF)
        silence_BSS = _forward(model, images_B3SS, silence_B1MF)
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
    things = _with_class(meta["objects"][0])
    sounding = 0 if things[0]["sounding"] else 1
    masks_2HW = torch.from_numpy(np.stack(_masks(things)))
    size = masks_2HW.shape[1:]
    # An empty mask overlaps nothing, whatever AVSBench's score says of fully hidden objects.
    predicted_1HW = _resize(own_SS[None], size).sigmoid() > 0.5
    shared_2 = (predicted_1HW & masks_2HW).flatten(1).sum(1)
    overlap_2 = shared_2 / (predicted_1HW | masks_2HW).flatten(1).sum(1).clamp(min=1)
    truth_1HW = masks_2HW[sounding : sounding + 1]
    return _Answer(
        scene=meta["scene"],
        sounding=sounding,
        right=bool(overlap_2[sounding] > overlap_2[1 - sounding]),
        overlap=float(jaccard(_resize(own_SS[None], size), truth_1HW)),
        overlap_blind=float(jaccard(_certain(masks_2HW.any(0).numpy()[None]), truth_1HW)),
        silence_empty=not bool((_resize(silence_SS[None], size).sigmoid() > 0.5).any()),
    )


def examples(model: SAVE, corpus: Corpus, split: str, rows: Sequence[int]) -> list[Row]:
    """Rows of a contact sheet: the first annotated frame, its truth, the answers to two sounds."""
    sheet = []
    for row in rows:
        clip = _load(model, corpus, split, row, first_only=True)
        if not clip.frames:
            raise ValueError(f"row {row} of {corpus.uri} {split} has no annotated frame to show")
        height, width = clip.truth_THW.shape[1:]
        sounds = (clip.log_mel_T1MF, _heard(corpus, split, clip, "swapped"))
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
                image_HW3=media.resize_image(_picture(corpus, split, clip), height, width),
                truth_HW=clip.truth_THW[0].numpy(),
                predicted_HW=own_HW,
                swapped_HW=swapped_HW,
                swapped_caption=_named(other.meta),
            )
        )
    return sheet


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
    silent = {thing["class"] for thing in _with_class(things)} - sounding
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


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """Some frames of a clip, ready for the model, with their true masks."""

    row: int
    frames: list[int]
    images_T3SS: Tensor
    log_mel_T1MF: Tensor
    truth_THW: Tensor
    """bool, at the size it is stored in."""
    meta: dict[str, Any]


def _load(model: SAVE, corpus: Corpus, split: str, row: int, *, first_only: bool = False) -> _Clip:
    """The annotated frames of one clip, or the first of them."""
    clip = load_clip(corpus, split, row, model.config.image_size)
    truths = {k: mask_HW for k, mask_HW in enumerate(clip.masks) if mask_HW is not None}
    frames = list(truths)[:1] if first_only else list(truths)
    return _Clip(
        row=row,
        frames=frames,
        images_T3SS=clip.images_T3SS[frames],
        log_mel_T1MF=clip.log_mel_T1MF[frames],
        truth_THW=torch.from_numpy(np.stack([truths[k] for k in frames] or [np.zeros((1, 1))])),
        meta=clip.meta,
    )


def _heard(corpus: Corpus, split: str, clip: _Clip, sound: Sound) -> Tensor:
    """The examples that are played to the clip's frames."""
    if sound == "own":
        return clip.log_mel_T1MF
    if sound == "silence":
        silence_11MF = clip_log_mel(np.zeros(0, np.float32), 1)
        return silence_11MF.expand(len(clip.frames), -1, -1, -1)
    wave_N = load_sound(corpus, split, swapped_row(corpus, split, clip.row))
    return clip_log_mel(wave_N, max(clip.frames) + 1)[clip.frames]


def _rows(corpus: Corpus, split: str, limit: int | None) -> list[int]:
    """All rows, or ``limit`` of them spread evenly: neighbours are often of one class.

    Neighbours stay together in twos, since the two sounds of one scene are neighbours.
    """
    count = len(corpus.table(split))
    if limit is None or limit >= count:
        return list(range(count))
    twos = (limit + 1) // 2
    firsts = [number * (count // 2) // twos * 2 for number in range(twos)]
    return [row for first in firsts for row in (first, first + 1)][:limit]


def _batches(model: SAVE, clips: Iterable[_Clip]) -> Iterator[list[_Clip]]:
    """Clips in groups whose frames fill one forward pass."""
    full = _frames_per_batch(model.config.image_size)
    batch: list[_Clip] = []
    for clip in clips:
        batch.append(clip)
        if sum(len(held.frames) for held in batch) >= full:
            yield batch
            batch = []
    if batch:
        yield batch


def _frames_per_batch(side: int) -> int:
    return max(1, FRAMES_PER_BATCH * 256**2 // side**2)


def _forward(model: SAVE, images_B3SS: Tensor, log_mel_B1MF: Tensor) -> Tensor:
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


def _resize(logits_TSS: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(logits_TSS.shape[1:]) == tuple(size):
        return logits_TSS
    return F.interpolate(logits_TSS[:, None], tuple(size), mode="bilinear", align_corners=False)[
        :, 0
    ]


def _annotated(sample: Sample) -> list[int]:
    return [k for k in range(sample.meta["frames"]) if f"mask{k}.png" in sample.members]


def _picture(corpus: Corpus, split: str, clip: _Clip) -> np.ndarray:
    names = [f"frame{clip.frames[0]}.{kind}" for kind in ("png", "jpg")]
    (data,) = corpus.read(split, clip.row, names=names).members.values()
    return media.decode_image(data)[..., :3]


def _is_duel(sample: Sample) -> bool:
    objects = sample.meta.get("objects")
    things = _with_class(objects[0]) if objects else []
    return len(things) == 2 and sum(bool(thing["sounding"]) for thing in things) == 1


def _with_class(things: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects that could sound; a silent distractor has no class."""
    return [thing for thing in things if thing.get("class")]


def _masks(things: Iterable[dict[str, Any]]) -> list[np.ndarray]:
    return [media.decode_mask_rle(thing["visible"]) for thing in things]


def _certain(mask_THW: np.ndarray) -> Tensor:
    """A mask as the logits of a model that has no doubt."""
    return (torch.from_numpy(mask_THW).float() * 2 - 1) * CERTAIN


def _named(meta: dict[str, Any]) -> str:
    return ", ".join(meta["classes"]) or "no class"


@lru_cache(maxsize=8)
def _rows_by_classes(corpus: Corpus, split: str) -> dict[frozenset[str], list[int]]:
    rows: dict[frozenset[str], list[int]] = defaultdict(list)
    for row, classes in enumerate(corpus.table(split)["classes"].to_pylist()):
        rows[frozenset(classes)].append(row)
    return dict(rows)
