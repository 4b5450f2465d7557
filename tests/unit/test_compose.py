"""What is painted, and what is said to be visible of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from synth.compose import (
    Light,
    Placement,
    apply_light,
    compose,
    crop_background,
    fit,
    overlap_share,
    premultiplied,
    trim,
)

GROUND = np.full((40, 60, 3), 100, np.uint8)


def block(colour: tuple[int, int, int], *, height: int = 10, width: int = 10) -> np.ndarray:
    image_HW4 = np.full((height, width, 4), 255, np.uint8)
    image_HW4[..., :3] = colour
    return image_HW4


def at(left: float, top: float, side: int = 10, **more: object) -> Placement:
    return Placement(left=left, top=top, width=side, height=side, feather=0.0, **more)  # type: ignore[arg-type]


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask_HW = np.zeros(GROUND.shape[:2], bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def test_an_object_is_visible_where_it_is_painted() -> None:
    image_HW3, visible = compose(GROUND, [(block((200, 0, 0)), at(20, 5))])
    assert np.array_equal(visible[0], box(20, 5, 30, 15))
    assert np.array_equal((image_HW3 != 100).any(-1), visible[0])
    assert image_HW3[5, 20].tolist() == [200, 0, 0]


def test_a_nearer_object_takes_from_what_lies_behind_it() -> None:
    layers = [(block((200, 0, 0)), at(10, 10)), (block((0, 200, 0)), at(15, 10))]
    image_HW3, visible = compose(GROUND, layers)
    assert np.array_equal(visible[0], box(10, 10, 15, 20))
    assert np.array_equal(visible[1], box(15, 10, 25, 20))
    assert image_HW3[12, 16].tolist() == [0, 200, 0]
    _, visible = compose(GROUND, [layers[0], (block((0, 0, 9)), at(8, 8, 20))])
    assert not visible[0].any()


def test_a_hole_shows_what_lies_behind_it() -> None:
    ring = block((0, 200, 0))
    ring[3:7, 3:7, 3] = 0
    _, visible = compose(GROUND, [(block((200, 0, 0)), at(10, 10)), (ring, at(10, 10))])
    assert np.array_equal(visible[0], box(13, 13, 17, 17))


@pytest.mark.parametrize(
    ("left", "top", "seen"),
    [
        (-4, 5, (0, 5, 6, 15)),
        (55, 5, (55, 5, 60, 15)),
        (5, -9, (5, 0, 15, 1)),
        (5, 36, (5, 36, 15, 40)),
        (-10, 5, None),
        (60, 5, None),
        (-500, -500, None),
        (500, 500, None),
        (5, 40, None),
    ],
)
def test_what_lies_outside_the_picture_is_not_visible(
    left: int, top: int, seen: tuple[int, int, int, int] | None
) -> None:
    image_HW3, visible = compose(GROUND, [(block((200, 0, 0)), at(left, top))])
    expected_HW = box(*seen) if seen else np.zeros((40, 60), bool)
    assert np.array_equal(visible[0], expected_HW)
    assert np.array_equal((image_HW3 != 100).any(-1), expected_HW)


@pytest.mark.parametrize("side", [24, 9, 60])
@pytest.mark.parametrize("feather", [0.0, 0.8])
def test_colours_under_transparency_do_not_bleed(side: int, feather: float) -> None:
    cutout_HW4 = np.zeros((24, 24, 4), np.uint8)
    cutout_HW4[...] = (255, 0, 255, 0)  # magenta that nobody should ever see
    cutout_HW4[6:18, 6:18] = (100, 200, 100, 255)
    placement = Placement(left=0, top=-10, width=side, height=side, feather=feather)
    image_HW3, _ = compose(GROUND, [(cutout_HW4, placement)])
    # Grey and green have 100 of red and blue each, and so has every mixture of them.
    assert np.abs(image_HW3[..., [0, 2]].astype(int) - 100).max() <= 2


def test_feathering_softens_the_edge_inwards_only() -> None:
    cutout_HW4 = np.zeros((20, 20, 4), np.uint8)
    cutout_HW4[5:15, 5:15] = (200, 200, 200, 255)
    placement = Placement(left=0, top=0, width=20, height=20, feather=1.0)
    image_HW3, visible = compose(GROUND, [(cutout_HW4, placement)])
    changed_HW = (image_HW3 != 100).any(-1)
    assert np.array_equal(changed_HW, box(5, 5, 15, 15))
    assert image_HW3[10, 10, 0] == 200 and 100 < image_HW3[10, 5, 0] < 200
    assert visible[0].sum() <= 100


def test_a_flip_mirrors_picture_and_mask() -> None:
    half = block((200, 0, 0))
    half[:, 5:, 3] = 0
    _, visible = compose(GROUND, [(half, at(10, 10, flip=True))])
    assert np.array_equal(visible[0], box(15, 10, 20, 20))


def test_scaling_keeps_the_share_that_is_opaque() -> None:
    disc = block((200, 0, 0), height=40, width=40)
    rows, columns = np.mgrid[:40, :40] - 19.5
    disc[..., 3] = np.where(rows**2 + columns**2 < 18**2, 255, 0)
    _, visible = compose(GROUND, [(disc, at(5, 5, 20))])
    assert visible[0].sum() == pytest.approx(np.pi * 9**2, rel=0.06)


def test_nothing_changes_what_was_passed_in() -> None:
    ground_HW3, cutout_HW4 = GROUND.copy(), block((200, 0, 0))
    compose(ground_HW3, [(cutout_HW4, at(0, 0, light=Light(contrast=0.5)))])
    assert np.array_equal(ground_HW3, GROUND)
    assert np.array_equal(cutout_HW4, block((200, 0, 0)))
    image_HW3, visible = compose(GROUND, [])
    assert np.array_equal(image_HW3, GROUND) and visible == []


def test_light_stays_in_range_and_leaves_grey_where_it_is() -> None:
    image_HW3 = np.array([[[0, 128, 255]]], np.uint8)
    assert np.array_equal(apply_light(image_HW3, Light()), image_HW3)
    assert apply_light(image_HW3, Light(contrast=2.0)).tolist() == [[[0.0, 128.0, 255.0]]]
    assert apply_light(image_HW3, Light(gain=(1, 0.5, 0.5))).tolist() == [[[0.0, 64.0, 127.5]]]


def test_trimming_takes_the_empty_margin_off() -> None:
    cutout_HW4 = np.zeros((20, 30, 4), np.uint8)
    cutout_HW4[4:9, 10:25, 3] = 255
    assert trim(cutout_HW4).shape == (5, 15, 4)
    assert fit(trim(cutout_HW4), 30) == (30, 10)
    with pytest.raises(ValueError, match="fully transparent"):
        trim(np.zeros((5, 5, 4), np.uint8))


def test_overlap_is_a_share_of_the_smaller_box() -> None:
    assert overlap_share(at(0, 0), at(10, 0)) == 0.0
    assert overlap_share(at(0, 0), at(5, 0)) == 0.5
    assert overlap_share(at(0, 0, 40), at(5, 5)) == overlap_share(at(5, 5), at(0, 0, 40)) == 1.0


def test_every_crop_lies_inside_its_picture() -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        height, width = random.integers(30, 400, 2)
        picture_HW3 = np.zeros((height, width, 3), np.uint8)
        side = int(random.choice([64, 112, 192, 224]))
        x, y = random.choice([0.0, 1.0, random.random()], 2)
        zoom = float(random.choice([1.0, random.uniform(1, 2)]))
        crop = crop_background(picture_HW3, x=x, y=y, zoom=zoom, size=(side, side))
        assert crop.shape == (side, side, 3)


def test_a_crop_is_where_it_was_asked_for() -> None:
    picture_HW3 = np.zeros((40, 80, 3), np.uint8)
    picture_HW3[:, 40:] = 255
    for x, grey in ((0.0, 0), (1.0, 255)):
        crop = crop_background(picture_HW3, x=x, y=0.5, zoom=1.0, size=(20, 20))
        assert (crop[:, 2:-2] == grey).all()  # the filter reaches over the edge of the crop


def test_a_picture_for_pillow_is_the_same_picture() -> None:
    chance = np.random.default_rng(3)
    picture_HW3 = chance.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    as_array, as_image = (
        crop_background(picture, x=0.3, y=0.7, zoom=1.4, size=(30, 30))
        for picture in (picture_HW3, Image.fromarray(picture_HW3))
    )
    assert np.array_equal(as_array, as_image)
    cutout_HW4 = chance.integers(0, 256, (25, 35, 4)).astype(np.uint8)
    pictures = []
    for cutout in (cutout_HW4, Image.fromarray(cutout_HW4), premultiplied(cutout_HW4)):
        image_HW3, visible = compose(GROUND, [(cutout, at(4, 4, flip=True))])
        pictures.append(image_HW3)
        assert visible[0].any()
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])
