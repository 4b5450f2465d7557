"""LVIS and COCO with real photographs: the masks of a catalog are those that were drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infra import masks
from synth.looking import build_catalog
from synth.sources import Offer
from synth.sources.coco import CocoConfig
from synth.sources.lvis import LvisConfig
from tests.made_coco import (
    annotation,
    coco_json,
    coco_photograph,
    lvis_json,
    lvis_photograph,
    picture,
    write_tree,
)
from tests.made_sources import HEIGHT, WIDTH, Box, check_masks, ellipse, photograph, write_esc50

CAT, DOG = 2, 2  # LVIS's and COCO's number in the made files
SIZE = {"width": WIDTH, "height": HEIGHT}
# The first ends at the border of the photograph.
PLACES: tuple[Box, ...] = (
    (90, 60, WIDTH, HEIGHT),
    (4, 6, 50, 40),
    (60, 8, 84, 50),
    (6, 50, 40, 90),
)


def outline(box: Box) -> list[float]:
    """The polygon along the edges of an ellipse's pixels: x and y in turn."""
    mask_HW = ellipse(box)
    columns = np.flatnonzero(mask_HW.any(0))
    tops = mask_HW.argmax(0)[columns]
    bottoms = HEIGHT - mask_HW[::-1].argmax(0)[columns]
    above = [(x + side, y) for x, y in zip(columns, tops, strict=True) for side in (0, 1)]
    below = [(x + side, y) for x, y in zip(columns, bottoms, strict=True) for side in (0, 1)]
    return [float(n) for corner in (*above, *reversed(below)) for n in corner]


def runs(box: Box) -> dict[str, Any]:
    """COCO's run lengths as it writes them for crowds: a list, down the columns."""
    flat = ellipse(box).flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def check(folder: Path, name: str, source: Any, drawn: dict[str, Box]) -> None:
    offer = Offer(None, {name: source, "esc50": write_esc50(folder / "esc50")})
    catalog = build_catalog(offer.roots, offer)
    assert list(catalog.refused) == []
    check_masks(catalog, drawn)


def test_polygons_of_lvis_are_the_masks_that_were_drawn(tmp_path: Path) -> None:
    marks = [annotation(i, 42, CAT, [outline(box)]) for i, box in enumerate(PLACES)]
    content = lvis_json([lvis_photograph(42, **SIZE)], marks)
    write_tree(tmp_path, "lvis_v1_train.json", content, picture(42))
    (tmp_path / picture(42)).write_bytes(photograph(1, [("cat", box) for box in PLACES]))
    drawn = {f"lvis:lvis_v1_train-{i}": box for i, box in enumerate(PLACES)}
    check(tmp_path, "lvis", LvisConfig(folder=str(tmp_path)), drawn)


def test_polygons_and_run_lengths_of_coco_are_the_masks_that_were_drawn(tmp_path: Path) -> None:
    shapes = [
        [outline(PLACES[0])],
        masks.encode_mask_rle(ellipse(PLACES[1])),
        runs(PLACES[2]),
        [outline(PLACES[3])],
    ]
    marks = [annotation(i, 9, DOG, shape) for i, shape in enumerate(shapes)]
    marks[2]["iscrowd"] = 1
    content = coco_json([coco_photograph(9, **SIZE)], marks)
    write_tree(tmp_path, "instances_train2017.json", content, picture(9))
    (tmp_path / picture(9)).write_bytes(photograph(2, [("dog", box) for box in PLACES]))
    drawn = {f"coco:instances_train2017-{i}": box for i, box in enumerate(PLACES)}
    check(tmp_path, "coco", CocoConfig(folder=str(tmp_path)), drawn)
