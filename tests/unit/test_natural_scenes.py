"""Objects in their own photographs: what is masked, what is heard, and what splits share."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from infra import media
from infra.corpus import Refused, Sample
from synth.catalog import Catalog
from synth.plan import NaturalSpec, plan_sample, plan_shards
from synth.pools import Pools, select, split_assets
from synth.recipe import Recipe, Samples
from synth.render import make_sample, make_samples, render
from synth.rows import Rows
from synth.tables import Object
from tests.made_sources import CLASSES, natural_catalog

SIDE = 64
RECIPE = Recipe(
    scenes="natural",
    image_size=SIDE,
    samples=Samples(train=40, val=8, test=8, unseen=0),
    asset_shares=(0.6, 0.2, 0.2),
    silence=0.0,
    light=0.0,
    sources=(1.0, 0.0, 0.0),
    stretch="loudest",
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return natural_catalog(tmp_path_factory.mktemp("natural"))


def train(catalog: Catalog, recipe: Recipe = RECIPE) -> Pools:
    return split_assets(catalog, recipe)["train"]


def specs(
    pools: Pools, recipe: Recipe = RECIPE, *, count: int = 40, split: str = "train"
) -> list[NaturalSpec]:
    drawn = [plan_sample(pools, recipe, seed=0, split=split, number=n) for n in range(count)]
    assert all(isinstance(spec, NaturalSpec) for spec in drawn)
    return drawn  # type: ignore[return-value]


def made(catalog: Catalog, number: int, recipe: Recipe = RECIPE) -> Sample:
    sample = make_sample(train(catalog, recipe), recipe, catalog.roots, 0, "train", number)
    assert isinstance(sample, Sample)
    return sample


def test_the_mask_is_where_the_photograph_has_the_colour_of_what_sounds(catalog: Catalog) -> None:
    for number in range(20):
        sample = made(catalog, number)
        image_HW3 = media.decode_image(sample.members["frame0.jpg"]).astype(int)
        mask_HW = media.decode_mask(sample.members["mask0.png"])
        (name,) = sample.meta["classes"]
        coloured_HW = np.abs(image_HW3 - CLASSES[name][1]).max(-1) < 60
        both = (coloured_HW & mask_HW).sum() / (coloured_HW | mask_HW).sum()
        assert both > 0.85, (number, name, both)
        assert sample.meta["mask_area"] == pytest.approx(mask_HW.mean(), abs=1e-6)


def test_what_is_heard_is_the_loudest_second_of_the_class(catalog: Catalog) -> None:
    for number in range(12):
        sample = made(catalog, number, dataclasses.replace(RECIPE, noise_db=(-60.0, -59.0)))
        wave_N, rate = media.decode_audio(sample.members["audio.flac"])
        assert (wave_N.size, rate) == (16_000, 16_000)
        pitch = np.abs(np.fft.rfft(wave_N)).argmax()
        (name,) = sample.meta["classes"]
        assert pitch == pytest.approx(CLASSES[name][2], rel=0.15)
        # The first half of a VGGSound clip is 26 dB quieter: the level is even throughout.
        halves = [np.sqrt(np.mean(half**2)) for half in np.split(wave_N, 2)]
        assert halves[0] == pytest.approx(halves[1], rel=0.05)


def test_every_object_comes_once_before_any_comes_twice(catalog: Catalog) -> None:
    pools = train(catalog)
    single = sum(len(rows) for rows in pools.objects.values())
    about = [spec.photograph.id for spec in specs(pools, count=2 * single)]
    assert sorted(about[:single]) == sorted(set(about))
    assert set(Counter(about).values()) == {2}
    assert not any(spec.photograph.crowd for spec in specs(pools))


def test_in_the_order_by_classes_every_class_comes_equally_often(catalog: Catalog) -> None:
    recipe = dataclasses.replace(RECIPE, order="classes")
    counts = Counter(s.photograph.class_name for s in specs(train(catalog, recipe), recipe))
    assert set(counts) == set(CLASSES) and max(counts.values()) - min(counts.values()) <= 1


def test_no_photograph_and_no_video_is_in_two_splits(catalog: Catalog) -> None:
    pools = split_assets(catalog, RECIPE)
    pictures: dict[str, str] = {}
    videos: dict[str, str] = {}
    for split, pool in pools.items():
        for rows in pool.objects.values():
            for row in rows:
                assert pictures.setdefault(row.picture, split) == split
        for clips in pool.clips.values():
            for clip in clips:
                assert videos.setdefault(clip.video or clip.sha256, split) == split
    assert set(pictures.values()) == {"train", "val", "test"} == set(videos.values())


def test_a_class_mask_holds_all_of_the_class_and_an_instance_mask_one(catalog: Catalog) -> None:
    one = dataclasses.replace(RECIPE, marks="instance")
    pools = train(catalog)
    several = 0
    for whole, single in zip(specs(pools), specs(pools, one), strict=True):
        assert whole.photograph == single.photograph
        assert [m.asset for m in single.objects] == [single.photograph]
        beside = {
            row.id
            for rows in [pools.photographs.objects]  # type: ignore[union-attr]
            for row in rows
            if row.picture == whole.photograph.picture
            and row.class_name == whole.photograph.class_name
        }
        assert {m.asset.id for m in whole.objects} == beside
        several += len(beside) > 1
    assert several > 3
    assert any(m.asset.crowd for spec in specs(pools) for m in spec.objects)


def test_a_class_mask_holds_what_is_too_small_to_be_asked_about(catalog: Catalog) -> None:
    least = float(np.median(catalog.objects.numbers("mask_fraction")))
    recipe = dataclasses.replace(RECIPE, min_mask_area=least)
    small = 0
    for spec in specs(train(catalog, recipe), recipe):
        assert spec.photograph.mask_fraction >= least
        there = {
            row.id: row.mask_fraction
            for row in catalog.objects
            if row.picture == spec.photograph.picture
            and row.class_name == spec.photograph.class_name
        }
        assert {m.asset.id for m in spec.objects} == there.keys()
        small += any(fraction < least for fraction in there.values())
    assert small > 3


def test_several_classes_of_a_photograph_can_sound_together(catalog: Catalog) -> None:
    recipe = dataclasses.replace(RECIPE, sources=(0.0, 1.0, 0.0))
    heard = [{s.class_name for s in spec.sounds} for spec in specs(train(catalog, recipe), recipe)]
    assert {len(names) for names in heard} == {1, 2}
    for spec in specs(train(catalog, recipe), recipe):
        sounding = {m.asset.class_name for m in spec.objects if m.sounding}
        assert sounding == {s.class_name for s in spec.sounds}


def test_off_screen_sounds_are_of_classes_that_the_source_says_are_absent(catalog: Catalog) -> None:
    recipe = dataclasses.replace(RECIPE, off_screen=1.0)
    for spec in specs(train(catalog, recipe), recipe):
        (sound,) = spec.sounds
        assert not sound.on_screen and sound.class_name in spec.photograph.absent.split("|")
        sample = render(spec, catalog.roots, kind="made")
        assert not media.decode_mask(sample.members["mask0.png"]).any()
        assert sample.meta["classes"] == [] and sample.meta["off_screen"] == [sound.class_name]


def test_off_screen_sounds_that_no_source_can_give_are_one_sentence(catalog: Catalog) -> None:
    rows = [dataclasses.replace(row, absent="") for row in catalog.objects]
    # What is denied has to have a sound.
    for absent in ("", "person|teapot"):
        rows = [dataclasses.replace(row, absent=absent) for row in rows]
        silent = dataclasses.replace(catalog, objects=Rows.of(Object, rows))
        with pytest.raises(ValueError, match=r"off_screen is 0\.05, .* set off_screen to 0$"):
            train(silent, dataclasses.replace(RECIPE, off_screen=0.05))
        assert train(silent).classes
    # One photograph is enough.
    about = train(silent).photographs
    assert about is not None
    one = about.objects[int(about.order[""][0])].id
    rows = [dataclasses.replace(r, absent="cat|dog" if r.id == one else "") for r in rows]
    denied = dataclasses.replace(catalog, objects=Rows.of(Object, rows))
    assert train(denied, dataclasses.replace(RECIPE, off_screen=0.05)).classes


def test_a_crop_holds_the_object_and_its_mask_is_cut_alike(catalog: Catalog) -> None:
    recipe = dataclasses.replace(RECIPE, crop=(0.6, 0.9), flip=1.0)
    for spec in specs(train(catalog, recipe), recipe, count=20):
        left, top, right, bottom = spec.crop
        about = spec.photograph
        assert 0 <= left <= about.left and about.right <= right <= about.width + 1e-6
        assert 0 <= top <= about.top and about.bottom <= bottom <= about.height + 1e-6
        sample = render(spec, catalog.roots, kind="made")
        image_HW3 = media.decode_image(sample.members["frame0.jpg"]).astype(int)
        mask_HW = media.decode_mask(sample.members["mask0.png"])
        colour = np.median(image_HW3[mask_HW], axis=0)
        assert np.abs(colour - CLASSES[about.class_name][1]).max() < 25


def test_objects_below_the_smallest_mask_are_not_used(catalog: Catalog) -> None:
    only_train = Samples(train=40, val=0, test=0, unseen=0)
    some = dataclasses.replace(RECIPE, min_mask_area=0.115, samples=only_train)
    used = [row for rows in train(catalog, some).objects.values() for row in rows]
    assert used and min(row.mask_fraction for row in used) >= 0.115
    every = [row for rows in train(catalog).objects.values() for row in rows]
    assert len(used) < len(every)


def test_a_scene_that_shows_too_little_is_refused_with_its_reason(catalog: Catalog) -> None:
    recipe = dataclasses.replace(RECIPE, samples=Samples(train=4, val=0, test=0, unseen=0))
    strict = dataclasses.replace(recipe, min_mask_area=0.9)
    row = make_sample(train(catalog, recipe), strict, catalog.roots, 0, "train", 1)
    assert isinstance(row, Refused)
    assert row.id == "train-00000001" and row.reason.startswith("mask: 0.")


def test_samples_do_not_depend_on_those_that_are_planned_with_them(catalog: Catalog) -> None:
    # So that some scenes are drawn anew and others are refused.
    recipe = dataclasses.replace(RECIPE, min_mask_area=0.2, crop=(0.5, 1.0))
    pools, numbers = train(catalog, RECIPE), range(3, 40)
    alone = [make_sample(pools, recipe, catalog.roots, 0, "train", n) for n in numbers]
    assert {type(sample) for sample in alone} == {Sample, Refused}
    assert list(make_samples(pools, recipe, catalog.roots, 0, "train", numbers)) == alone


def test_videos_of_avsbench_are_held_out_and_counted(catalog: Catalog, tmp_path: Path) -> None:
    clips = [row for row in catalog.clips if row.video]
    table = tmp_path / "s4_meta_data.csv"
    table.write_text(
        "name,start,category,split\n"
        f"{clips[0].video},0,cat_meowing,test\n{clips[1].video},0,cat_meowing,train\n"
    )
    own = dataclasses.replace(RECIPE, held_out_tables=(str(table),))
    for guard, expected in (("val_test", {"vggsound": {"clips": 1, "s4_test": 1}}), ("none", {})):
        recipe = dataclasses.replace(own, held_out=guard)
        chosen = select(catalog, recipe)
        assert chosen.held_out == expected
        assert len(chosen.catalog.clips) == len(catalog.clips) - len(expected)
    zero = select(catalog, dataclasses.replace(own, held_out="zero_shot"))
    assert zero.held_out == {"vggsound": {"clips": 2, "s4_test": 1, "s4_train": 1}}
    assert {row.id for row in zero.refused} == {clips[0].id, clips[1].id}
    heard = {
        sound.asset.video
        for spec in specs(split_assets(zero.catalog, own)["train"], own)
        for sound in spec.sounds
    }
    assert not heard & {clips[0].video, clips[1].video}


def test_media_without_a_commercial_licence_can_be_left_out(catalog: Catalog) -> None:
    chosen = select(catalog, dataclasses.replace(RECIPE, allow_non_commercial=False)).catalog
    assert chosen.licences == {
        "Attribution License": 26,
        "CC BY 3.0": 4,
        "YouTube uploaders' terms; annotations CC BY 4.0": 32,
    }
    with pytest.raises(ValueError, match="natural scenes"):
        dataclasses.replace(RECIPE, samples=Samples())


def test_an_extended_plan_keeps_the_shards_there_are() -> None:
    small = dataclasses.replace(RECIPE, samples_per_shard=16)
    more = dataclasses.replace(
        small, samples=Samples(train=70, val=8, test=9, unseen=0), grown_from=(small.samples,)
    )
    before, after = plan_shards(small), plan_shards(more)
    assert [plan for plan in after if plan in before] == before
    for split, total in (("train", 70), ("val", 8), ("test", 9)):
        own = [plan for plan in after if plan.split == split]
        covered = [n for plan in own for n in range(plan.first, plan.first + plan.samples)]
        assert covered == list(range(total))
        assert [plan.number for plan in own] == list(range(len(own)))
    with pytest.raises(ValueError, match=r"samples\.train grew as \[70, 40\]"):
        dataclasses.replace(small, grown_from=(more.samples,))
