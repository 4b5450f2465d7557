"""The running mean of the weights."""

from __future__ import annotations

import torch

from model import build_save
from training.running_mean import RunningMean
from training.step import Learner


def moved(learner: Learner, value: float) -> None:
    with torch.no_grad():
        for _, parameter in learner.trainable():
            parameter.fill_(value)


def test_the_mean_follows_the_weights_and_forgets_the_start_soon() -> None:
    learner = Learner(build_save("save_tiny", image_size=32))
    moved(learner, 1.0)
    mean = RunningMean(learner, decay=0.9)
    moved(learner, 2.0)
    mean.update(1)
    first = next(iter(mean.on_cpu().values())).flatten()[0]
    torch.testing.assert_close(first, torch.tensor(1.0 * 2 / 11 + 2.0 * 9 / 11))
    for step in range(2, 200):
        mean.update(step)
    for value in mean.on_cpu().values():
        torch.testing.assert_close(value, torch.full_like(value, 2.0))


def test_inside_the_block_the_model_is_the_mean_and_after_it_itself() -> None:
    learner = Learner(build_save("save_tiny", image_size=32))
    moved(learner, 1.0)
    mean = RunningMean(learner, decay=0.9)
    moved(learner, 3.0)
    with mean.in_place():
        assert all(bool((p == 1.0).all()) for _, p in learner.trainable())
    assert all(bool((p == 3.0).all()) for _, p in learner.trainable())


def test_a_mean_that_was_kept_goes_on_where_it_was() -> None:
    learner = Learner(build_save("save_tiny", image_size=32))
    mean = RunningMean(learner, decay=0.9)
    moved(learner, 2.0)
    mean.update(5)
    again = RunningMean(learner, decay=0.9, start=mean.on_cpu())
    for one in (mean, again):
        one.update(6)
    for name, value in mean.on_cpu().items():
        assert torch.equal(value, again.on_cpu()[name])
