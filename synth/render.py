"""Carrying a sample's plan out: one spec -> the bytes of its members. Nothing is drawn here.

Shapes: H, W height and width in pixels; N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from infra import masks, media, stopwatch
from infra.corpus import Refused, Sample
from synth.assets import (
    Unusable,
    load_background,
    load_cutout,
    load_sound,
    mask_of,
    read_loudest,
    read_photograph,
)
from synth.compose import apply_light, compose, crop_background, light_table
from synth.plan import ATTEMPTS, SampleSpec, plan_sample
from synth.plan_composite import CompositeSpec
from synth.plan_natural import NaturalSpec
from synth.plan_sound import PlacedSound
from synth.pools import Pools
from synth.recipe import Recipe
from synth.soundtrack import loudness_db, mix, samples_of, stretch

KIND = "synthetic"
"""Of the corpora that are made here."""


Marks = tuple[list[dict[str, Any]], np.ndarray]
"""What is visible of each object, and the mask of what sounds."""

T = TypeVar("T")

# Samples made together, one kind of work after the other: it takes less time where what one needs,
# its code too, does not push out of the processor's cache what the next goes on with.
_TOGETHER = 32


class TooLittleVisible(ValueError):
    """Less of an object is visible than the recipe asks for."""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A sample as it looks."""

    spec: SampleSpec
    image: np.ndarray | Image.Image
    marks: Marks


def make_sample(
    pools: Pools, recipe: Recipe, roots: Mapping[str, str], seed: int, split: str, number: int
) -> Sample | Refused:
    """Plan and render one sample; what cannot be used is refused by name."""
    return next(make_samples(pools, recipe, roots, seed, split, (number,)))


def make_samples(
    pools: Pools,
    recipe: Recipe,
    roots: Mapping[str, str],
    seed: int,
    split: str,
    numbers: Sequence[int],
) -> Iterator[Sample | Refused]:
    """Plan and render samples, each as ``make_sample`` does."""
    plan = partial(plan_sample, pools, recipe, seed=seed, split=split)
    for begin in range(0, len(numbers), _TOGETHER):
        plans = [partial(plan, number=number) for number in numbers[begin : begin + _TOGETHER]]
        specs = [plan() for plan in plans]
        marks = [_marks_ahead(spec, recipe.min_mask_area) for spec in specs]
        seen = [
            _seen(*ahead, roots, recipe.min_mask_area)
            for ahead in zip(specs, marks, plans, strict=True)
        ]
        heard = [
            scene if isinstance(scene, Refused) else _or_refused(_sound, scene.spec, roots)
            for scene in seen
        ]
        made = _encoded(
            [
                (scene, sound_N)
                for scene, sound_N in zip(seen, heard, strict=True)
                if isinstance(scene, _Scene) and not isinstance(sound_N, Refused)
            ],
            kind=KIND,
        )
        for outcome in heard:
            yield outcome if isinstance(outcome, Refused) else next(made)


def _marks_ahead(spec: SampleSpec, min_mask_area: float) -> Marks | None:
    """What a natural scene shows, if it is enough: that is known before any file is read."""
    if isinstance(spec, NaturalSpec):
        with suppress(TooLittleVisible):
            return _natural_marks(spec, min_mask_area)
    return None


def _seen(
    spec: SampleSpec,
    marks: Marks | None,
    plan_anew: Callable[..., SampleSpec],
    roots: Mapping[str, str],
    min_mask_area: float,
) -> _Scene | Refused:
    """The scene, drawn anew as often as too little of it is visible."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            spec, marks = plan_anew(attempt=attempt), None
        try:
            return _or_refused(_draw, spec, roots, min_mask_area, marks)
        except TooLittleVisible as error:
            reason = str(error)
    return Refused(id=spec.key, source="scene", reason=reason)


def _or_refused(work: Callable[..., T], *args: Any) -> T | Refused:
    try:
        return work(*args)
    except Unusable as error:
        return Refused(id=error.asset.id, source=error.asset.source, reason=error.reason)


def render(
    spec: SampleSpec, roots: Mapping[str, str], *, kind: str, min_mask_area: float = 0.0
) -> Sample:
    """Make a sample.

    Args:
        roots: the folders that the catalog's URIs start from.
        min_mask_area: smallest share of the picture that must be visible of each object that has
            a class.

    Raises:
        TooLittleVisible: less of one is.
        synth.assets.Unusable: a file is not what the catalog saw, or gone.
    """
    scene = _draw(spec, roots, min_mask_area)
    return next(_encoded([(scene, _sound(spec, roots))], kind=kind))


def _draw(
    spec: SampleSpec, roots: Mapping[str, str], min_mask_area: float, marks: Marks | None = None
) -> _Scene:
    """The scene; ``marks`` of a natural one, where they are known already."""
    image: np.ndarray | Image.Image
    if isinstance(spec, NaturalSpec):
        marks = marks or _natural_marks(spec, min_mask_area)
        image = _natural_picture(spec, roots)
    else:
        image, marks = _composite_picture(spec, roots, min_mask_area)
    return _Scene(spec=spec, image=image, marks=marks)


def _encoded(made: Sequence[tuple[_Scene, np.ndarray]], *, kind: str) -> Iterator[Sample]:
    """The samples of some scenes and their sounds."""
    with stopwatch.time("encode"):
        frames = [media.encode_jpeg(s.image, quality=s.spec.jpeg_quality) for s, _ in made]
        pictures = [media.encode_png(scene.marks[1]) for scene, _ in made]
        sounds = [media.encode_flac(sound_N) for _, sound_N in made]
    for (scene, sound_N), *members in zip(made, frames, pictures, sounds, strict=True):
        yield Sample(
            key=scene.spec.key,
            members=dict(zip(("frame0.jpg", "mask0.png", "audio.flac"), members, strict=True)),
            meta=_meta(scene, sound_N, kind),
        )


def _meta(scene: _Scene, sound_N: np.ndarray, kind: str) -> dict[str, Any]:
    spec, (objects, mask_HW) = scene.spec, scene.marks
    on_screen = [sound for sound in spec.sounds if sound.on_screen]
    return {
        "key": spec.key,
        "kind": kind,
        "split": spec.split,
        "scene": spec.scene,
        "classes": sorted(sound.class_name for sound in on_screen),
        "off_screen": sorted(s.class_name for s in spec.sounds if not s.on_screen),
        "frames": 1,
        "objects": [objects],
        "background": (
            spec.photograph.uri if isinstance(spec, NaturalSpec) else spec.background.id
        ),
        "sound": [sound.id for sound in spec.sounds],
        "audio_seconds": spec.seconds,
        "mask_area": round(_share(mask_HW), 6),
        "loudness_db": round(loudness_db(sound_N), 3),
    }


def _composite_picture(
    spec: CompositeSpec, roots: Mapping[str, str], min_mask_area: float
) -> tuple[np.ndarray, Marks]:
    x, y, zoom = spec.background_crop
    size = (spec.image_size, spec.image_size)
    ground = load_background(spec.background, roots)
    cutouts = [load_cutout(placed.asset, roots) for placed in spec.objects]
    with stopwatch.time("compose"):
        background_HW3 = crop_background(ground, x=x, y=y, zoom=zoom, size=size)
        if spec.background_flip:
            background_HW3 = background_HW3[:, ::-1]
        lit_HW3 = apply_light(background_HW3, spec.background_light)
        layers = [(c, p.placement) for c, p in zip(cutouts, spec.objects, strict=True)]
        image_HW3, visible = compose(lit_HW3, layers)
        shown = [
            (placed.class_name, placed.id, placed.sounding, seen_HW)
            for placed, seen_HW in zip(spec.objects, visible, strict=True)
        ]
        return image_HW3, _marks(shown, size, min_mask_area)


def _natural_picture(spec: NaturalSpec, roots: Mapping[str, str]) -> Image.Image:
    photograph = read_photograph(spec.photograph, roots)
    with stopwatch.time("compose"):
        size = (spec.image_size, spec.image_size)
        scaled = photograph.resize(size, Image.Resampling.BILINEAR, box=spec.crop)
        if spec.flip:
            scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return scaled.point(light_table(spec.light))


def _natural_marks(spec: NaturalSpec, min_mask_area: float) -> Marks:
    with stopwatch.time("compose"):
        left, top, right, bottom = spec.crop
        # What each mask says at the centre of each pixel, as AVSBench's masks are resized.
        centres = (np.arange(spec.image_size) + 0.5) / spec.image_size
        columns = (left + centres * (right - left)).astype(int)
        rows = (top + centres * (bottom - top)).astype(int)
        if spec.flip:
            columns = columns[::-1]
        shown = []
        for marked in spec.objects:
            seen_HW = masks.sample_mask_rle(mask_of(marked.asset), rows, columns)
            shown.append((marked.asset.class_name, marked.asset.id, marked.sounding, seen_HW))
        return _marks(shown, (spec.image_size, spec.image_size), min_mask_area)


def _marks(
    shown: list[tuple[str, str, bool, np.ndarray]], size: tuple[int, int], min_mask_area: float
) -> Marks:
    # Masks that come from run lengths lie in memory column by column: so does what joins them.
    mask_HW = np.zeros_like(shown[0][3]) if shown else np.zeros(size, bool)
    seen: dict[str, np.ndarray] = {}
    objects = []
    for class_name, asset, sounding, visible_HW in shown:
        if sounding:
            mask_HW |= visible_HW
        if class_name:
            seen[class_name] = seen.get(class_name, False) | visible_HW
        objects.append(
            {
                "class": class_name,
                "asset": asset,
                "sounding": sounding,
                "visible": masks.encode_mask_rle(visible_HW),
            }
        )
    for class_name, seen_HW in seen.items():
        if _share(seen_HW) < min_mask_area:
            raise TooLittleVisible(
                f"mask: {_share(seen_HW):.4f} of the picture shows {class_name}, less than "
                f"min_mask_area {min_mask_area}"
            )
    return objects, mask_HW


def _share(mask_HW: np.ndarray) -> float:
    """Of the picture that is inside."""
    return np.count_nonzero(mask_HW) / mask_HW.size


def _sound(spec: SampleSpec, roots: Mapping[str, str]) -> np.ndarray:
    samples = samples_of(spec.seconds)
    tracks = [(_track(sound, spec, roots), sound.gain_db) for sound in spec.sounds]
    with stopwatch.time("compose"):
        return mix(tracks, samples, noise_db=spec.noise_db, seed=spec.noise_seed)


def _track(sound: PlacedSound, spec: SampleSpec, roots: Mapping[str, str]) -> np.ndarray:
    samples = samples_of(spec.seconds)
    if spec.stretch == "loudest" and sound.asset.seconds > spec.seconds:
        wave_N = read_loudest(sound.asset, roots, seconds=spec.seconds, start=sound.start)
        return stretch(wave_N, samples, start=0.0)
    return stretch(load_sound(sound.asset, roots), samples, start=sound.start)
