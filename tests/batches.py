"""Batches of the loader: one that nothing changes, and comparing them whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from training.augmentation import Augmentation
from training.batch import Batch

STILL = Augmentation(
    flip=0.0, light=0.0, colour=0.0, gain=(1.0, 1.0), noise=0.0, shift=False, silent_share=0.0
)


def equal(left: Batch, right: Batch) -> bool:
    """Whether two batches are the same to the last bit, in every field."""
    return all(torch.equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(Batch))


def joined(shares: Sequence[Batch]) -> Batch:
    """The batch of a step, from what each rank has of it."""
    return Batch(
        **{f.name: torch.cat([getattr(share, f.name) for share in shares]) for f in fields(Batch)}
    )
