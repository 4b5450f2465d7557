"""One optimisation step, with torch and the model alone: no Ray, no DeepSpeed, no corpus.

``Learner`` is what is trained: SAVE and, where the corpus knows its classes, the class heads. The
distributed loop runs the same ``Learner`` inside DeepSpeed; ``train_step`` is the same step
without it.

Shapes: B samples, S side of the input.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from model import SAVE
from training.auxiliary import ClassHeads
from training.batch import Batch
from training.loss import mask_loss


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, a cosine to ``final_learning_rate``, and clipping."""

    learning_rate: float = 2e-4
    """Reached at the end of the warm-up."""
    final_learning_rate: float = 1e-7
    """Where the cosine ends, right after the last step."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly."""
    weight_decay: float = 0.01
    """AdamW's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the mean and of the mean square of the gradient."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters; 0 does not clip."""

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step ``step`` of ``steps``, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        height = 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
        return self.final_learning_rate + height * (self.learning_rate - self.final_learning_rate)

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        """The optimizer of the parameters that are trained."""
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )


class Learner(nn.Module):
    """SAVE with its losses.

    Args:
        save: the model.
        classes: of the class heads; 0 for none.
        class_weight: of each of the two class losses; the mask loss has weight 1.
    """

    def __init__(self, save: SAVE, *, classes: int = 0, class_weight: float = 0.0) -> None:
        super().__init__()
        self.save = save
        self.class_weight = class_weight
        self.heads = ClassHeads(classes) if classes and class_weight else None

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and its parts without gradient, all scalar float32."""
        audio_BD = self.save.embed_audio(batch.log_mel_B1MF)
        embedding_BEGG = self.save.encode_image(batch.image_B3SS, audio_BD)
        logits_B1SS = self.save.decode_masks(embedding_BEGG, audio_BD)
        loss, parts = mask_loss(logits_B1SS, batch.mask_B1SS)
        if self.heads is not None:
            sound, cell = self.heads(audio_BD, embedding_BEGG, batch.class_BC, batch.cell_BGG)
            loss = loss + self.class_weight * (sound + cell)
            parts = {**parts, "sound_class": sound.detach(), "cell_class": cell.detach()}
        return loss, {"loss": loss.detach(), **parts}

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of what is trained."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch in parts of nearly equal size, none of them empty."""
    size = len(batch)
    ends = [size * number // parts for number in range(parts + 1)]
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return [
        Batch(**{name: value[first:last] for name, value in values.items()})
        for first, last in itertools.pairwise(ends)
        if first < last
    ]


def train_step(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    clip_norm: float,
    accumulate: int = 1,
) -> dict[str, Tensor]:
    """Forward, backward and update; returns the parts of the loss and ``grad_norm``.

    Args:
        accumulate: parts in which the batch is computed one after the other, to the same end.
    """
    optimizer.zero_grad(set_to_none=True)
    told: dict[str, Tensor] = {}
    for part in split_batch(batch, accumulate):
        loss, parts = learner(part)
        share = len(part) / len(batch)
        (loss * share).backward()
        told = {name: told.get(name, 0.0) + value * share for name, value in parts.items()}
    norm = nn.utils.clip_grad_norm_(
        [p for _, p in learner.trainable()], clip_norm if clip_norm > 0 else math.inf
    )
    optimizer.step()
    return {**told, "grad_norm": norm}
