"""What every sample will be: a pure function of (catalog, recipe, seed).

All drawing of random numbers happens here, each sample from its own generator seeded with
(seed, split, number), so that a sample does not depend on which worker makes it, on its
neighbours or on how many there are. ``render`` then only carries the drawn numbers out.

In ``val``, ``test`` and ``unseen`` each scene has two objects and comes twice in a row, with the
sound of either: whoever always masks the same one is right half the time, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from infra.config import digest, to_dict
from synth.catalog import Catalog
from synth.compose import Light, Placement, fit_size, overlap_share
from synth.recipe import SPLITS, TRAIN, UNSEEN, Recipe
from synth.tables import Background, Clip, Object, SilentObject

_PLACING_TRIES = 48
_Row = TypeVar("_Row", Object, Clip)


@dataclass(frozen=True, kw_only=True)
class Pools:
    """The assets that a split draws from; objects and clips by class."""

    objects: dict[str, list[Object]]
    clips: dict[str, list[Clip]]
    backgrounds: list[Background]
    silent: list[SilentObject]

    @property
    def classes(self) -> list[str]:
        """Classes with both a picture and a sound."""
        return sorted(self.objects.keys() & self.clips.keys())


@dataclass(frozen=True, kw_only=True)
class PlacedObject:
    """An object in a scene. ``class_name`` is "" for a silent distractor."""

    id: str
    uri: str
    class_name: str
    sounding: bool
    placement: Placement


@dataclass(frozen=True, kw_only=True)
class PlacedSound:
    """A clip in a soundtrack."""

    id: str
    uri: str
    class_name: str
    start: float
    """Where the stretch begins, 0 to 1 of what the clip allows."""
    gain_db: float


@dataclass(frozen=True, kw_only=True)
class SampleSpec:
    """Everything that decides the bytes of one sample."""

    key: str
    split: str
    scene: str
    image_size: int
    seconds: float
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


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard: which samples of a split it holds."""

    split: str
    number: int
    first: int
    samples: int


def plan_shards(recipe: Recipe) -> list[ShardPlan]:
    """The shards of every split, in the order in which they are numbered."""
    plans = []
    for split in SPLITS:
        total = getattr(recipe.samples, split)
        for number, first in enumerate(range(0, total, recipe.samples_per_shard)):
            count = min(recipe.samples_per_shard, total - first)
            plans.append(ShardPlan(split=split, number=number, first=first, samples=count))
    return plans


def plan_digest(plan: ShardPlan, *, catalog_fingerprint: str, recipe: Recipe, seed: int) -> str:
    """sha256 of all that a shard's bytes depend on, but for the code itself."""
    # Other splits' sizes do not touch this shard: a corpus can grow without being made anew.
    relevant = {k: v for k, v in to_dict(recipe).items() if k not in ("samples",)}
    return digest([to_dict(plan), catalog_fingerprint, relevant, seed])


def split_assets(catalog: Catalog, recipe: Recipe) -> dict[str, Pools]:
    """The assets of each split.

    Of every class with two or more pictures and two or more sounds the last of each (by id) is
    in ``unseen`` alone. Backgrounds are dealt out so that no two splits share one.

    Raises:
        ValueError: the recipe names classes or backgrounds that the catalog lacks, or a split
            is left without what it needs.
    """
    objects = _by_class(catalog.objects)
    clips = _by_class(catalog.clips)
    usable = sorted(objects.keys() & clips.keys())
    unknown = sorted(set(recipe.classes) - set(usable))
    if unknown:
        raise ValueError(
            f"the catalog has no class {unknown[0]!r} with both a picture and a sound; "
            f"it has {', '.join(usable)}"
        )
    classes = sorted(recipe.classes) or usable
    held_out = [c for c in classes if len(objects[c]) >= 2 and len(clips[c]) >= 2]
    known = Pools(
        objects={c: objects[c][:-1] if c in held_out else objects[c] for c in classes},
        clips={c: clips[c][:-1] if c in held_out else clips[c] for c in classes},
        backgrounds=[],
        silent=sorted(catalog.silent, key=lambda row: row.id),
    )
    unseen = Pools(
        objects={c: objects[c][-1:] for c in held_out},
        clips={c: clips[c][-1:] for c in held_out},
        backgrounds=[],
        silent=known.silent,
    )
    dealt = _deal_backgrounds(catalog.backgrounds, recipe)
    pools = {}
    for split in SPLITS:
        base = unseen if split == UNSEEN else known
        pools[split] = Pools(
            objects=base.objects,
            clips=base.clips,
            backgrounds=dealt[split],
            silent=base.silent,
        )
        _check_enough(split, pools[split], getattr(recipe.samples, split))
    return pools


def _by_class(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    grouped: dict[str, list[_Row]] = {}
    for row in sorted(rows, key=lambda r: r.id):
        grouped.setdefault(row.class_name, []).append(row)
    return grouped


def _deal_backgrounds(rows: Sequence[Background], recipe: Recipe) -> dict[str, list[Background]]:
    known = sorted({row.collection for row in rows})
    for name in recipe.backgrounds:
        if name not in known:
            raise ValueError(
                f"the catalog has no backgrounds {name!r}; its collections are {', '.join(known)}"
            )
    chosen = [r for r in rows if not recipe.backgrounds or r.collection in recipe.backgrounds]
    # By content, so that the same picture stays in its split whatever else the catalog holds.
    chosen.sort(key=lambda row: row.sha256)
    edges = np.rint(np.cumsum((0.0, *recipe.background_shares)) * len(chosen)).astype(int)
    return {split: chosen[edges[i] : edges[i + 1]] for i, split in enumerate(SPLITS)}


def _check_enough(split: str, pools: Pools, samples: int) -> None:
    if samples == 0:
        return
    if len(pools.classes) < 2:
        raise ValueError(
            f"the split {split!r} has {len(pools.classes)} classes with a picture and a sound, "
            "and scenes need two: add media or set its samples to 0"
        )
    if not pools.backgrounds:
        raise ValueError(
            f"the split {split!r} has no background of its own: add backgrounds, change "
            "background_shares or set its samples to 0"
        )


def plan_sample(pools: Pools, recipe: Recipe, *, seed: int, split: str, number: int) -> SampleSpec:
    """Draw sample ``number`` of ``split``."""
    paired = split != TRAIN
    scene = number // 2 if paired else number
    code = SPLITS.index(split)
    scene_rng = np.random.default_rng((seed, code, scene, 0))
    sound_rng = np.random.default_rng((seed, code, number, 1))

    count = 2 if paired else 1 + int(scene_rng.choice(3, p=_shares(recipe.object_counts)))
    count = min(count, len(pools.classes))
    names = [str(c) for c in scene_rng.choice(pools.classes, size=count, replace=False)]
    if paired:
        sounding = [names[number % 2]]
    else:
        sources = 2 if count > 1 and sound_rng.random() < recipe.multi_source else 1
        if sound_rng.random() < recipe.silence:
            sources = 0
        sounding = [str(c) for c in sound_rng.choice(names, size=sources, replace=False)]

    return SampleSpec(
        key=f"{split}-{number:08d}",
        split=split,
        scene=f"{split}-{scene:08d}",
        image_size=recipe.image_size,
        seconds=recipe.seconds,
        jpeg_quality=recipe.jpeg_quality,
        background=pools.backgrounds[int(scene_rng.integers(len(pools.backgrounds)))],
        background_crop=(
            float(scene_rng.random()),
            float(scene_rng.random()),
            float(scene_rng.uniform(1.0, 2.0)),
        ),
        background_flip=bool(scene_rng.random() < recipe.flip),
        background_light=_draw_light(scene_rng, recipe),
        objects=_draw_objects(scene_rng, pools, recipe, names, sounding),
        sounds=tuple(_draw_sound(sound_rng, pools, recipe, name) for name in sounding),
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
    rows: list[tuple[Object | SilentObject, str]] = []
    # Distractors lie farthest away, so that they never hide what sounds.
    for _ in range(distractors):
        rows.append((pools.silent[int(rng.integers(len(pools.silent)))], ""))
    for name in names:
        known = pools.objects[name]
        rows.append((known[int(rng.integers(len(known)))], name))

    placed: list[PlacedObject] = []
    for row, name in rows:
        side = recipe.long_side if name else recipe.distractor_side
        width, height = fit_size(
            row.width, row.height, round(float(rng.uniform(*side)) * recipe.image_size)
        )
        look = {
            "width": width,
            "height": height,
            "flip": bool(rng.random() < recipe.flip),
            "light": _draw_light(rng, recipe),
            "feather": float(rng.uniform(*recipe.feather)),
        }
        left, top = _draw_position(rng, recipe, width, height, placed)
        placed.append(
            PlacedObject(
                id=row.id,
                uri=row.uri,
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


def _draw_light(rng: np.random.Generator, recipe: Recipe) -> Light:
    brightness = 1 + rng.uniform(-recipe.light, recipe.light)
    tint = 1 + rng.uniform(-recipe.light, recipe.light, size=3) / 3
    gain = brightness * tint
    return Light(
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        contrast=float(1 + rng.uniform(-recipe.light, recipe.light)),
    )


def _draw_sound(
    rng: np.random.Generator, pools: Pools, recipe: Recipe, class_name: str
) -> PlacedSound:
    known = pools.clips[class_name]
    clip = known[int(rng.integers(len(known)))]
    return PlacedSound(
        id=clip.id,
        uri=clip.uri,
        class_name=class_name,
        start=float(rng.random()),
        gain_db=float(rng.uniform(*recipe.gain_db)),
    )
