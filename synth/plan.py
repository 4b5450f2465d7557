"""What every sample will be: a pure function of (sources, recipe, seed).

All drawing of random numbers happens here and in the two modules that plan a kind of scene, each
sample from its own generators seeded with (seed, split, number), so that a sample does not depend
on which worker makes it, on its neighbours or on how many there are. ``render`` then only carries
the drawn numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from infra.config import digest, to_dict
from synth.plan_composite import CompositeSpec, plan_composite
from synth.plan_natural import NaturalSpec, plan_natural
from synth.pools import Pools
from synth.recipe import SPLITS, Recipe

SampleSpec: TypeAlias = CompositeSpec | NaturalSpec

# Raised when a change of the code changes what is rendered: shards of an earlier one do not stand.
RENDERING = 2

# How often a scene is drawn anew when too little is seen of what sounds, before it is refused.
ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard: which samples of a split it holds."""

    split: str
    number: int
    first: int
    samples: int


def plan_shards(recipe: Recipe) -> list[ShardPlan]:
    """The shards of every split, in the order in which they are numbered.

    A corpus that was extended keeps the shards it had: new ones begin after its last sample.
    """
    plans = []
    for split in SPLITS:
        earlier = [getattr(samples, split) for samples in recipe.grown_from]
        starts = [0, *earlier, getattr(recipe.samples, split)]
        number = 0
        for begin, end in pairwise(starts):
            for first in range(begin, end, recipe.samples_per_shard):
                count = min(recipe.samples_per_shard, end - first)
                plans.append(ShardPlan(split=split, number=number, first=first, samples=count))
                number += 1
    return plans


def plan_digest(plan: ShardPlan, *, sources: Mapping[str, str], recipe: Recipe, seed: int) -> str:
    """sha256 of all that a shard's bytes depend on.

    Args:
        sources: ``Selected.sources``.
    """
    return digest([RENDERING, to_dict(plan), dict(sources), drawn_from(recipe), seed])


def drawn_from(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that a sample's bytes depend on.

    How many there are is none of them: a corpus can grow without being made anew.
    """
    others = ("samples", "grown_from", "max_refused")
    return {name: value for name, value in to_dict(recipe).items() if name not in others}


def plan_sample(
    pools: Pools, recipe: Recipe, *, seed: int, split: str, number: int, attempt: int = 0
) -> SampleSpec:
    """Draw sample ``number`` of ``split``.

    Args:
        attempt: another one draws the same scene anew, where the last showed too little.
    """
    plan = plan_natural if recipe.scenes == "natural" else plan_composite
    return plan(pools, recipe, seed=seed, split=split, number=number, attempt=attempt)
