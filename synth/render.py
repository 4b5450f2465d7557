"""Carrying a sample's plan out: one spec -> the bytes of its members. Nothing is drawn here.

Shapes: H, W height and width in pixels; N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

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

# Samples planned, and their masks read, at once: it takes half as long where the pictures and
# sounds of one do not push out of the processor's cache what that needs for the next.
_AHEAD = 32


class TooLittleVisible(ValueError):
    """Less of an object is visible than the recipe asks for."""


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
    for begin in range(0, len(numbers), _AHEAD):
        plans = [partial(plan, number=number) for number in numbers[begin : begin + _AHEAD]]
        specs = [plan() for plan in plans]
        marks = [_marks_of(spec, recipe.min_mask_area) for spec in specs]
        for ahead in zip(specs, marks, plans, strict=True):
            yield _made(*ahead, roots, recipe.min_mask_area)


def _marks_of(spec: SampleSpec, min_mask_area: float) -> Marks | None:
    """What a natural scene shows, if it is enough: that is known before any file is read."""
    if isinstance(spec, NaturalSpec):
        with suppress(TooLittleVisible):
            return _natural_marks(spec, min_mask_area)
    return None


def _made(
    spec: SampleSpec,
    marks: Marks | None,
    plan_anew: Callable[..., SampleSpec],
    roots: Mapping[str, str],
    min_mask_area: float,
) -> Sample | Refused:
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            spec, marks = plan_anew(attempt=attempt), None
        try:
            return render(spec, roots, kind=KIND, min_mask_area=min_mask_area, marks=marks)
        except TooLittleVisible as error:
            reason = str(error)
        except Unusable as error:
            return Refused(id=error.asset.id, source=error.asset.source, reason=error.reason)
    return Refused(id=spec.key, source="scene", reason=reason)


def render(
    spec: SampleSpec,
    roots: Mapping[str, str],
    *,
    kind: str,
    min_mask_area: float = 0.0,
    marks: Marks | None = None,
) -> Sample:
    """Make a sample.

    Args:
        roots: the folders that the catalog's URIs start from.
        min_mask_area: smallest share of the picture that must be visible of each object that has
            a class.
        marks: of a natural scene, where they are known already.

    Raises:
        TooLittleVisible: less of one is.
        synth.assets.Unusable: a file is not what the catalog saw, or gone.
    """
    image: np.ndarray | Image.Image
    if isinstance(spec, NaturalSpec):
        objects, mask_HW = marks or _natural_marks(spec, min_mask_area)
        image = _natural_picture(spec, roots)
    else:
        image, (objects, mask_HW) = _composite_picture(spec, roots, min_mask_area)
    sound_N = _sound(spec, roots)
    on_screen = [sound for sound in spec.sounds if sound.on_screen]
    meta: dict[str, Any] = {
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
    with stopwatch.time("encode"):
        members = {
            "frame0.jpg": media.encode_jpeg(image, quality=spec.jpeg_quality),
            "mask0.png": media.encode_png(mask_HW),
            "audio.flac": media.encode_flac(sound_N),
        }
    return Sample(key=spec.key, members=members, meta=meta)


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
