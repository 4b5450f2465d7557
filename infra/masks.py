"""Masks as COCO's run lengths: from masks, from polygons, and back.

pycocotools' C code trusts what it is given: a string that ends within a number is read and
written past its end, coordinates become ints unchecked, and runs may add up to anything. So
whatever comes from outside is checked here first.

Shapes: H, W height and width in pixels. Run lengths count pixels down the columns, and outside
and inside alternate, outside first.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from infra.media import MAX_PIXELS

_MAX_TEXT = 16 << 20
_MAX_POLYGONS = 5_000
# The outline is walked in steps of a fifth of a pixel with 16 bytes each: 160 MB at most.
_MAX_OUTLINE = 2_000_000
# Numbers in groups of 5 bits, low ones first; 32 marks a group that is followed. Six groups hold
# any difference of two runs in ``MAX_PIXELS``, and more would overflow the C code's int.
_CODED_RUNS = re.compile("(?:[P-o]{0,5}[0-O])+")


def encode_mask_rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths: ``{"size": [h, w], "counts": str}``."""
    from pycocotools import mask as coco_mask

    run_lengths = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(n) for n in mask_HW.shape], "counts": run_lengths["counts"].decode()}


def decode_mask_rle(run_lengths: dict[str, Any]) -> np.ndarray:
    """bool ``[H, W]`` from COCO's compressed run lengths.

    Raises:
        ValueError: they are no run lengths of a mask of that size.
    """
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode(_checked(run_lengths))).astype(bool)


def sample_mask_rle(
    run_lengths: dict[str, Any], rows_H: np.ndarray, columns_W: np.ndarray
) -> np.ndarray:
    """bool ``[H, W]``: what a mask says where these rows and columns of it cross.

    The same as ``decode_mask_rle(run_lengths)[np.ix_(rows_H, columns_W)]``, and of a photograph's
    mask twice as fast and more: nothing in between is decoded.

    Args:
        rows_H: whole numbers within the mask, none smaller than the one before.
        columns_W: whole numbers within the mask, in any order.

    Raises:
        ValueError: as for ``decode_mask_rle``.
    """
    edges = np.cumsum(_runs_in(run_lengths))
    edges_column, edges_row = np.divmod(edges, run_lengths["size"][0])
    kept, place_W = np.unique(columns_W, return_inverse=True)
    # A run ends behind all crossings in the columns before it and, where it ends in a column that
    # is kept, behind those of the rows above.
    before = np.searchsorted(kept, edges_column)
    is_kept = np.searchsorted(kept, edges_column, side="right") > before
    ends = before * len(rows_H) + is_kept * np.searchsorted(rows_H, edges_row)
    is_inside = np.arange(len(ends)) % 2 == 1
    return np.repeat(is_inside, np.diff(ends, prepend=0)).reshape(-1, len(rows_H))[place_W].T


def area(run_lengths: dict[str, Any]) -> int:
    """Pixels inside.

    Raises:
        ValueError: as for ``decode_mask_rle``.
    """
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(_checked(run_lengths)))


def bounding_box(run_lengths: dict[str, Any]) -> tuple[int, int, int, int]:
    """``(left, top, width, height)`` in pixels of what is inside; all 0 for an empty mask.

    Raises:
        ValueError: as for ``decode_mask_rle``.
    """
    from pycocotools import mask as coco_mask

    coded = _checked(run_lengths)
    if coco_mask.area(coded) == 0:
        return 0, 0, 0, 0
    left, top, width, height = (int(n) for n in coco_mask.toBbox(coded))
    return left, top, width, height


def rle_from_segmentation(segmentation: str, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of COCO's ``segmentation`` in a picture of ``height`` x ``width``.

    Args:
        segmentation: its JSON: a list of polygons ``[x0, y0, x1, y1, ...]`` in pixels, or
            ``{"counts": list or str, "size": [height, width]}``.

    Polygons may cross themselves and each other: the mask is all of them together. What lies
    outside the picture is cut off; a corner farther out than the picture is large is drawn in to
    there. Polygons of less than three corners enclose nothing and are left out.

    Raises:
        ValueError: begins with ``mask:``. It is no segmentation of that picture, it is empty, or
            it is larger than any real one.
    """
    _check_size(height, width)
    if len(segmentation) > _MAX_TEXT:
        raise ValueError(f"mask: its text is longer than the {_MAX_TEXT} characters allowed")
    try:
        shape = json.loads(segmentation)
    except (ValueError, RecursionError):
        raise ValueError("mask: it is no JSON") from None
    if isinstance(shape, list):
        run_lengths = _draw(shape, height, width)
    elif isinstance(shape, dict):
        if shape.get("size") != [height, width]:
            raise ValueError(f"mask: its size is not the picture's {height}x{width}")
        run_lengths = shape
        if isinstance(shape.get("counts"), list):
            run_lengths = _compress(shape["counts"], height, width)
    else:
        raise ValueError("mask: give polygons or run lengths")
    if area(run_lengths) == 0:
        raise ValueError("mask: it is empty")
    return {"size": [height, width], "counts": run_lengths["counts"]}


def _check_size(height: Any, width: Any) -> None:
    if not (type(height) is type(width) is int and height > 0 and width > 0):
        raise ValueError("mask: its height and width are no whole numbers above 0")
    if height * width > MAX_PIXELS:
        raise ValueError(f"mask: {height}x{width} pixels are more than the {MAX_PIXELS} allowed")


def _checked(run_lengths: dict[str, Any]) -> dict[str, Any]:
    """The run lengths as pycocotools takes them, once it is certain that it can."""
    _runs_in(run_lengths)
    return {"size": run_lengths["size"], "counts": run_lengths["counts"].encode()}


def _runs_in(run_lengths: dict[str, Any]) -> np.ndarray:
    """The run lengths as numbers that fill the mask, int64."""
    size, counts = run_lengths.get("size"), run_lengths.get("counts")
    if not (isinstance(size, list) and len(size) == 2):
        raise ValueError("mask: its size is not [height, width]")
    height, width = size
    _check_size(height, width)
    if not (isinstance(counts, str) and len(counts) <= _MAX_TEXT and _CODED_RUNS.fullmatch(counts)):
        raise ValueError("mask: its counts are no compressed run lengths")
    runs = _read_runs(counts.encode())
    _check_runs(runs, height, width)
    return runs


def _read_runs(coded: bytes) -> np.ndarray:
    """The run lengths in a well-formed string, int64 (maskApi.c, ``rleFrString``)."""
    groups = np.frombuffer(coded, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups < 32)
    starts = np.zeros_like(last)
    starts[1:] = last[:-1] + 1
    lengths = last + 1 - starts
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((groups & 31) << (5 * places), starts)
    # The highest bit of the last group is the sign.
    runs -= (groups[last] >> 4) << (5 * lengths)
    # From the fourth on, each is the difference to the one before the last.
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    # By the largest too: a sum of huge numbers could come around to anything.
    pixels = height * width
    if len(runs) == 0 or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise ValueError(f"mask: its run lengths do not fill {height}x{width} pixels")


def _compress(counts: list[Any], height: int, width: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if not all(type(n) is int and 0 <= n <= MAX_PIXELS for n in counts):
        raise ValueError("mask: its run lengths are no whole numbers within the picture")
    _check_runs(np.asarray(counts, np.int64), height, width)
    coded = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return {"size": [height, width], "counts": coded["counts"].decode()}


def _draw(polygons: list[Any], height: int, width: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if len(polygons) > _MAX_POLYGONS:
        raise ValueError(f"mask: it has more than the {_MAX_POLYGONS} polygons allowed")
    corners = [_corners(polygon, height, width) for polygon in polygons]
    drawn = [corners_K2 for corners_K2 in corners if len(corners_K2) >= 3]
    if not drawn:
        raise ValueError("mask: it is empty")
    outline = sum(
        np.abs(np.diff(corners_K2, axis=0, append=corners_K2[:1])).max(axis=1).sum() + 1
        for corners_K2 in drawn
    )
    if outline + sum(map(len, drawn)) > _MAX_OUTLINE:
        raise ValueError(f"mask: its outline is longer than the {_MAX_OUTLINE} pixels allowed")
    flat = [corners_K2.ravel().tolist() for corners_K2 in drawn]
    merged = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
    return {"size": [height, width], "counts": merged["counts"].decode()}


def _corners(polygon: Any, height: int, width: int) -> np.ndarray:
    """float64 ``[K, 2]`` of x and y, within one picture's size of the picture.

    Within that distance pycocotools leaves out columns that lie outside and cuts rows off at the
    border, true to a fifth of a pixel; much farther out its ints overflow.
    """
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise ValueError("mask: a polygon is no list of x and y in turn")
    if not all(type(n) in (int, float) for n in polygon):
        raise ValueError("mask: a polygon has corners that are no numbers")
    try:
        corners_K2 = np.asarray(polygon, np.float64).reshape(-1, 2)
    except OverflowError:
        raise ValueError("mask: a polygon has corners that are no finite numbers") from None
    if not np.isfinite(corners_K2).all():
        raise ValueError("mask: a polygon has corners that are no finite numbers")
    return corners_K2.clip((-width, -height), (2 * width, 2 * height))
