"""What composite scenes are drawn to be: every weight, range and share of a recipe holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from statistics import mean

import pytest

from synth.catalog import Catalog
from synth.compose import overlap_share
from synth.plan_composite import CompositeSpec, PlacedObject, plan_composite
from synth.pools import split_assets
from synth.recipe import Recipe
from tests.made_media import CLASSES, made_catalog

RECIPE = Recipe(
    image_size=256,
    object_counts=(0.0, 0.0, 1.0),
    distractors=(0.2, 0.4, 0.4),
    sources=(5.0, 3.0, 2.0),
    silence=0.0,
)
PLANS = 600
# Three standard deviations of a share of a half, and more of any other.
CHANCE = 0.062


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return made_catalog(tmp_path_factory.mktemp("media"))


def planned(
    catalog: Catalog, *, count: int = PLANS, split: str = "train", **changes: object
) -> list[CompositeSpec]:
    recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
    pools = split_assets(catalog, recipe)[split]
    return [
        plan_composite(pools, recipe, seed=0, split=split, number=number) for number in range(count)
    ]


def with_class(spec: CompositeSpec) -> list[PlacedObject]:
    """The objects of a scene that are no distractors."""
    return [placed for placed in spec.objects if placed.class_name]


def sounding(spec: CompositeSpec) -> list[str]:
    return sorted(placed.class_name for placed in spec.objects if placed.sounding)


def shares(counts: list[int]) -> dict[int, float]:
    return {value: times / len(counts) for value, times in Counter(counts).items()}


def worst_overlap(spec: CompositeSpec) -> float:
    """The largest share of a box, a distractor's too, that another one has in common with it."""
    places = [placed.placement for placed in spec.objects]
    return max((overlap_share(a, b) for i, a in enumerate(places) for b in places[:i]), default=0.0)


def test_one_two_or_three_objects_sound_as_often_as_sources_says(catalog: Catalog) -> None:
    specs = planned(catalog)
    found = shares([len(sounding(spec)) for spec in specs])
    assert found == pytest.approx({1: 0.5, 2: 0.3, 3: 0.2}, abs=CHANCE)
    for spec in specs:
        assert sounding(spec) == sorted(sound.class_name for sound in spec.sounds)
        assert all(sound.on_screen for sound in spec.sounds)
    # The farthest of them as often as any other.
    first = shares([with_class(spec)[0].sounding for spec in specs])
    assert first[True] == pytest.approx((0.5 + 2 * 0.3 + 3 * 0.2) / 3, abs=CHANCE)


@pytest.mark.parametrize(
    ("object_counts", "expected"),
    [((1.0, 0.0, 0.0), {1: 1.0}), ((0.0, 1.0, 0.0), {1: 0.5, 2: 0.5})],
)
def test_no_more_sound_than_the_scene_has(
    catalog: Catalog, object_counts: tuple[float, float, float], expected: dict[int, float]
) -> None:
    found = shares([len(sounding(s)) for s in planned(catalog, object_counts=object_counts)])
    assert found == pytest.approx(expected, abs=CHANCE)


def test_every_sound_has_a_level_of_its_own_within_the_range(catalog: Catalog) -> None:
    low, high = -12.0, 3.0
    specs = planned(catalog, gain_db=(low, high), sources=(0.0, 0.0, 1.0))
    levels = [sound.gain_db for spec in specs for sound in spec.sounds]
    assert len(levels) == len(set(levels)) == 3 * PLANS
    assert low <= min(levels) < low + 0.5 and high - 0.5 < max(levels) <= high
    assert mean(levels) == pytest.approx((low + high) / 2, abs=0.4)
    apart = [abs(a.gain_db - b.gain_db) for spec in specs for a, b in pairwise(spec.sounds)]
    # Two levels that are drawn evenly and apart differ by a third of the range.
    assert mean(apart) == pytest.approx((high - low) / 3, abs=0.4)
    assert {s.gain_db for spec in planned(catalog, gain_db=(-2.0, -2.0)) for s in spec.sounds} == {
        -2.0
    }


def test_objects_and_distractors_are_as_large_as_their_ranges_say(catalog: Catalog) -> None:
    specs = planned(catalog, long_side=(0.3, 0.5), distractor_side=(0.1, 0.2))
    for is_object, (low, high) in ((True, (77, 128)), (False, (26, 51))):
        sides = [
            max(placed.placement.width, placed.placement.height)
            for spec in specs
            for placed in spec.objects
            if bool(placed.class_name) == is_object
        ]
        assert (min(sides), max(sides)) == (low, high)
        assert mean(sides) == pytest.approx((low + high) / 2, rel=0.03)


@pytest.mark.parametrize("overlap", [0.0, 0.1])
def test_no_box_covers_more_of_another_than_overlap_where_there_is_room(
    catalog: Catalog, overlap: float
) -> None:
    roomy = {"long_side": (0.2, 0.3), "distractor_side": (0.1, 0.2)}
    worst = [worst_overlap(spec) for spec in planned(catalog, **roomy, overlap=overlap)]
    assert max(worst) <= overlap and (overlap == 0.0 or max(worst) > 0.0)
    free = [worst_overlap(spec) for spec in planned(catalog, **roomy, overlap=1.0)]
    assert sum(share > overlap for share in free) > PLANS / 4


def test_where_there_is_no_room_the_least_covering_place_is_taken(catalog: Catalog) -> None:
    crowded = {"long_side": (0.7, 0.8), "distractors": (1.0, 0.0, 0.0)}
    chosen, first = (
        [worst_overlap(spec) for spec in planned(catalog, count=200, **crowded, overlap=overlap)]
        for overlap in (0.05, 1.0)
    )
    assert sum(share > 0.05 for share in chosen) > 100
    assert mean(chosen) < 0.8 * mean(first)


def test_off_screen_sounds_are_of_one_class_that_is_not_in_the_picture(catalog: Catalog) -> None:
    specs = planned(catalog, silence=0.2, off_screen=0.3, object_counts=(0.3, 0.4, 0.3))
    off_screen = [spec for spec in specs if any(not sound.on_screen for sound in spec.sounds)]
    assert len(off_screen) / PLANS == pytest.approx(0.3, abs=CHANCE)
    for spec in off_screen:
        (sound,) = spec.sounds
        shown = {placed.class_name for placed in with_class(spec)}
        assert sound.class_name in CLASSES and sound.class_name not in shown
        assert shown and sounding(spec) == []
    assert {spec.sounds[0].class_name for spec in off_screen} == set(CLASSES)


def test_where_every_class_is_in_the_picture_something_there_sounds_instead(
    catalog: Catalog,
) -> None:
    two = {"classes": ("bell", "horn"), "object_counts": (0.5, 0.5, 0.0)}
    specs = planned(catalog, count=100, **two, off_screen=1.0)
    assert {len(with_class(spec)) for spec in specs} == {1, 2}
    for spec in specs:
        shows_all = len(with_class(spec)) == 2
        assert spec.sounds and bool(sounding(spec)) == shows_all
        assert all(sound.on_screen == shows_all for sound in spec.sounds)


def test_silence_has_no_sound_and_nothing_that_sounds(catalog: Catalog) -> None:
    specs = planned(catalog, silence=0.2, off_screen=0.3)
    silent = [spec for spec in specs if not spec.sounds]
    assert len(silent) / PLANS == pytest.approx(0.2, abs=CHANCE)
    for spec in silent:
        assert sounding(spec) == [] and len(with_class(spec)) == 3


@pytest.mark.parametrize("split", ["val", "test", "unseen"])
def test_outside_train_just_one_of_two_always_sounds(catalog: Catalog, split: str) -> None:
    changes = {"silence": 0.5, "off_screen": 0.5, "sources": (0.0, 0.0, 1.0)}
    for spec in planned(catalog, count=100, split=split, **changes):
        assert len(with_class(spec)) == 2 and len(sounding(spec)) == 1
        assert [(s.class_name, s.on_screen) for s in spec.sounds] == [(sounding(spec)[0], True)]
