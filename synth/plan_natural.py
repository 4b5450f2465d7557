"""Drawing natural scenes: an object in its own photograph, with a sound of its class.

Sample ``number`` is about object ``number`` of the split in a fixed order, so that every object
comes once before any comes twice (or, in the order by classes, every class equally often).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synth.compose import Light
from synth.plan_composite import draw_light
from synth.plan_sound import PlacedSound, draw_sounds, draw_sources
from synth.pools import Photographs, Pools
from synth.recipe import SPLITS, Recipe
from synth.tables import Object

# Seeds start far apart in the order, so that a small corpus of another seed has other objects.
_STRIDE = 7919


@dataclass(frozen=True, kw_only=True)
class MarkedObject:
    """An object in a photograph whose mask is known."""

    asset: Object
    sounding: bool


@dataclass(frozen=True, kw_only=True)
class NaturalSpec:
    """Everything that decides the bytes of one natural sample."""

    key: str
    split: str
    scene: str
    image_size: int
    seconds: float
    stretch: str
    jpeg_quality: int
    photograph: Object
    """The object that it is about; its picture is the scene."""
    objects: tuple[MarkedObject, ...]
    """What is marked: all of a sounding class, or the one instance."""
    crop: tuple[float, float, float, float]
    """left, top, right, bottom in pixels of the photograph."""
    flip: bool
    light: Light
    sounds: tuple[PlacedSound, ...]
    noise_db: float
    noise_seed: int


def plan_natural(
    pools: Pools, recipe: Recipe, *, seed: int, split: str, number: int, attempt: int = 0
) -> NaturalSpec:
    """Draw sample ``number`` of ``split``."""
    photographs = pools.photographs
    assert photographs is not None
    code = SPLITS.index(split)
    anew = (attempt,) if attempt else ()
    rng = np.random.default_rng((seed, code, number, 0, *anew))
    sound_rng = np.random.default_rng((seed, code, number, 1))

    anchor = _anchor(photographs, recipe, number + seed * _STRIDE)
    about = photographs.objects[anchor]
    beside = photographs.beside(anchor)
    whole = beside[photographs.single[beside]]
    others = sorted(
        {photographs.kinds[kind] for kind in np.unique(photographs.kind[whole])}
        - {about.class_name}
    )
    count = draw_sources(sound_rng, recipe, split=split, scene=1 + len(others))
    sounding: list[str] = []
    heard: list[str] = []
    if count < 0:
        absent = sorted(set(about.absent.split("|")) & set(pools.classes))
        # Only where the source is sure of it: what nobody marked may be there all the same. So
        # the share may not be reached; the corpus's page says which one was.
        if absent:
            heard = [absent[int(sound_rng.integers(len(absent)))]]
        else:
            count = 1
    if count > 0:
        chosen = sound_rng.choice(len(others), size=count - 1, replace=False) if count > 1 else ()
        heard = sounding = [about.class_name, *(others[int(i)] for i in chosen)]

    return NaturalSpec(
        key=f"{split}-{number:08d}",
        split=split,
        scene=f"{split}-{number:08d}",
        image_size=recipe.image_size,
        seconds=recipe.seconds,
        stretch=recipe.stretch,
        jpeg_quality=recipe.jpeg_quality,
        photograph=about,
        objects=_marked(photographs, recipe, anchor, about, beside, sounding),
        crop=_draw_crop(rng, recipe, about),
        flip=bool(rng.random() < recipe.flip),
        light=draw_light(rng, recipe),
        sounds=draw_sounds(sound_rng, pools, recipe, heard, on_screen=bool(sounding)),
        noise_db=float(sound_rng.uniform(*recipe.noise_db)),
        noise_seed=int(sound_rng.integers(1 << 32)),
    )


def _anchor(photographs: Photographs, recipe: Recipe, number: int) -> int:
    """The object that sample ``number`` is about."""
    if recipe.order == "objects":
        order = photographs.order[""]
        return int(order[number % len(order)])
    names = [name for name in photographs.order if name]
    order = photographs.order[names[number % len(names)]]
    return int(order[number // len(names) % len(order)])


def _marked(
    photographs: Photographs,
    recipe: Recipe,
    anchor: int,
    about: Object,
    beside: np.ndarray,
    sounding: list[str],
) -> tuple[MarkedObject, ...]:
    names = sounding or [about.class_name]
    if recipe.marks == "instance":
        first = {
            name: next(i for i in beside if photographs.single[i] and _is(photographs, i, name))
            for name in names
        }
        positions = [first[name] for name in names if name != about.class_name]
        assets = [about, *(photographs.objects[int(i)] for i in positions)]
    else:
        assets = [
            about if i == anchor else photographs.objects[int(i)]
            for i in beside
            if any(_is(photographs, i, name) for name in names)
        ]
    return tuple(MarkedObject(asset=a, sounding=a.class_name in sounding) for a in assets)


def _is(photographs: Photographs, number: int, class_name: str) -> bool:
    return photographs.kinds[photographs.kind[number]] == class_name


def _draw_crop(
    rng: np.random.Generator, recipe: Recipe, about: Object
) -> tuple[float, float, float, float]:
    share = float(rng.uniform(*recipe.crop))
    left, right = _draw_span(rng, about.width, share * about.width, about.left, about.right)
    top, bottom = _draw_span(rng, about.height, share * about.height, about.top, about.bottom)
    return left, top, right, bottom


def _draw_span(
    rng: np.random.Generator, length: int, shown: float, begin: int, end: int
) -> tuple[float, float]:
    """A stretch of ``shown`` pixels of an axis that holds ``begin`` to ``end``, or lies in it."""
    low, high = sorted((end - shown, float(begin)))
    start = min(max(float(rng.uniform(low, high)), 0.0), length - shown)
    return start, start + shown
