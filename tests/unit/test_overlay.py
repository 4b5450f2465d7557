import numpy as np
import pytest

from training.overlay import COLOUR, Row, contact_sheet, overlay

GREY = np.full((40, 60, 3), 100, np.uint8)


def _square() -> np.ndarray:
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[10:20, 10:30] = True
    return mask_HW


def test_an_overlay_tints_the_mask_and_nothing_else() -> None:
    shown = overlay(GREY, _square())
    assert (shown[~_square()] == 100).all()
    assert (shown[15, 15] == [(100 + part + 1) // 2 for part in COLOUR]).all()
    assert (shown[10, 10:30] == COLOUR).all(), "the border is drawn in full colour"
    assert (GREY == 100).all(), "the picture given is left alone"


def test_an_empty_mask_leaves_the_picture() -> None:
    assert np.array_equal(overlay(GREY, np.zeros((40, 60), bool)), GREY)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one size.*\[40, 60, 3\].*\[40, 61\]"):
        overlay(GREY, np.zeros((40, 61), bool))


def _row(**changes: object) -> Row:
    empty = np.zeros((40, 60), bool)
    values = {
        "caption": "dog",
        "image_HW3": GREY,
        "truth_HW": _square(),
        "predicted_HW": _square(),
        "swapped_HW": empty,
        "swapped_caption": "violin",
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def test_a_contact_sheet_has_a_line_for_every_frame_and_shows_the_answers() -> None:
    one, three = contact_sheet([_row()]), contact_sheet([_row()] * 3)
    assert one.dtype == np.uint8 and one.shape[1:] == three.shape[1:]
    assert three.shape[0] > 2.5 * (one.shape[0] - 40)
    changed = contact_sheet([_row(predicted_HW=np.zeros((40, 60), bool))])
    columns = np.flatnonzero((changed != one).any((0, 2)))
    third = one.shape[1] // 2
    assert len(columns) and third <= columns.min() and columns.max() < third + one.shape[1] // 4


def test_a_caption_that_does_not_fit_is_shortened() -> None:
    assert (
        contact_sheet([_row(caption="a very long name " * 20)]).shape
        == contact_sheet([_row()]).shape
    )


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet([])
