"""Drawing what is heard: which classes sound, from which clips, how loud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synth.pools import Pools
from synth.recipe import TRAIN, Recipe
from synth.tables import Clip


@dataclass(frozen=True, kw_only=True)
class PlacedSound:
    """A clip in a soundtrack."""

    asset: Clip
    start: float
    """Where the stretch begins, 0 to 1 of what the clip allows."""
    gain_db: float
    on_screen: bool = True
    """Whether what sounds is in the picture."""

    @property
    def id(self) -> str:
        """Of the clip."""
        return self.asset.id

    @property
    def class_name(self) -> str:
        """Of the clip."""
        return self.asset.class_name


def draw_sources(rng: np.random.Generator, recipe: Recipe, *, split: str, scene: int) -> int:
    """How many of ``scene`` classes sound; -1 for one that is not in the picture."""
    if split != TRAIN:
        return 1
    count = 1
    if scene > 1:
        shares = np.asarray(recipe.sources, float) / sum(recipe.sources)
        drawn = rng.random()
        if drawn < shares[2]:
            count = min(3, scene)
        elif drawn < shares[2] + shares[1]:
            count = 2
    drawn = rng.random()
    if drawn < recipe.silence:
        return 0
    if drawn < recipe.silence + recipe.off_screen:
        return -1
    return count


def draw_sounds(
    rng: np.random.Generator,
    pools: Pools,
    recipe: Recipe,
    names: Sequence[str],
    *,
    on_screen: bool = True,
) -> tuple[PlacedSound, ...]:
    """A clip of each class."""
    return tuple(_draw_sound(rng, pools, recipe, name, on_screen) for name in names)


def _draw_sound(
    rng: np.random.Generator, pools: Pools, recipe: Recipe, class_name: str, on_screen: bool
) -> PlacedSound:
    known = pools.clips[class_name]
    return PlacedSound(
        asset=known[int(rng.integers(len(known)))],
        start=float(rng.random()),
        gain_db=float(rng.uniform(*recipe.gain_db)),
        on_screen=on_screen,
    )
