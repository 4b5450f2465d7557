"""Run lengths give masks back, and no segmentation from outside reaches C code unchecked."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from infra import masks

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]


def sampled(coded: dict[str, Any]) -> np.ndarray:
    return masks.sample_mask_rle(coded, np.arange(4), np.arange(4))


READERS = (masks.decode_mask_rle, masks.area, masks.bounding_box, sampled)


def mask_of(segmentation: Any, height: int = 10, width: int = 12) -> np.ndarray:
    coded = masks.rle_from_segmentation(json.dumps(segmentation), height, width)
    return masks.decode_mask_rle(coded)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_run_lengths_give_the_mask_back(share: float) -> None:
    mask_HW = np.random.default_rng(1).random((33, 17)) < share
    coded = masks.encode_mask_rle(mask_HW)
    assert coded["size"] == [33, 17] and isinstance(coded["counts"], str)
    assert np.array_equal(masks.decode_mask_rle(coded), mask_HW)


def test_a_sampled_mask_is_the_whole_one_at_those_rows_and_columns() -> None:
    for seed in range(200):
        chance = np.random.default_rng(seed)
        height, width = chance.integers(1, 40, 2)
        mask_HW = chance.random((height, width)) < chance.choice([0.0, 0.05, 0.5, 1.0])
        # Fewer than there are, or the same ones again and again.
        rows_H = np.sort(chance.integers(0, height, chance.integers(1, 80)))
        columns_W = chance.integers(0, width, chance.integers(1, 80))
        sampled_HW = masks.sample_mask_rle(masks.encode_mask_rle(mask_HW), rows_H, columns_W)
        assert sampled_HW.dtype == np.bool_
        assert np.array_equal(sampled_HW, mask_HW[np.ix_(rows_H, columns_W)])


def test_area_and_box_are_those_of_the_mask() -> None:
    for seed in range(50):
        chance = np.random.default_rng(seed)
        mask_HW = chance.random(chance.integers(1, 40, 2)) < chance.random() ** 3
        coded = masks.encode_mask_rle(mask_HW)
        assert masks.area(coded) == mask_HW.sum()
        y_K, x_K = np.nonzero(mask_HW)
        box = (0, 0, 0, 0)
        if len(y_K):
            box = (x_K.min(), y_K.min(), np.ptp(x_K) + 1, np.ptp(y_K) + 1)
        assert masks.bounding_box(coded) == box


def test_run_lengths_of_the_largest_mask_are_read() -> None:
    mask_HW = np.zeros((8_000, 8_000), bool)
    mask_HW[4_000:, 4_000:] = True
    coded = masks.encode_mask_rle(mask_HW)
    assert masks.area(coded) == 16_000_000
    assert masks.bounding_box(coded) == (4_000, 4_000, 4_000, 4_000)


@pytest.mark.parametrize(
    "size",
    [[3, 3], [5, 5], [100, 100], [0, 4], [-4, -4], [1 << 20, 1 << 20], [4], [4.0, 4], None, "44"],
)
def test_run_lengths_of_another_size_are_refused(size: Any) -> None:
    coded = masks.encode_mask_rle(np.eye(4, dtype=bool))
    for read in READERS:
        with pytest.raises(ValueError, match=r"^mask: "):
            read({**coded, "size": size})


@pytest.mark.parametrize(
    "counts",
    [
        "",
        # Ends within a number: the C code would read and write past its end.
        "P",
        "PPPPPPPP",
        "0o",
        # More groups than an int has bits.
        "PPPPPPPPPPPP1",
        # Below 0, and adding up to more than there is, or to 2^32 more.
        "O0",
        "ooooo?",
        "\0",
        "0\0o",
        "é0",
        "!!",
        None,
        3,
        [16],
        b"@0",
    ],
)
def test_counts_that_are_no_run_lengths_are_refused(counts: Any) -> None:
    for read in READERS:
        with pytest.raises(ValueError, match=r"^mask: "):
            read({"size": [4, 4], "counts": counts})


def test_damaged_run_lengths_are_read_or_refused() -> None:
    chance = random.Random(0)
    mask_HW = np.random.default_rng(0).random((20, 20)) < 0.3
    good = masks.encode_mask_rle(mask_HW)["counts"]
    refused = 0
    for _ in range(500):
        letters = list(good)
        for _ in range(chance.randrange(1, 4)):
            letters[chance.randrange(len(letters))] = chr(chance.randrange(128))
        damaged = {"size": [20, 20], "counts": "".join(letters)}
        try:
            assert masks.decode_mask_rle(damaged).sum() == masks.area(damaged)
        except ValueError as error:
            refused += 1
            assert str(error).startswith("mask: ") and "\n" not in str(error)
    assert refused > 400


def test_every_way_coco_writes_a_mask_is_read() -> None:
    square_HW = mask_of([SQUARE])
    assert square_HW.shape == (10, 12) and square_HW.sum() == 16
    assert square_HW[1:5, 1:5].all()
    flat = square_HW.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(edges, prepend=0, append=len(flat)).tolist()
    assert np.array_equal(mask_of({"counts": counts, "size": [10, 12]}), square_HW)
    assert np.array_equal(mask_of(masks.encode_mask_rle(square_HW)), square_HW)
    # Runs of no length are allowed: some writers end with one.
    assert np.array_equal(mask_of({"counts": [*counts, 0, 0], "size": [10, 12]}), square_HW)


def test_many_polygons_are_one_mask() -> None:
    assert mask_of([SQUARE, [6, 6, 9, 6, 9, 9, 6, 9]]).sum() == 16 + 9
    assert mask_of([SQUARE, SQUARE]).sum() == 16
    # What has fewer than three corners encloses nothing.
    assert mask_of([SQUARE, [], [1, 1], [0, 0, 9, 9]]).sum() == 16


def test_a_polygon_that_crosses_itself_is_drawn() -> None:
    bow_HW = mask_of([[1, 1, 9, 9, 9, 1, 1, 9]], 12, 12)
    # Two triangles with a point in common, of 16 pixels each.
    assert 24 < bow_HW.sum() < 40
    assert bow_HW[2:4, 5].any() != bow_HW[5, 2:4].any()


def test_what_lies_outside_the_picture_is_cut_off() -> None:
    assert np.array_equal(
        mask_of([[-5, -5, 5, -5, 5, 5, -5, 5]]), mask_of([[0, 0, 5, 0, 5, 5, 0, 5]])
    )
    assert mask_of([[-5, -5, 20, -5, 20, 20, -5, 20]]).all()
    # A slanted edge is cut, not bent: as on a canvas that holds all of it.
    for seed in range(40):
        corners_K2 = np.random.default_rng(seed).uniform((-12, -10), (24, 20), (5, 2))
        whole_HW = mask_of([np.add(corners_K2, (12, 10)).ravel().tolist()], 30, 36)
        try:
            cut_HW = mask_of([corners_K2.ravel().tolist()])
        except ValueError as error:
            assert str(error) == "mask: it is empty" and whole_HW[10:20, 12:24].sum() < 4
        else:
            # Left of 0 the C code rounds up, elsewhere to the nearest: a fifth of a pixel.
            assert (cut_HW != whole_HW[10:20, 12:24]).mean() < 0.1


@pytest.mark.parametrize("far", [1e6, 1e9, -1e9, 1e300, -1e300, 10**30])
def test_a_corner_however_far_out_is_drawn_in(far: float) -> None:
    x, y = (0, 0) if far > 0 else (12, 10)
    assert mask_of([[x, y, far, y, far, far, x, far]]).all()


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ("", "no JSON"),
        ("[[1, 2", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[[" + "9" * 5_000 + "]]", "no JSON"),
        ("3", "polygons or run lengths"),
        ('"text"', "polygons or run lengths"),
        ("null", "polygons or run lengths"),
        ("[1, 2, 3, 4, 5, 6]", "no list of x and y"),
        ("[[1, 2, 3, 4, 5]]", "no list of x and y"),
        ("[{}]", "no list of x and y"),
        ('[["1", 2, 3, 4, 5, 6]]', "no numbers"),
        ("[[true, 2, 3, 4, 5, 6]]", "no numbers"),
        ("[[[1], 2, 3, 4, 5, 6]]", "no numbers"),
        ("[[NaN, 2, 3, 4, 5, 6]]", "no finite numbers"),
        ("[[1, Infinity, 3, 4, 5, 6]]", "no finite numbers"),
        ("[[1, 2, 3, 1e999, 5, 6]]", "no finite numbers"),
        ("[[1, 2, 3, 4, 5, 1" + "0" * 400 + "]]", "no finite numbers"),
        ("[]", "it is empty"),
        ("[[]]", "it is empty"),
        ("[[1, 1, 2, 2]]", "it is empty"),
        ("[[3, 3, 3, 3, 3, 3]]", "it is empty"),
        ("[[50, 50, 60, 50, 60, 60]]", "it is empty"),
        ("{}", "its size"),
        ('{"counts": [120], "size": [12, 10]}', "its size"),
        ('{"counts": [0, 120], "size": [1, 120]}', "its size"),
        ('{"counts": [0, 120], "size": "10x12"}', "its size"),
        ('{"counts": [120], "size": [10, 12]}', "it is empty"),
        ('{"counts": [], "size": [10, 12]}', "do not fill"),
        ('{"counts": [0, 121], "size": [10, 12]}', "do not fill"),
        ('{"counts": [0, 119], "size": [10, 12]}', "do not fill"),
        ('{"counts": [0, 120.0], "size": [10, 12]}', "no whole numbers"),
        ('{"counts": [130, -10], "size": [10, 12]}', "no whole numbers"),
        ('{"counts": [4294967296, 120], "size": [10, 12]}', "no whole numbers"),
        ('{"counts": [0, 1' + "0" * 400 + '], "size": [10, 12]}', "no whole numbers"),
        ('{"counts": [[120]], "size": [10, 12]}', "no whole numbers"),
        ('{"counts": {"0": 120}, "size": [10, 12]}', "no compressed run lengths"),
        ('{"counts": "PPPP", "size": [10, 12]}', "no compressed run lengths"),
        ('{"size": [10, 12]}', "no compressed run lengths"),
    ],
)
def test_what_is_no_segmentation_is_refused_in_one_line(segmentation: str, says: str) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^mask: .*{says}[^\n]*$"):
            masks.rle_from_segmentation(segmentation, 10, 12)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (-1, 5), (8_001, 8_000), (10**12, 10**12)])
def test_a_picture_without_or_with_too_many_pixels_has_no_mask(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"^mask: "):
        masks.rle_from_segmentation(json.dumps([SQUARE]), height, width)


def test_a_mask_that_would_take_too_long_is_refused() -> None:
    for polygons in ([SQUARE] * 5_001, [[0, 0, 7_999, 7_999] * 200]):
        with pytest.raises(ValueError, match=r"^mask: .* allowed$"):
            masks.rle_from_segmentation(json.dumps(polygons), 8_000, 8_000)
    with pytest.raises(ValueError, match=r"^mask: its text is longer"):
        masks.rle_from_segmentation("[" + "0," * (8 << 20) + "0]", 10, 12)
    circle = [7.5 * part(k / 500) + 8 for k in range(3_000) for part in (math.cos, math.sin)]
    assert mask_of([circle], 16, 16).sum() == pytest.approx(math.pi * 7.5**2, rel=0.05)
