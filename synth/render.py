"""Carrying a sample's plan out: one spec -> the bytes of its members.

Nothing is drawn here. Assets are decoded once per process and kept, since a scene uses few of
many and the same ones come again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from infra import media, storage
from infra.corpus import Sample
from synth.compose import apply_light, compose, crop_background
from synth.plan import SampleSpec
from synth.soundtrack import mix, prepare, samples_of, stretch

_MAX_ASSET_BYTES = 64 << 20


@lru_cache(maxsize=512)
def load_cutout(uri: str) -> np.ndarray:
    """An object's picture, uint8 ``[H, W, 4]``."""
    with _named(uri):
        image = media.decode_image(storage.read_bytes(uri, limit=_MAX_ASSET_BYTES))
        if image.shape[2] != 4:
            raise ValueError("a cut-out needs an alpha channel and this has none")
        return image


@lru_cache(maxsize=64)
def load_background(uri: str) -> np.ndarray:
    """A background's picture, uint8 ``[H, W, 3]``."""
    with _named(uri):
        return media.decode_image(storage.read_bytes(uri, limit=_MAX_ASSET_BYTES))[..., :3]


@lru_cache(maxsize=512)
def load_sound(uri: str) -> np.ndarray:
    """A clip at 16 kHz without its silent ends, at the reference loudness, float32 ``[N]``."""
    with _named(uri):
        wave_N, rate = media.decode_audio(storage.read_bytes(uri, limit=_MAX_ASSET_BYTES))
        return prepare(media.resample(wave_N, rate))


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Say which file it is that cannot be used."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{uri} cannot be used: {error}") from None


def render(spec: SampleSpec, media_uri: str, *, kind: str) -> Sample:
    """Make a sample; ``media_uri`` is the folder that the catalog's URIs are relative to."""
    image_HW3, objects, mask_HW = _render_picture(spec, media_uri)
    sound_N = _render_sound(spec, media_uri)
    meta: dict[str, Any] = {
        "key": spec.key,
        "kind": kind,
        "split": spec.split,
        "scene": spec.scene,
        "classes": sorted(sound.class_name for sound in spec.sounds),
        "frames": 1,
        "objects": [objects],
        "background": spec.background.id,
        "sound": [sound.id for sound in spec.sounds],
        "audio_seconds": spec.seconds,
    }
    members = {
        "frame0.jpg": media.encode_jpeg(image_HW3, quality=spec.jpeg_quality),
        "mask0.png": media.encode_png(mask_HW),
        "audio.flac": media.encode_flac(sound_N),
    }
    return Sample(key=spec.key, members=members, meta=meta)


def _render_picture(
    spec: SampleSpec, media_uri: str
) -> tuple[np.ndarray, list[dict[str, Any]], np.ndarray]:
    """The picture, its objects with what is visible of each, and the mask of what sounds."""
    x, y, zoom = spec.background_crop
    size = (spec.image_size, spec.image_size)
    ground = load_background(storage.join(media_uri, spec.background.uri))
    background_HW3 = crop_background(ground, x=x, y=y, zoom=zoom, size=size)
    if spec.background_flip:
        background_HW3 = background_HW3[:, ::-1]
    lit_HW3 = apply_light(background_HW3, spec.background_light)
    layers = [
        (load_cutout(storage.join(media_uri, placed.uri)), placed.placement)
        for placed in spec.objects
    ]
    image_HW3, visible = compose(lit_HW3, layers)
    mask_HW = np.zeros(size, bool)
    objects = []
    for placed, seen_HW in zip(spec.objects, visible, strict=True):
        if placed.sounding:
            mask_HW |= seen_HW
        objects.append(
            {
                "class": placed.class_name,
                "asset": placed.id,
                "sounding": placed.sounding,
                "visible": media.encode_mask_rle(seen_HW),
            }
        )
    return image_HW3, objects, mask_HW


def _render_sound(spec: SampleSpec, media_uri: str) -> np.ndarray:
    samples = samples_of(spec.seconds)
    tracks = []
    for sound in spec.sounds:
        wave_N = load_sound(storage.join(media_uri, sound.uri))
        tracks.append((stretch(wave_N, samples, start=sound.start), sound.gain_db))
    return mix(tracks, samples, noise_db=spec.noise_db, seed=spec.noise_seed)
