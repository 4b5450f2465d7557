"""The score on the val split while training runs, each rank scoring its share of the clips.

Shapes: T frames of a clip, H x W pixels of the true masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from infra import media
from infra.corpus import Corpus
from model import SAVE
from training.clips import (
    AnnotatedClip,
    chosen_rows,
    first_picture,
    forward,
    in_batches,
    load_annotated,
    resize_logits,
)
from training.metrics import f_measure, jaccard
from training.overlay import overlay
from training.samples import clip_log_mel


@dataclass(frozen=True, kw_only=True)
class Scores:
    """AVSBench's two scores over a whole split."""

    m_j: float
    m_f: float


def validate(
    save: SAVE,
    corpus: Corpus,
    split: str,
    *,
    overlays: int = 0,
    show: Callable[[str, bytes], None] = lambda key, jpeg: None,
) -> Scores:
    """M_J and M_F over a whole split at the size of the true masks; all ranks must call this.

    Args:
        overlays: clips, the same ones each time, of which ``show`` gets the key and a JPEG: the
            first annotated frame with the true and with the predicted mask.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = next(save.parameters()).device
    drawn = set(chosen_rows(corpus, split, overlays)) if overlays else set()
    sums_4 = torch.zeros(4, dtype=torch.float64)
    rows = range(rank, len(corpus.table(split)), world)
    loaded = (load_annotated(save, corpus, split, row) for row in rows)
    with _in_step(save, device):
        for clips in in_batches(save, (clip for clip in loaded if clip.frames)):
            images_B3SS = torch.cat([clip.images_T3SS for clip in clips])
            log_mel_B1MF = torch.cat([clip.log_mel_T1MF for clip in clips])
            logits_BSS = forward(save, images_B3SS, log_mel_B1MF)
            lengths = [len(clip.frames) for clip in clips]
            for clip, logits_TSS in zip(clips, logits_BSS.split(lengths), strict=True):
                logits_THW = resize_logits(logits_TSS, clip.truth_THW.shape[1:])
                overlaps_T = jaccard(logits_THW, clip.truth_THW)
                measure = f_measure(logits_THW, clip.truth_THW)
                sums_4 += torch.tensor([overlaps_T.sum(), len(overlaps_T), measure, 1.0])
                if clip.row in drawn:
                    picture_HW3 = first_picture(corpus, split, clip)
                    show(corpus.index(split).key(clip.row), _drawn(picture_HW3, clip, logits_THW))
    sums_4 = sums_4.to(device)
    torch.distributed.all_reduce(sums_4)
    overlap, frames, measures, clips_seen = sums_4.tolist()
    return Scores(m_j=overlap / max(frames, 1), m_f=measures / max(clips_seen, 1))


@contextmanager
def _in_step(save: SAVE, device: torch.device) -> Iterator[None]:
    """As many forward passes on every rank: under ZeRO 3 no rank can go forward without the others.

    A rank that is through with the block goes on with passes that count for nothing, until all are.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in save.parameters()):
        yield
        return

    def tell(*_: object) -> None:
        _is_any_busy(True, device)

    # Before DeepSpeed's own hook, which gathers parameters.
    hook = save.register_forward_pre_hook(tell, prepend=True)
    try:
        yield
    finally:
        hook.remove()
    side = save.config.image_size
    while _is_any_busy(False, device):
        forward(save, torch.zeros(1, 3, side, side), clip_log_mel(np.zeros(0, np.float32), 1))


def _is_any_busy(busy: bool, device: torch.device) -> bool:
    """Whether any rank has clips left; all of them must ask, once a forward pass."""
    count = torch.tensor(float(busy), device=device)
    torch.distributed.all_reduce(count)
    return bool(count)


def _drawn(picture_HW3: np.ndarray, clip: AnnotatedClip, logits_THW: Tensor) -> bytes:
    """JPEG of a clip's first frame with its true mask, and beside it with the predicted one."""
    height, width = clip.truth_THW.shape[1:]
    picture_HW3 = media.resize_image(picture_HW3, height, width)
    found_HW = logits_THW[0].sigmoid().numpy() > 0.5
    pair = [overlay(picture_HW3, mask) for mask in (clip.truth_THW[0].numpy(), found_HW)]
    return media.encode_jpeg(np.concatenate(pair, axis=1), quality=85)
