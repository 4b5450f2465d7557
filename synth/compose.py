"""Laying cut-outs on a background: the picture and what stays visible of each object.

Shapes: H, W pixels; C channels (3 RGB, 4 RGBA). Colours are uint8 outside this module and
float32 in [0, 255] inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

Picture: TypeAlias = np.ndarray | Image.Image
"""A uint8 array, or the same for Pillow. Whoever uses one often keeps it for Pillow, which copies
an array first: of a large picture that takes longer than scaling it."""

# A pixel belongs to an object where its alpha is at least a half.
_OPAQUE = 0.5


@dataclass(frozen=True, kw_only=True)
class Light:
    """A change of light: ``gain`` per colour channel, then ``contrast`` around mid grey."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a cut-out stands in the picture."""

    left: float
    """x of its left edge in pixels; may lie outside the picture."""
    top: float
    """y of its top edge in pixels."""
    width: int
    """Its width in pixels after scaling."""
    height: int
    """Its height in pixels after scaling."""
    flip: bool = False
    light: Light = Light()
    feather: float = 0.5
    """Standard deviation in pixels of the blur of its edge."""


def trim(cutout_HW4: np.ndarray) -> np.ndarray:
    """The cut-out without its empty margins.

    Raises:
        ValueError: nothing in it is opaque.
    """
    solid_HW = cutout_HW4[..., 3] >= 128
    if not solid_HW.any():
        raise ValueError("the cut-out is fully transparent")
    rows, columns = np.flatnonzero(solid_HW.any(1)), np.flatnonzero(solid_HW.any(0))
    return cutout_HW4[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fit(cutout_HW4: np.ndarray, long_side: int) -> tuple[int, int]:
    """``(width, height)`` of the cut-out scaled to a long side of ``long_side`` pixels."""
    return fit_size(cutout_HW4.shape[1], cutout_HW4.shape[0], long_side)


def fit_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """``(width, height)`` in pixels with the same aspect and the long side ``long_side``."""
    scale = long_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def apply_light(image_HWC: np.ndarray, light: Light) -> np.ndarray:
    """float32 ``[H, W, 3]`` under another light, within [0, 255]."""
    lit_HW3 = np.array(image_HWC[..., :3], np.float32, order="C")
    # In place, and along whole rows: new arrays for every step, and steps of three numbers, take
    # several times as long.
    rows = lit_HW3.reshape(len(lit_HW3), -1)
    rows *= np.tile(np.asarray(light.gain, np.float32), lit_HW3.shape[1])
    lit_HW3 -= 128.0
    lit_HW3 *= light.contrast
    lit_HW3 += 128.0
    return np.clip(lit_HW3, 0.0, 255.0, out=lit_HW3)


def light_table(light: Light) -> list[int]:
    """What each value of each channel becomes, for ``Image.point`` of a whole picture."""
    values_1K3 = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (1, 256, 3))
    return np.rint(apply_light(values_1K3, light)[0].T).astype(np.uint8).ravel().tolist()


def compose(
    background_HW3: np.ndarray, layers: Sequence[tuple[Picture, Placement]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Paint cut-outs over a background, the first one farthest away.

    Args:
        background_HW3: uint8 or float32 picture.
        layers: trimmed cut-outs, RGBA or ``premultiplied``, and their placements.

    Returns:
        the picture, uint8 ``[H, W, 3]``, and per layer what is visible of it, bool ``[H, W]``.
    """
    canvas_HW3 = background_HW3.astype(np.float32)
    visible: list[np.ndarray] = []
    for cutout, placement in layers:
        colour_HW3, alpha_HW = _scaled(cutout, placement)
        solid_HW = np.zeros(canvas_HW3.shape[:2], bool)
        rows, columns, own_rows, own_columns = _overlap(placement, alpha_HW.shape, solid_HW.shape)
        alpha = alpha_HW[own_rows, own_columns]
        under = canvas_HW3[rows, columns]
        change = colour_HW3[own_rows, own_columns] - under
        change *= np.repeat(alpha, 3, axis=1).reshape(change.shape)
        under += change
        solid_HW[rows, columns] = alpha >= _OPAQUE
        visible = [earlier & ~solid_HW for earlier in visible]
        visible.append(solid_HW)
    np.rint(np.clip(canvas_HW3, 0, 255, out=canvas_HW3), out=canvas_HW3)
    return canvas_HW3.astype(np.uint8), visible


def premultiplied(cutout: Picture) -> Image.Image:
    """An RGBA cut-out as it is scaled: what lies under full transparency is no picture."""
    image = _for_pillow(cutout)
    # Pillow copies what is so already.
    return image if image.mode == "RGBa" else image.convert("RGBa")


def _for_pillow(picture: Picture) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def _scaled(cutout: Picture, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Colour float32 ``[h, w, 3]`` and soft alpha float32 ``[h, w]`` at the placed size."""
    size = placement.width, placement.height
    picture = premultiplied(cutout).resize(size, Image.Resampling.BILINEAR).convert("RGBA")
    scaled_HW4 = np.asarray(picture)
    colour_HW3, alpha_HW = scaled_HW4[..., :3], scaled_HW4[..., 3].astype(np.float32) / 255.0
    if placement.feather > 0:
        # Pull the edge inwards as it softens, so that no halo of undefined colour appears.
        soft = picture.getchannel("A").filter(ImageFilter.GaussianBlur(placement.feather))
        alpha_HW = np.minimum(alpha_HW, np.asarray(soft, np.float32) / 255.0)
    if placement.flip:
        colour_HW3, alpha_HW = colour_HW3[:, ::-1], alpha_HW[:, ::-1]
    return apply_light(colour_HW3, placement.light), alpha_HW


def _overlap(
    placement: Placement, own: tuple[int, ...], canvas: tuple[int, ...]
) -> tuple[slice, slice, slice, slice]:
    """The rows and columns that a placed layer covers, in the canvas and in the layer."""
    top, left = round(placement.top), round(placement.left)
    y0, y1 = np.clip([top, top + own[0]], 0, canvas[0])
    x0, x1 = np.clip([left, left + own[1]], 0, canvas[1])
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def overlap_share(a: Placement, b: Placement) -> float:
    """Area of the two boxes' intersection as a share of the smaller box."""
    width = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    height = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    if width <= 0 or height <= 0:
        return 0.0
    return (width * height) / min(a.width * a.height, b.width * b.height)


def crop_background(
    picture: Picture, *, x: float, y: float, zoom: float, size: tuple[int, int]
) -> np.ndarray:
    """A stretch of an RGB picture as a background of ``size`` (height, width), uint8.

    Args:
        x, y: position of the crop, 0 (left, top) to 1 (right, bottom).
        zoom: 1 takes the largest crop of the right aspect, 2 half its width and height.
    """
    whole = _for_pillow(picture)
    width, height = whole.size
    scale = min(width / size[1], height / size[0]) / zoom
    crop_width, crop_height = size[1] * scale, size[0] * scale
    # Rounding must not push the box over an edge, however little.
    left, top = max(0.0, x * (width - crop_width)), max(0.0, y * (height - crop_height))
    box = (left, top, min(left + crop_width, width), min(top + crop_height, height))
    return np.asarray(whole.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))
