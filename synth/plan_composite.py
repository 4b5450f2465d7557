"""Drawing composite scenes: cut-outs on a background.

In ``val``, ``test`` and ``unseen`` each scene has two objects and comes twice in a row, with the
sound of either: whoever always masks the same one is right half the time, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synth.compose import Light, Placement, fit_size, overlap_share
from synth.plan_sound import PlacedSound, draw_sounds, draw_sources
from synth.pools import Pools
from synth.recipe import SPLITS, TRAIN, Recipe
from synth.tables import Background, Object

_PLACING_TRIES = 48


@dataclass(frozen=True, kw_only=True)
class PlacedObject:
    """An object in a scene. ``class_name`` is "" for a silent distractor."""

    asset: Object
    class_name: str
    sounding: bool
    placement: Placement

    @property
    def id(self) -> str:
        """Of the object."""
        return self.asset.id


@dataclass(frozen=True, kw_only=True)
class CompositeSpec:
    """Everything that decides the bytes of one composite sample."""

    key: str
    split: str
    scene: str
    image_size: int
    seconds: float
    stretch: str
    jpeg_quality: int
    background: Background
    background_crop: tuple[float, float, float]
    """x, y and zoom of the crop."""
    background_flip: bool
    background_light: Light
    objects: tuple[PlacedObject, ...]
    """The farthest first."""
    sounds: tuple[PlacedSound, ...]
    noise_db: float
    noise_seed: int


def plan_composite(
    pools: Pools, recipe: Recipe, *, seed: int, split: str, number: int, attempt: int = 0
) -> CompositeSpec:
    """Draw sample ``number`` of ``split``."""
    paired = split != TRAIN
    scene = number // 2 if paired else number
    code = SPLITS.index(split)
    anew = (attempt,) if attempt else ()
    scene_rng = np.random.default_rng((seed, code, scene, 0, *anew))
    sound_rng = np.random.default_rng((seed, code, number, 1))

    count = 2 if paired else 1 + int(scene_rng.choice(3, p=_shares(recipe.object_counts)))
    count = min(count, len(pools.classes))
    names = [str(c) for c in scene_rng.choice(pools.classes, size=count, replace=False)]
    off_screen: list[str] = []
    if paired:
        sounding = [names[number % 2]]
    else:
        elsewhere = sorted(set(pools.classes) - set(names))
        sources = draw_sources(sound_rng, recipe, split=split, scene=count)
        if sources < 0 and elsewhere:
            off_screen = [elsewhere[int(sound_rng.integers(len(elsewhere)))]]
        size = 0 if off_screen else abs(sources)
        sounding = [str(c) for c in sound_rng.choice(names, size=size, replace=False)]

    return CompositeSpec(
        key=f"{split}-{number:08d}",
        split=split,
        scene=f"{split}-{scene:08d}",
        image_size=recipe.image_size,
        seconds=recipe.seconds,
        stretch=recipe.stretch,
        jpeg_quality=recipe.jpeg_quality,
        background=pools.backgrounds[int(scene_rng.integers(len(pools.backgrounds)))],
        background_crop=(
            float(scene_rng.random()),
            float(scene_rng.random()),
            float(scene_rng.uniform(1.0, 2.0)),
        ),
        background_flip=bool(scene_rng.random() < recipe.flip),
        background_light=draw_light(scene_rng, recipe),
        objects=_draw_objects(scene_rng, pools, recipe, names, sounding),
        sounds=draw_sounds(
            sound_rng, pools, recipe, off_screen or sounding, on_screen=not off_screen
        ),
        noise_db=float(sound_rng.uniform(*recipe.noise_db)),
        noise_seed=int(sound_rng.integers(1 << 32)),
    )


def _shares(weights: Sequence[float]) -> np.ndarray:
    return np.asarray(weights, float) / sum(weights)


def _draw_objects(
    rng: np.random.Generator,
    pools: Pools,
    recipe: Recipe,
    names: Sequence[str],
    sounding: Sequence[str],
) -> tuple[PlacedObject, ...]:
    distractors = int(rng.choice(3, p=_shares(recipe.distractors))) if pools.silent else 0
    rows: list[tuple[Object, str]] = []
    # Distractors lie farthest away, so that they never hide what sounds.
    for _ in range(distractors):
        rows.append((pools.silent[int(rng.integers(len(pools.silent)))], ""))
    for name in names:
        known = pools.objects[name]
        rows.append((known[int(rng.integers(len(known)))], name))

    placed: list[PlacedObject] = []
    for row, name in rows:
        side = recipe.long_side if name else recipe.distractor_side
        own = (row.right - row.left, row.bottom - row.top) if row.natural else ()
        width, height = fit_size(
            *(own or (row.width, row.height)), round(float(rng.uniform(*side)) * recipe.image_size)
        )
        look = {
            "width": width,
            "height": height,
            "flip": bool(rng.random() < recipe.flip),
            "light": draw_light(rng, recipe),
            "feather": float(rng.uniform(*recipe.feather)),
        }
        left, top = _draw_position(rng, recipe, width, height, placed)
        placed.append(
            PlacedObject(
                asset=row,
                class_name=name,
                sounding=name in sounding,
                placement=Placement(left=left, top=top, **look),  # type: ignore[arg-type]
            )
        )
    return tuple(placed)


def _draw_position(
    rng: np.random.Generator,
    recipe: Recipe,
    width: int,
    height: int,
    others: Sequence[PlacedObject],
) -> tuple[float, float]:
    """A place that covers little of what stands; the best of some tries where none does."""
    best, least = (0.0, 0.0), np.inf
    for _ in range(_PLACING_TRIES):
        left = float(np.floor(rng.random() * max(1, recipe.image_size - width + 1)))
        top = float(np.floor(rng.random() * max(1, recipe.image_size - height + 1)))
        box = Placement(left=left, top=top, width=width, height=height)
        covered = max((overlap_share(box, other.placement) for other in others), default=0.0)
        if covered < least:
            best, least = (left, top), covered
        if covered <= recipe.overlap:
            break
    return best


def draw_light(rng: np.random.Generator, recipe: Recipe) -> Light:
    """A change of light within what the recipe allows."""
    brightness = 1 + rng.uniform(-recipe.light, recipe.light)
    tint = 1 + rng.uniform(-recipe.light, recipe.light, size=3) / 3
    gain = brightness * tint
    return Light(
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        contrast=float(1 + rng.uniform(-recipe.light, recipe.light)),
    )
