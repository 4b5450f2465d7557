"""The media that scenes are made from: read, checked against the catalog, decoded, kept a while.

Scenes of few assets use the same ones again and again, so each process keeps what it decoded last,
up to a number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, ParamSpec

import numpy as np
from cachetools import LRUCache, cached
from cachetools.keys import hashkey

from infra import masks, media, stopwatch, storage
from synth.inspection import MAX_BYTES, file_digest
from synth.soundtrack import level, prepare, window
from synth.tables import Background, Clip, Object, locate

_CUTOUT_BYTES, _BACKGROUND_BYTES, _SOUND_BYTES = 256 << 20, 256 << 20, 64 << 20

Asset = Object | Clip | Background
P = ParamSpec("P")


class Unusable(ValueError):
    """A file that cannot be used any more, though the catalog accepted it."""

    def __init__(self, asset: Asset, reason: str) -> None:
        super().__init__(f"{asset.id} cannot be used: {reason}")
        self.asset = asset
        self.reason = reason


def _cache(size: int) -> Callable[[Callable[P, np.ndarray]], Callable[P, np.ndarray]]:
    """Keeps ``size`` bytes of arrays by the content of their file and the way it is read."""

    def key(asset: Asset, roots: Mapping[str, str], *more: Any) -> Any:
        return hashkey(asset.file_sha256, asset.sha256, *more)

    store: Any = LRUCache(maxsize=size, getsizeof=lambda array: array.nbytes)
    decorator: Any = cached(store, key=key, lock=Lock())
    return decorator


def _read(asset: Asset, roots: Mapping[str, str]) -> bytes:
    """The file, as the catalog saw it."""
    with stopwatch.time("read"):
        try:
            data = storage.read_bytes(locate(roots, asset.uri), limit=MAX_BYTES)
        except FileNotFoundError:
            raise Unusable(asset, "missing: the file is gone since the catalog was made") from None
        if file_digest(data) != asset.file_sha256:
            raise Unusable(asset, "changed: the file is not the one that the catalog looked at")
    return data


def read_photograph(asset: Object, roots: Mapping[str, str]) -> np.ndarray:
    """The photograph that an object is in, as it is stored, uint8 ``[H, W, 3]``."""
    data = _read(asset, roots)
    with stopwatch.time("decode"):
        try:
            return media.decode_image(data, upright=False)[..., :3]
        except ValueError as error:
            raise Unusable(asset, f"unreadable: {error}") from None


def mask_of(asset: Object) -> np.ndarray:
    """What is marked as the object in its photograph, bool ``[H, W]``."""
    return masks.decode_mask_rle({"size": [asset.height, asset.width], "counts": asset.mask})


@_cache(_CUTOUT_BYTES)
def load_cutout(asset: Object, roots: Mapping[str, str]) -> np.ndarray:
    """An object's picture, uint8 ``[h, w, 4]``; of one in a photograph just its box."""
    if asset.natural:
        image_HW3 = read_photograph(asset, roots)
        alpha_HW = mask_of(asset).astype(np.uint8) * 255
        whole_HW4 = np.dstack([image_HW3, alpha_HW])
        box = whole_HW4[asset.top : asset.bottom, asset.left : asset.right]
        return np.ascontiguousarray(box)
    data = _read(asset, roots)
    with stopwatch.time("decode"):
        try:
            image = media.decode_image(data)
        except ValueError as error:
            raise Unusable(asset, f"unreadable: {error}") from None
    assert image.shape[2] == 4, asset
    return image


@_cache(_BACKGROUND_BYTES)
def load_background(asset: Background, roots: Mapping[str, str]) -> np.ndarray:
    """A background's picture, uint8 ``[H, W, 3]``."""
    data = _read(asset, roots)
    with stopwatch.time("decode"):
        try:
            return media.decode_image(data)[..., :3]
        except ValueError as error:
            raise Unusable(asset, f"unreadable: {error}") from None


@_cache(_SOUND_BYTES)
def load_sound(asset: Clip, roots: Mapping[str, str]) -> np.ndarray:
    """A clip at 16 kHz without its silent ends, at the reference loudness, float32 ``[N]``."""
    return prepare(_decode_sound(asset, roots, None))


def read_loudest(
    asset: Clip, roots: Mapping[str, str], *, seconds: float, start: float
) -> np.ndarray:
    """``seconds`` of a longer clip around its loudest one at the reference loudness.

    Nothing else of the file is decoded. ``start``: where among the stretches that hold the loudest
    second, 0 to 1.
    """
    begin = window(asset, seconds, start)
    return level(_decode_sound(asset, roots, (begin, begin + seconds)))


def _decode_sound(
    asset: Clip, roots: Mapping[str, str], seconds: tuple[float, float] | None
) -> np.ndarray:
    data = _read(asset, roots)
    with stopwatch.time("decode"):
        try:
            wave_N, rate = media.decode_audio(data, seconds=seconds)
        except ValueError as error:
            raise Unusable(asset, f"unreadable: {error}") from None
        return media.resample(wave_N, rate)
