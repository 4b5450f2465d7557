"""Pictures for people: a mask laid over its frame, and sheets that compare answers.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOUR = (255, 64, 48)
OPACITY = 0.5
CELL = 160
MARGIN = 8
CAPTION = 16
BACKGROUND = (250, 250, 250)
INK = (20, 20, 20)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One frame of a contact sheet with the truth and two answers."""

    caption: str
    """What sounds."""
    image_HW3: np.ndarray
    truth_HW: np.ndarray
    predicted_HW: np.ndarray
    """The mask with the frame's own sound."""
    swapped_HW: np.ndarray
    """The mask with another sound."""
    swapped_caption: str
    """What sounds there."""


def overlay(
    image_HW3: np.ndarray, mask_HW: np.ndarray, *, colour: tuple[int, int, int] = COLOUR
) -> np.ndarray:
    """The picture with the mask tinted over it and its border drawn, uint8 ``[H, W, 3]``.

    Args:
        image_HW3: uint8.
        mask_HW: bool, of the same height and width.

    Raises:
        ValueError: the sizes differ.
    """
    if image_HW3.shape[:2] != mask_HW.shape or image_HW3.shape[2:] != (3,):
        raise ValueError(
            "overlay expects a picture [H, W, 3] and a mask [H, W] of one size, "
            f"got {list(image_HW3.shape)} and {list(mask_HW.shape)}"
        )
    inside_HW = mask_HW.astype(bool)
    result_HW3 = image_HW3.astype(np.float32)
    tint_3 = np.array(colour, np.float32)
    result_HW3[inside_HW] = (1 - OPACITY) * result_HW3[inside_HW] + OPACITY * tint_3
    result_HW3[_border(inside_HW)] = tint_3
    return np.rint(result_HW3).astype(np.uint8)


def _border(inside_HW: np.ndarray) -> np.ndarray:
    """Pixels of the mask that touch one outside of it, or the frame's edge."""
    padded = np.pad(inside_HW, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside_HW & ~surrounded


def contact_sheet(rows: Sequence[Row]) -> np.ndarray:
    """One line a frame: picture, truth, prediction, prediction with another sound.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        ValueError: there is no row to show.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one frame")
    titles = ("picture", "truth", "prediction", "with another sound")
    width = MARGIN + (CELL + MARGIN) * len(titles)
    height = MARGIN + CAPTION + (CELL + CAPTION + MARGIN) * len(rows)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_left(column), MARGIN // 2), title, fill=INK)
    for number, row in enumerate(rows):
        top = MARGIN + CAPTION + (CELL + CAPTION + MARGIN) * number
        cells = (
            (row.image_HW3, f"sound: {row.caption}"),
            (overlay(row.image_HW3, row.truth_HW), ""),
            (overlay(row.image_HW3, row.predicted_HW), f"IoU {_iou(row.predicted_HW, row):.2f}"),
            (overlay(row.image_HW3, row.swapped_HW), f"sound: {row.swapped_caption}"),
        )
        for column, (image_HW3, caption) in enumerate(cells):
            sheet.paste(_fitted(image_HW3), (_left(column), top))
            draw.text((_left(column), top + CELL + 2), _shortened(draw, caption), fill=INK)
    return np.asarray(sheet)


def _left(column: int) -> int:
    return MARGIN + (CELL + MARGIN) * column


def _fitted(image_HW3: np.ndarray) -> Image.Image:
    """The picture, its shape kept, in the middle of a cell."""
    picture = Image.fromarray(image_HW3)
    scale = CELL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height))
    cell = Image.new("RGB", (CELL, CELL), BACKGROUND)
    cell.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return cell


def _shortened(draw: ImageDraw.ImageDraw, text: str) -> str:
    if draw.textlength(text) <= CELL:
        return text
    while text and draw.textlength(text + "...") > CELL:
        text = text[:-1]
    return text + "..."


def _iou(mask_HW: np.ndarray, row: Row) -> float:
    """1 where both are empty: nothing was to be found and nothing was."""
    union = int((mask_HW | row.truth_HW).sum())
    return int((mask_HW & row.truth_HW).sum()) / union if union else 1.0
