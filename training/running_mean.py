"""A running mean of the weights, which often scores better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from training.step import Learner


class RunningMean:
    """fp32 mean of every trained parameter, on its device.

    It is of the weights that the model computes with: below fp32 these are the optimizer's fp32
    ones rounded, and the mean is of the rounded ones.

    Args:
        decay: share of the old mean in the new one; lower in the first steps, so that the random
            start is soon forgotten.
        start: what to go on from, by name; the weights as they are by default.
    """

    def __init__(
        self, learner: Learner, *, decay: float, start: Mapping[str, Tensor] | None = None
    ) -> None:
        self._decay = decay
        self._learner = learner
        self._mean = {
            name: (parameter if start is None else start[name])
            .detach()
            .to(parameter.device, torch.float32, copy=True)
            for name, parameter in learner.trainable()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step``, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._learner.trainable():
            self._mean[name].lerp_(parameter.float(), 1 - decay)

    def on_cpu(self) -> dict[str, Tensor]:
        """The mean by name, in copies."""
        return {name: value.to("cpu", copy=True) for name, value in self._mean.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the mean for its weights."""
        held = {name: parameter.data.clone() for name, parameter in self._learner.trainable()}
        try:
            for name, parameter in self._learner.trainable():
                parameter.data.copy_(self._mean[name])
            yield
        finally:
            for name, parameter in self._learner.trainable():
                parameter.data.copy_(held[name])
