"""What a training step is fed: a batch of single frames, each with its second of sound.

It stands alone so that ``training.step`` needs nothing of what reads a corpus.

Shapes: B samples, S side of the model's input, G = S/16 its grid, M = 96 mels of an example,
F = 64 mel bands, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORED_CELL = -100
"""Of a grid cell whose class is unknown."""


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
    """Class of the object at each cell's centre, C for background, ``IGNORED_CELL`` unknown."""

    def __len__(self) -> int:
        return len(self.image_B3SS)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})
