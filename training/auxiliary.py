"""Class heads that help a small model to learn, and are thrown away afterwards.

On a corpus that knows its classes, two linear heads are trained beside the mask loss: one names
the class heard from the audio embedding, the other names the class at each grid cell from the
image embedding. Without them a model from scratch needs several times as many steps to find out
which sound belongs to which look.

Shapes: B samples, D = 128 audio features, E = 256 channels, G x G grid, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import IGNORED_CELL

AUDIO_DIM = 128
IMAGE_DIM = 256


class ClassHeads(nn.Module):
    """Linear classifiers of the sound and of each grid cell.

    Args:
        classes: C; the cells have one more class, C, for background.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.sound = nn.Linear(AUDIO_DIM, classes)
        self.cell = nn.Conv2d(IMAGE_DIM, classes + 1, 1)

    def forward(
        self, audio_BD: Tensor, embedding_BEGG: Tensor, class_BC: Tensor, cell_BGG: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropies of the sound and of the cells, both scalar float32.

        Both are means over all samples of the batch, those without a label counting as zero, so
        that the mean over equal shares of a batch is that of the whole.

        Args:
            class_BC: shares of the classes heard; a row of zeros has no label.
            cell_BGG: class of each cell, -100 where there is no label.
        """
        with torch.autocast(device_type=audio_BD.device.type, enabled=False):
            sound_BC = self.sound(audio_BD).float()
            sound = -(class_BC * sound_BC.log_softmax(1)).sum(1).mean()
            cells_BKGG = self.cell(embedding_BEGG).float()
            summed = F.cross_entropy(
                cells_BKGG, cell_BGG, ignore_index=IGNORED_CELL, reduction="sum"
            )
        return sound, summed / cell_BGG.numel()
