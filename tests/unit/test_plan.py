"""What samples will be: the same from everywhere, and nothing shared that must not be."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from synth.catalog import Catalog
from synth.plan import SampleSpec, plan_digest, plan_sample, plan_shards
from synth.pools import Pools, split_assets
from synth.recipe import SPLITS, Recipe, Samples
from tests.made_media import CLASSES, made_catalog

SMALL = Samples(train=40, val=12, test=20, unseen=12)
RECIPE = Recipe(image_size=64, samples=SMALL, samples_per_shard=16)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return made_catalog(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def pools(catalog: Catalog) -> dict[str, Pools]:
    return split_assets(catalog, RECIPE)


def specs(
    pools: dict[str, Pools], split: str, count: int = 40, *, recipe: Recipe = RECIPE, seed: int = 0
) -> list[SampleSpec]:
    return [
        plan_sample(pools[split], recipe, seed=seed, split=split, number=number)
        for number in range(count)
    ]


def test_a_sample_is_a_function_of_seed_split_and_number(
    catalog: Catalog, pools: dict[str, Pools]
) -> None:
    forward = {split: specs(pools, split) for split in SPLITS}
    backward = dataclasses.replace(
        catalog,
        objects=catalog.objects[::-1],
        clips=catalog.clips[::-1],
        backgrounds=catalog.backgrounds[::-1],
        silent=catalog.silent[::-1],
    )
    again = split_assets(backward, RECIPE)
    for split in SPLITS:
        for number in (39, 0, 17):
            assert (
                plan_sample(again[split], RECIPE, seed=0, split=split, number=number)
                == (forward[split][number])
            )
    drawn = [spec for split in SPLITS for spec in forward[split]]
    drawn += specs(pools, "train", seed=1)
    seeds = Counter(spec.noise_seed for spec in drawn)
    assert max(seeds.values()) == 1


def test_a_sample_does_not_depend_on_how_many_there_are(pools: dict[str, Pools]) -> None:
    more = dataclasses.replace(RECIPE, samples=Samples(train=999), samples_per_shard=7)
    assert specs(pools, "train", 5) == specs(pools, "train", 5, recipe=more)


def test_splits_share_no_background_and_no_scene(catalog: Catalog, pools: dict[str, Pools]) -> None:
    dealt = [row.id for split in SPLITS for row in pools[split].backgrounds]
    assert sorted(dealt) == sorted(row.id for row in catalog.backgrounds)
    scenes: dict[str, str] = {}
    looks = Counter[object]()
    for split in SPLITS:
        allowed = {row.id for row in pools[split].backgrounds}
        for spec in specs(pools, split):
            assert spec.background.id in allowed
            assert scenes.setdefault(spec.scene, split) == split
            looks[spec.background_crop] += 1
    # A crop is drawn once a scene: 40 in train, and half as many in each paired split.
    assert len(looks) == len(scenes) == 40 + 3 * 20


def test_unseen_pictures_and_sounds_appear_in_no_other_split(pools: dict[str, Pools]) -> None:
    def used(split: str) -> tuple[set[str], set[str]]:
        drawn = specs(pools, split, 60)
        pictures = {o.id for s in drawn for o in s.objects if o.class_name}
        return pictures, {sound.id for s in drawn for sound in s.sounds}

    pictures, sounds = used("unseen")
    assert pictures == {"objects/bell/1.png", "objects/horn/1.png"}
    assert sounds == {"sounds/bell/1.wav", "sounds/horn/1.wav"}
    for split in ("train", "val", "test"):
        others = used(split)
        assert not pictures & others[0] and not sounds & others[1]
        assert pools[split].classes == sorted(CLASSES)
    assert pools["unseen"].classes == ["bell", "horn"]


@pytest.mark.parametrize("split", ["val", "test", "unseen"])
def test_a_scene_comes_twice_and_differs_in_nothing_but_its_sound(
    pools: dict[str, Pools], split: str
) -> None:
    drawn = specs(pools, split)
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert first.scene == second.scene and first.key != second.key
        for name in ("background", "background_crop", "background_flip", "background_light"):
            assert getattr(first, name) == getattr(second, name)
        silenced = [
            [dataclasses.replace(o, sounding=False) for o in spec.objects]
            for spec in (first, second)
        ]
        assert silenced[0] == silenced[1]
        heard = [[o.class_name for o in s.objects if o.sounding] for s in (first, second)]
        assert len(heard[0]) == len(heard[1]) == 1 and heard[0] != heard[1]
        for spec, names in zip((first, second), heard, strict=True):
            assert [sound.class_name for sound in spec.sounds] == names


def test_the_objects_of_a_scene_are_of_different_classes(pools: dict[str, Pools]) -> None:
    crowded = dataclasses.replace(RECIPE, object_counts=(0.0, 0.0, 1.0))
    for spec in specs(pools, "train", recipe=crowded):
        names = [o.class_name for o in spec.objects if o.class_name]
        assert len(set(names)) == len(names) == 3


def test_distractors_are_silent_and_lie_behind(pools: dict[str, Pools]) -> None:
    recipe = dataclasses.replace(RECIPE, distractors=(0.0, 0.5, 0.5))
    for spec in specs(pools, "train", recipe=recipe):
        kinds = [bool(o.class_name) for o in spec.objects]
        assert kinds == sorted(kinds) and not kinds[0]
        assert not any(o.sounding for o in spec.objects if not o.class_name)


def test_what_sounds_is_what_is_heard(pools: dict[str, Pools]) -> None:
    for split in SPLITS:
        for spec in specs(pools, split):
            sounding = sorted(o.class_name for o in spec.objects if o.sounding)
            assert sounding == sorted(sound.class_name for sound in spec.sounds)


def test_shares_of_silence_and_of_several_sources_hold(pools: dict[str, Pools]) -> None:
    weights = {"sources": (0.5, 0.5, 0.0), "object_counts": (0, 1, 0)}
    recipe = dataclasses.replace(RECIPE, silence=0.2, **weights)
    counts = Counter(len(spec.sounds) for spec in specs(pools, "train", 1_000, recipe=recipe))
    assert counts[0] == pytest.approx(200, abs=45)
    assert counts[2] == pytest.approx(400, abs=55)
    never = dataclasses.replace(RECIPE, silence=0.0, sources=(1.0, 0.0, 0.0))
    assert {len(spec.sounds) for spec in specs(pools, "train", 200, recipe=never)} == {1}


def test_objects_stand_inside_the_picture(pools: dict[str, Pools]) -> None:
    for spec in specs(pools, "train"):
        for placed in spec.objects:
            place = placed.placement
            assert place.left >= 0 and place.left + place.width <= spec.image_size
            assert place.top >= 0 and place.top + place.height <= spec.image_size


def test_keys_are_unique_and_shards_hold_every_sample_once() -> None:
    plans = plan_shards(RECIPE)
    for split in SPLITS:
        own = [plan for plan in plans if plan.split == split]
        assert [plan.number for plan in own] == list(range(len(own)))
        numbers = [n for plan in own for n in range(plan.first, plan.first + plan.samples)]
        assert numbers == list(range(getattr(SMALL, split)))
        assert all(plan.samples <= 16 for plan in own)
    without = dataclasses.replace(RECIPE, samples=Samples(train=3, val=0, test=0, unseen=0))
    assert [plan.split for plan in plan_shards(without)] == ["train"]


def test_a_shard_is_made_anew_when_anything_changes_but_the_other_shards() -> None:
    plan = plan_shards(RECIPE)[0]

    def digest(recipe: Recipe = RECIPE, *, seed: int = 0, catalog: str = "c") -> str:
        return plan_digest(plan, sources={"catalog": catalog}, recipe=recipe, seed=seed)

    assert digest() == digest(dataclasses.replace(RECIPE, samples=Samples(train=4_000)))
    others = [
        digest(dataclasses.replace(RECIPE, silence=0.5)),
        digest(seed=1),
        digest(catalog="d"),
        plan_digest(plan_shards(RECIPE)[1], sources={"catalog": "c"}, recipe=RECIPE, seed=0),
    ]
    assert len({digest(), *others}) == 5


def test_an_unknown_class_is_one_sentence_with_those_there_are(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match=r"no class 'wolf' .* it has bell, drum, horn, siren"):
        split_assets(catalog, dataclasses.replace(RECIPE, classes=("bell", "wolf")))
    with pytest.raises(ValueError, match="no backgrounds 'moon'"):
        split_assets(catalog, dataclasses.replace(RECIPE, backgrounds=("moon",)))


def test_a_split_without_what_it_needs_is_one_sentence(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="'train' has 1 classes"):
        split_assets(catalog, dataclasses.replace(RECIPE, classes=("bell",)))
    with pytest.raises(ValueError, match="'unseen' has 0 classes"):
        split_assets(catalog, dataclasses.replace(RECIPE, classes=("drum", "siren")))
    few = dataclasses.replace(catalog, backgrounds=catalog.backgrounds[:2])
    with pytest.raises(ValueError, match="has no background of its own"):
        split_assets(few, RECIPE)
    only_train = dataclasses.replace(
        RECIPE, classes=("drum", "siren"), samples=Samples(train=2, val=0, test=0, unseen=0)
    )
    assert split_assets(few, only_train)["train"].classes == ["drum", "siren"]


def test_off_screen_sounds_are_refused_where_every_scene_shows_all_classes(
    catalog: Catalog,
) -> None:
    recipe = dataclasses.replace(
        RECIPE, classes=("bell", "horn"), off_screen=0.1, object_counts=(0.0, 0.5, 0.5)
    )
    with pytest.raises(ValueError, match=r"off_screen is 0\.1, but .* shows all 2 classes"):
        split_assets(catalog, recipe)
    for more in ({"object_counts": (0.1, 0.5, 0.4)}, {"classes": ()}):
        pools = split_assets(catalog, dataclasses.replace(recipe, **more))  # type: ignore[arg-type]
        drawn = specs(pools, "train", 200, recipe=dataclasses.replace(recipe, **more))  # type: ignore[arg-type]
        assert any(not sound.on_screen for spec in drawn for sound in spec.sounds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 33},
        {"image_size": 16},
        {"seconds": 0.5},
        {"samples_per_shard": 0},
        {"samples": Samples(train=-1)},
        {"background_shares": (1.0, 0.1, 0.0, 0.0)},
        {"object_counts": (0.0, 0.0, 0.0)},
        {"distractors": (1.0, -0.5, 0.5)},
        {"long_side": (0.5, 0.3)},
        {"long_side": (0.0, 0.3)},
        {"distractor_side": (-0.1, 0.3)},
        {"feather": (-1.0, 0.3)},
        {"gain_db": (4.0, -10.0)},
        {"noise_db": (-float("inf"), -26.0)},
        {"noise_db": (-60.0, float("nan"))},
        {"crop": (0.0, 1.0)},
        {"light": -0.25},
        {"light": 1.5},
        {"jpeg_quality": 0},
        {"jpeg_quality": 101},
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)  # type: ignore[arg-type]
