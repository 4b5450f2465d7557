"""What every clip of the miniature will be: a pure function of (assets, configuration).

Each clip is drawn from a generator of its own, seeded with (seed, subset, split, number): two
objects of different classes that move in straight lines over a background of the clip's split,
sometimes a third that is of no class, and the sound. ``miniature`` carries it out.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synth.compose import Light, Placement, fit_size, overlap_share
from synth.pools import Pools
from synth.tables import Background, Object

SPLITS = ("train", "val", "test")
FRAMES = 5
CANVAS = 224

_DASHED_EVERY = 20
_BACKGROUND_SHARE = {"train": 0.5, "val": 0.2, "test": 0.3}
_MAX_OVERLAP = 0.2
_TRIES = 300


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Clips in each split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True, kw_only=True)
class MiniatureConfig:
    """What is made."""

    seed: int = 0
    """Everything that is drawn depends on it."""
    s4: Counts = Counts(train=120, val=30, test=96)
    """Single-source clips: one of two objects sounds for all five seconds."""
    ms3: Counts = Counts(train=40, val=16, test=40)
    """Multi-source clips: in each second none, one or both of two objects sound."""
    collection: str = "renewable"
    """The collection of backgrounds that is used; an empty name takes all backgrounds."""
    long_side: tuple[float, float] = (0.28, 0.6)
    """Smallest and largest long side of an object, as a share of the picture's side."""
    distractors: float = 0.3
    """Share of clips with one more object, of no class, that never sounds."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A cut-out and its straight way through the picture, in pixels, first to last frame."""

    class_name: str
    """Empty for a distractor."""
    asset: str
    uri: str
    centres: tuple[tuple[float, float], tuple[float, float]]
    """(x, y) in the first and in the last frame."""
    long_sides: tuple[float, float]
    flip: bool
    light: Light


@dataclass(frozen=True, kw_only=True)
class Track:
    """A clip of one class and the seconds in which it is heard."""

    class_name: str
    clip: str
    uri: str
    start: float
    """Where in the clip it begins, 0 to 1."""
    gain_db: float
    seconds: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """Everything that one clip's files depend on, beside the assets themselves."""

    subset: str
    """``s4`` or ``ms3``."""
    split: str
    name: str
    category: str
    """The class that sounds in an S4 clip; empty in MS3."""
    background: str
    crop: tuple[float, float, float]
    """x, y, zoom as ``compose.crop_background`` takes them."""
    light: Light
    actors: tuple[Actor, ...]
    """The farthest away first."""
    tracks: tuple[Track, ...]
    noise_db: float
    seed: int
    licences: tuple[str, ...]

    def sounds(self, class_name: str, frame: int) -> bool:
        """Whether the class is heard in the second of that frame."""
        return any(t.class_name == class_name and t.seconds[frame] for t in self.tracks)


def plan_miniature(pools: Pools, config: MiniatureConfig) -> list[ClipPlan]:
    """The plans of all clips, S4 before MS3, train before val before test.

    Raises:
        ValueError: fewer than two classes, too few backgrounds of the collection, or sizes out of
            range.
    """
    low, high = config.long_side
    if not 0.05 <= low <= high <= 0.9:
        raise ValueError(f"long_side must be two shares within 0.05 to 0.9, got {low} and {high}")
    if len(pools.classes) < 2:
        raise ValueError(
            f"a miniature needs two classes with pictures and sounds, got {pools.classes}"
        )
    backgrounds = _split_backgrounds(pools.backgrounds, config)
    plans = []
    for subset_number, subset in enumerate(("s4", "ms3")):
        counts: Counts = getattr(config, subset)
        for split_number, split in enumerate(SPLITS):
            number = (subset_number, split_number)
            order = np.random.default_rng([config.seed, *number]).permutation(len(pools.classes))
            for index in range(getattr(counts, split)):
                random = np.random.default_rng([config.seed, *number, 1 + index])
                # Every class sounds equally often.
                first = pools.classes[order[index % len(order)]]
                second = _pick(random, [name for name in pools.classes if name != first])
                name = _clip_name(config.seed, subset, split, index)
                scenery = (pools, config, backgrounds[split])
                plans.append(_plan_clip(random, *scenery, subset, split, name, (first, second)))
    assert len({plan.name for plan in plans}) == len(plans)
    return plans


def _split_backgrounds(
    offered: Sequence[Background], config: MiniatureConfig
) -> dict[str, list[Background]]:
    """Backgrounds by split; no two splits share one."""
    fitting = [b for b in offered if not config.collection or b.collection == config.collection]
    if len(fitting) < len(SPLITS):
        known = sorted({b.collection for b in offered})
        raise ValueError(
            f"{len(fitting)} backgrounds are of the collection {config.collection!r} and three are "
            f"needed, one a split: choose another (there are {known}), or '' for all"
        )
    ordered = sorted(fitting, key=lambda b: b.id)
    ordered = [ordered[i] for i in np.random.default_rng(config.seed).permutation(len(ordered))]
    val = max(1, round(_BACKGROUND_SHARE["val"] * len(ordered)))
    test = max(1, round(_BACKGROUND_SHARE["test"] * len(ordered)))
    return {"val": ordered[:val], "test": ordered[val : val + test], "train": ordered[val + test :]}


def _clip_name(seed: int, subset: str, split: str, index: int) -> str:
    """Eleven characters like a YouTube id, but none: all begin with ``mini`` or ``-mini``."""
    hashed = hashlib.sha256(f"{seed} {subset} {split} {index}".encode()).digest()
    letters = base64.b32encode(hashed).decode().lower()
    if subset == "ms3":
        # Several clips of one video are numbered in MS3.
        return f"mini{letters[:7]}_{1 + index % 4}"
    # AVSBench has names that begin with a dash (247 of 4932), a trap for tools.
    return f"-mini{letters[:6]}" if index % _DASHED_EVERY == 0 else f"mini{letters[:7]}"


def _plan_clip(
    random: np.random.Generator,
    pools: Pools,
    config: MiniatureConfig,
    backgrounds: Sequence[Background],
    subset: str,
    split: str,
    name: str,
    classes: tuple[str, str],
) -> ClipPlan:
    background = _pick(random, backgrounds)
    light = _draw_light(random)
    cutouts: list[Object] = [_pick(random, pools.objects[c]) for c in classes]
    names = list(classes)
    if pools.silent and random.random() < config.distractors:
        cutouts.append(_pick(random, pools.silent))
        names.append("")
    ways = _draw_ways(random, cutouts, config.long_side)
    actors = tuple(
        Actor(
            class_name=class_name,
            asset=row.id,
            uri=row.uri,
            centres=centres,
            long_sides=long_sides,
            flip=bool(random.random() < 0.5),
            light=_scaled_light(light, random.uniform(0.93, 1.07)),
        )
        for row, class_name, (centres, long_sides) in zip(cutouts, names, ways, strict=True)
    )
    if subset == "s4":
        heard: list[tuple[bool, ...]] = [(True,) * FRAMES]
    else:
        heard = _draw_schedule(random)
    clips = [_pick(random, pools.clips[c]) for c in classes[: len(heard)]]
    tracks = tuple(
        Track(
            class_name=clip.class_name,
            clip=clip.id,
            uri=clip.uri,
            start=float(random.random()),
            gain_db=float(random.uniform(-8.0, 2.0)),
            seconds=seconds,
        )
        for clip, seconds in zip(clips, heard, strict=True)
        if any(seconds)
    )
    used = [background, *cutouts, *clips]
    return ClipPlan(
        subset=subset,
        split=split,
        name=name,
        category=classes[0] if subset == "s4" else "",
        background=background.uri,
        crop=(float(random.random()), float(random.random()), float(random.uniform(1.0, 1.6))),
        light=light,
        actors=tuple(actors[i] for i in random.permutation(len(actors))),
        tracks=tracks,
        noise_db=float(random.uniform(-50.0, -36.0)),
        seed=int(random.integers(1 << 31)),
        licences=tuple(sorted({row.licence for row in used if row.licence})),
    )


def _pick(random: np.random.Generator, rows: Sequence[Any]) -> Any:
    return rows[int(random.integers(len(rows)))]


def _draw_light(random: np.random.Generator) -> Light:
    """Light for a whole scene, from noon to dusk, warm or cold."""
    brightness, tint = random.uniform(0.65, 1.0), random.uniform(-0.14, 0.14)
    gain = (brightness * (1 + tint), brightness, brightness * (1 - tint))
    return Light(gain=gain, contrast=float(random.uniform(0.8, 1.05)))


def _scaled_light(light: Light, factor: float) -> Light:
    red, green, blue = light.gain
    return dataclasses.replace(light, gain=(red * factor, green * factor, blue * factor))


_Way = tuple[tuple[tuple[float, float], tuple[float, float]], tuple[float, float]]


def _draw_ways(
    random: np.random.Generator,
    cutouts: Sequence[Object],
    long_side: tuple[float, float],
) -> list[_Way]:
    """Ways on which the objects hide little of each other in any frame."""
    best: list[_Way] = []
    best_overlap = np.inf
    for _ in range(_TRIES):
        ways = [_draw_way(random, row, long_side) for row in cutouts]
        overlap = max(
            overlap_share(_planned_box(a, way_a, frame), _planned_box(b, way_b, frame))
            for frame in (0, FRAMES // 2, FRAMES - 1)
            for i, (a, way_a) in enumerate(zip(cutouts, ways, strict=True))
            for b, way_b in list(zip(cutouts, ways, strict=True))[:i]
        )
        if overlap < best_overlap:
            best, best_overlap = ways, overlap
        if overlap <= _MAX_OVERLAP:
            break
    return best


def _draw_way(random: np.random.Generator, row: Object, long_side: tuple[float, float]) -> _Way:
    low, high = (share * CANVAS for share in long_side)
    # A violin as long as a pig is high would hardly be seen: thin things are drawn longer.
    low = min(high, low * (max(row.width, row.height) / min(row.width, row.height)) ** 0.5)
    first = float(random.uniform(low, high))
    last = float(np.clip(first * random.uniform(0.84, 1.19), low, high))
    width, height = fit_size(row.width, row.height, round(max(first, last)))
    angle, length = random.uniform(0, 2 * np.pi), random.uniform(0.08, 0.3) * CANVAS
    # More to the side than up or down, as things go; a tenth may leave the picture.
    step = (length * np.cos(angle), 0.5 * length * np.sin(angle))
    start, end = [], []
    for size, move in zip((width, height), step, strict=True):
        edge = 0.4 * size
        begin = random.uniform(edge, CANVAS - edge)
        start.append(float(begin))
        end.append(float(np.clip(begin + move, edge, CANVAS - edge)))
    return ((start[0], start[1]), (end[0], end[1])), (first, last)


def _planned_box(row: Object, way: _Way, frame: int) -> Placement:
    (x, y), long_side = position(*way, frame)
    width, height = fit_size(row.width, row.height, round(long_side))
    return Placement(left=x - width / 2, top=y - height / 2, width=width, height=height)


def position(
    centres: tuple[tuple[float, float], tuple[float, float]],
    long_sides: tuple[float, float],
    frame: int,
) -> tuple[tuple[float, float], float]:
    """Centre and long side in one frame."""
    done = frame / (FRAMES - 1)
    (x0, y0), (x1, y1) = centres
    long_side = long_sides[0] + done * (long_sides[1] - long_sides[0])
    return (x0 + done * (x1 - x0), y0 + done * (y1 - y0)), long_side


def _draw_schedule(random: np.random.Generator) -> list[tuple[bool, ...]]:
    """For two objects, the seconds in which each is heard; at least one change among them."""
    states = ((True, False), (False, True), (True, True), (False, False))
    shares = (0.35, 0.35, 0.2, 0.1)
    while True:
        drawn = [states[int(random.choice(4, p=shares))]]
        for _ in range(FRAMES - 1):
            changes = random.random() < 0.55
            drawn.append(states[int(random.choice(4, p=shares))] if changes else drawn[-1])
        if len(set(drawn)) > 1:
            return [tuple(second[i] for second in drawn) for i in range(2)]
