"""Which samples a step holds: a function of the seed and the step, whoever asks.

Each epoch is a permutation of all samples drawn from (seed, epoch); the epochs follow each other
without a gap, and step s is the stretch from s * batch to (s + 1) * batch. Ranks take contiguous
slices of it, equal ones where their number divides the batch. So no sample is lost or seen twice
in an epoch, whatever the number of workers, and a run resumes at any step without reading what
came before.

By default every sample may follow every other, which wants the whole corpus within reach: on a
disk, or in a cache that holds all of it. Where the cache is smaller, ``Window`` keeps a stretch of
the order within a few shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# 8 MB each for a million samples. A step touches two epochs at most, or many tiny ones.
_EPOCHS_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Window:
    """Shuffle the shards, then the samples within every ``shards`` of them.

    Each shard is then needed during one stretch of the epoch and never again in it.
    """

    shards: int
    """Shards whose samples are mixed."""
    sizes: tuple[int, ...]
    """Samples of each shard; together all of an epoch."""

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ValueError(f"a window must hold at least 1 shard, got {self.shards}")


def sample_order(
    *,
    samples: int,
    batch: int,
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    window: Window | None = None,
) -> list[tuple[int, int]]:
    """``(epoch, sample)`` of each place that a rank fills in a step.

    Args:
        samples: in an epoch.
        batch: samples of a step over all ranks.
        window: None lets any sample follow any other.
    """
    first, last = batch * rank // world, batch * (rank + 1) // world
    places = range(step * batch + first, step * batch + last)
    return [
        (
            place // samples,
            int(epoch_order(samples, seed, place // samples, window)[place % samples]),
        )
        for place in places
    ]


@lru_cache(maxsize=_EPOCHS_KEPT)
def epoch_order(samples: int, seed: int, epoch: int, window: Window | None = None) -> np.ndarray:
    """The samples of an epoch in their order: int64, each number below ``samples`` once."""
    random = np.random.default_rng([seed, epoch])
    if window is None:
        return random.permutation(samples)
    assert sum(window.sizes) == samples
    first = np.cumsum([0, *window.sizes])
    shards = random.permutation(len(window.sizes))
    stretches = []
    for start in range(0, len(shards), window.shards):
        mixed = [np.arange(first[s], first[s + 1]) for s in shards[start : start + window.shards]]
        stretches.append(random.permutation(np.concatenate(mixed)))
    return np.concatenate(stretches)
