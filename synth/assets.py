"""The media that scenes are made from: read, checked against the catalog, decoded, kept a while.

Scenes of few assets use the same ones again and again, so each process keeps what it decoded last,
up to a number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, ParamSpec, TypeVar

import numpy as np
from cachetools import LRUCache, cached
from cachetools.keys import hashkey
from PIL import Image

from infra import masks, media, stopwatch, storage
from infra.storage_errors import Unreadable, refusable
from synth.compose import premultiplied
from synth.inspection import MAX_BYTES, file_digest
from synth.soundtrack import level, prepare, window
from synth.tables import Background, Clip, Object, locate

_CUTOUT_BYTES, _BACKGROUND_BYTES, _SOUND_BYTES = 256 << 20, 256 << 20, 64 << 20

Asset = Object | Clip | Background
P = ParamSpec("P")
Kept = TypeVar("Kept", np.ndarray, Image.Image)


class Unusable(ValueError):
    """A file that cannot be used any more, though the catalog accepted it."""

    def __init__(self, asset: Asset, reason: str) -> None:
        super().__init__(f"{asset.id} cannot be used: {reason}")
        self.asset = asset
        self.reason = reason


def _cache(size: int) -> Callable[[Callable[P, Kept]], Callable[P, Kept]]:
    """Keeps ``size`` bytes of what is decoded, by the content of its file."""

    def key(asset: Asset, roots: Mapping[str, str], *more: Any) -> Any:
        return hashkey(asset.file_sha256, asset.sha256, *more)

    store: Any = LRUCache(maxsize=size, getsizeof=_bytes_of)
    decorator: Any = cached(store, key=key, lock=Lock())
    return decorator


def _bytes_of(kept: np.ndarray | Image.Image) -> int:
    # Pillow keeps four bytes a pixel, of RGB too.
    return kept.nbytes if isinstance(kept, np.ndarray) else 4 * kept.width * kept.height


def _read(asset: Asset, roots: Mapping[str, str]) -> bytes:
    """The file, as the catalog saw it."""
    uri = locate(roots, asset.uri)
    changed = Unusable(asset, "changed: the file is not the one that the catalog looked at")
    with stopwatch.time("read"):
        try:
            with refusable(uri, "the file"):
                data = storage.read_bytes(uri, limit=MAX_BYTES)
        except FileNotFoundError:
            raise Unusable(asset, "missing: the file is gone since the catalog was made") from None
        except Unreadable as error:
            raise Unusable(asset, str(error)) from None
        except ValueError:
            # Larger than any that the catalog accepts, or a folder stands there.
            raise changed from None
        if file_digest(data) != asset.file_sha256:
            raise changed
    return data


def read_photograph(asset: Object, roots: Mapping[str, str]) -> Image.Image:
    """The photograph that an object is in, as it is stored, RGB."""
    picture = _decode_picture(asset, roots, upright=False)
    # Pillow copies what is so already.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _decode_picture(asset: Asset, roots: Mapping[str, str], *, upright: bool = True) -> Image.Image:
    data = _read(asset, roots)
    with stopwatch.time("decode"):
        try:
            return media.load_image(data, upright=upright)
        except ValueError as error:
            raise Unusable(asset, f"unreadable: {error}") from None


def mask_of(asset: Object) -> dict[str, Any]:
    """The run lengths (``infra.masks``) of what is marked as the object in its photograph."""
    return {"size": [asset.height, asset.width], "counts": asset.mask}


@_cache(_CUTOUT_BYTES)
def load_cutout(asset: Object, roots: Mapping[str, str]) -> Image.Image:
    """An object's picture, premultiplied; of one in a photograph just its box."""
    if not asset.natural:
        cutout = _decode_picture(asset, roots)
        assert cutout.mode == "RGBA", asset
        return premultiplied(cutout)
    box = (asset.left, asset.top, asset.right, asset.bottom)
    cutout = read_photograph(asset, roots).crop(box)
    mask_HW = masks.sample_mask_rle(
        mask_of(asset),
        np.arange(asset.top, asset.bottom),
        np.arange(asset.left, asset.right),
    )
    cutout.putalpha(Image.fromarray(mask_HW.astype(np.uint8) * 255))
    return premultiplied(cutout)


@_cache(_BACKGROUND_BYTES)
def load_background(asset: Background, roots: Mapping[str, str]) -> Image.Image:
    """A background's picture, RGB."""
    # A copy: what Pillow opened keeps its decoder, of WebP with another picture in it.
    return _decode_picture(asset, roots).convert("RGB")


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
