"""Masks and label maps as they were published, brought to the corpus' form.

A mask in the corpus is 8-bit grey with 0 and 255, a label map 8-bit grey with the class index.
Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from infra import media
from synth.avsbench.files import File

CLASSES = 71

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GREY, _PALETTE = b"\x08\x00", 3
# Of a label map's pixels. The benchmark's own reader takes every colour that is no class for
# background; where there are more, it is no such label map.
_MOST_UNKNOWN = 0.01
_NO_CLASS = 255


def suffix(data: bytes, path: str) -> str:
    """``png`` or ``jpg``, by what the file is and not by its name."""
    if data.startswith(_PNG):
        return "png"
    if data.startswith(_JPEG):
        return "jpg"
    raise ValueError(f"unreadable: {path} is neither PNG nor JPEG")


def decoded(data: bytes, path: str) -> np.ndarray:
    """uint8 ``[H, W, 3]``; ValueError that begins with ``unreadable:``."""
    try:
        return media.decode_image(data)[..., :3]
    except ValueError as error:
        raise ValueError(f"unreadable: {path}: {error}") from None


def read_mask(
    data: bytes, file: File, size: tuple[int, ...] | None
) -> tuple[bytes, np.ndarray, str]:
    """The bytes for the corpus, the mask as bool ``[H, W]``, and what was odd about the file.

    The bytes are the file's own where it is 8-bit grey with 0 and 255. Files with 0 and 1, and
    palette files with black and one colour, say the same and are written so.

    Args:
        size: height and width that the mask must have; None for any.

    Raises:
        ValueError: it cannot be decoded, has another size, is coloured, or has other values.
    """
    path = file.path
    image_HW3 = decoded(data, path)
    _check_size("mask", path, image_HW3, size)
    is_png = data.startswith(_PNG)
    is_palette = is_png and data[25] == _PALETTE
    mask_HW = image_HW3[..., 0]
    if (image_HW3 != mask_HW[..., None]).any():
        inside_HW = np.asarray(image_HW3.any(axis=-1))
        colours = np.unique(image_HW3[inside_HW], axis=0)
        if not is_palette or len(colours) > 1:
            raise ValueError(f"mask: {path} is coloured where black and white are allowed")
        return media.encode_png(inside_HW), inside_HW, "palette mask: of black and one colour"
    values = {int(value) for value in np.unique(mask_HW)}
    inside_HW = np.asarray(mask_HW > 0)
    if values <= {0, 255}:
        if is_png and data[24:26] == _GREY:
            return data, inside_HW, ""
        odd = "palette mask: black and white" if is_palette else "mask form: not 8-bit grey"
        return media.encode_png(inside_HW), inside_HW, odd
    if values <= {0, 1}:
        return media.encode_png(inside_HW), inside_HW, "mask values: 0 and 1"
    shown = ", ".join(map(str, sorted(values)[:8])) + (", ..." if len(values) > 8 else "")
    raise ValueError(f"mask: {path} has the values {shown} where 0 and 255 are allowed")


def read_labels(data: bytes, file: File, size: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """A label map in the benchmark's colours as uint8 ``[H, W]`` of class indices.

    Args:
        size: height and width of its frame.

    Raises:
        ValueError: it cannot be decoded, has another size, or has colours of no class on more
            than 1% of its pixels.
    """
    image_HW3 = decoded(data, file.path)
    _check_size("label", file.path, image_HW3, size)
    index_HW = _class_of_colour()[_coded(image_HW3)]
    unknown_HW = index_HW == _NO_CLASS
    index_HW[unknown_HW] = 0
    share = float(unknown_HW.mean())
    if share > _MOST_UNKNOWN:
        raise ValueError(
            f"label: {file.path} has colours of no class on {share:.1%} of its pixels: the colours "
            "of AVSBench-semantic are expected"
        )
    return index_HW, f"label colours: {share:.2%} of pixels are of no class" if share else ""


def palette() -> np.ndarray:
    """The colour of each class, uint8 ``[71, 3]``.

    As in Pascal VOC: of a class' number, bits 0, 3, 6 become the upper bits of red, bits 1, 4, 7
    those of green, bits 2, 5, 8 those of blue.
    """
    number_K = np.arange(CLASSES)
    colours_K3 = np.zeros((CLASSES, 3), np.uint8)
    for bit in range(3):
        for channel in range(3):
            is_set_K = number_K >> (3 * bit + channel) & 1
            colours_K3[:, channel] |= (is_set_K << (7 - bit)).astype(np.uint8)
    return colours_K3


@cache
def _class_of_colour() -> np.ndarray:
    """uint8 ``[2**24]``, 16 MB: looking up is far quicker than searching."""
    classes = np.full(1 << 24, _NO_CLASS, np.uint8)
    classes[_coded(palette())] = np.arange(CLASSES)
    return classes


def _coded(colours: np.ndarray) -> np.ndarray:
    """One number a colour, int32."""
    wide = colours.astype(np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def _check_size(what: str, path: str, image_HW3: np.ndarray, size: tuple[int, ...] | None) -> None:
    if size is not None and image_HW3.shape[:2] != size:
        raise ValueError(f"{what}: {path} is {image_HW3.shape[:2]} and its frame {size} pixels")
