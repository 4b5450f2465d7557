"""What a spec becomes: the mask is what is visible of what sounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from infra import media
from infra.corpus import Sample
from infra.masks import decode_mask_rle
from synth.assets import Unusable, load_background, load_cutout, load_sound
from synth.catalog import Catalog
from synth.plan import SampleSpec, plan_sample
from synth.pools import split_assets
from synth.recipe import Recipe
from synth.render import render
from tests.made_media import CLASSES, made_catalog

RECIPE = Recipe(image_size=64, distractors=(0.3, 0.4, 0.3), overlap=0.8, silence=0.0)
LOUD = dataclasses.replace(RECIPE, noise_db=(-60.0, -50.0))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return made_catalog(tmp_path_factory.mktemp("media"))


def plan(
    catalog: Catalog, number: int = 0, *, split: str = "train", recipe: Recipe = RECIPE
) -> SampleSpec:
    pools = split_assets(catalog, recipe)
    return plan_sample(pools[split], recipe, seed=5, split=split, number=number)


def made(catalog: Catalog, number: int = 0, **more: object) -> Sample:
    return render(plan(catalog, number, **more), catalog.roots, kind="made")  # type: ignore[arg-type]


def test_the_mask_is_the_union_of_what_is_visible_of_what_sounds(catalog: Catalog) -> None:
    several = dataclasses.replace(RECIPE, sources=(0.0, 1.0, 0.0), object_counts=(0.2, 0.4, 0.4))
    counts = set()
    for number in range(12):
        sample = made(catalog, number, recipe=several)
        mask_HW = media.decode_mask(sample.members["mask0.png"])
        expected_HW = np.zeros((64, 64), bool)
        seen_HW = np.zeros((64, 64), int)
        for shown in sample.meta["objects"][0]:
            visible_HW = decode_mask_rle(shown["visible"])
            seen_HW += visible_HW
            if shown["sounding"]:
                expected_HW |= visible_HW
        assert np.array_equal(mask_HW, expected_HW)
        assert seen_HW.max() == 1, "two objects are visible at the same pixel"
        sounding = sorted(o["class"] for o in sample.meta["objects"][0] if o["sounding"])
        assert sounding == sample.meta["classes"]
        counts.add(len(sounding))
    assert counts == {1, 2}


def test_what_is_masked_has_the_colour_of_what_sounds(catalog: Catalog) -> None:
    plain = dataclasses.replace(RECIPE, light=0.0)
    for number in range(8):
        sample = made(catalog, number, recipe=plain, split="test")
        image_HWC = media.decode_image(sample.members["frame0.jpg"])
        mask_HW = media.decode_mask(sample.members["mask0.png"])
        (name,) = sample.meta["classes"]
        if mask_HW.any():
            colour = np.median(image_HWC[mask_HW], axis=0)
            assert np.abs(colour - CLASSES[name][1]).max() < 25


def test_what_is_heard_has_the_pitch_of_what_is_masked(catalog: Catalog) -> None:
    for number in range(6):
        sample = made(catalog, number, recipe=LOUD, split="test")
        wave_N, rate = media.decode_audio(sample.members["audio.flac"])
        assert rate == 16_000 and wave_N.size == 16_000
        assert sample.meta["audio_seconds"] == 1.0
        loudest = np.abs(np.fft.rfft(wave_N)).argmax()
        (name,) = sample.meta["classes"]
        assert loudest == pytest.approx(CLASSES[name][2], rel=0.03)


def test_silence_has_noise_for_sound_and_an_empty_mask(catalog: Catalog) -> None:
    silent = dataclasses.replace(RECIPE, silence=1.0)
    sample = made(catalog, recipe=silent)
    assert not media.decode_mask(sample.members["mask0.png"]).any()
    assert sample.meta["classes"] == sample.meta["sound"] == []
    assert sample.meta["objects"][0], "objects are still to be seen"
    wave_N, _ = media.decode_audio(sample.members["audio.flac"])
    assert 0 < np.sqrt(np.mean(wave_N**2)) < 0.01


def test_bytes_are_equal_every_time(catalog: Catalog, tmp_path: Path) -> None:
    first = [made(catalog, number) for number in range(3)]
    for loader in (load_background, load_cutout, load_sound):
        loader.cache_clear()
    assert [made(catalog, number) for number in reversed(range(3))] == first[::-1]
    # Neither does it matter where the media lie.
    moved = made_catalog(tmp_path / "moved")
    assert made(moved) == first[0]


def test_both_samples_of_a_scene_have_the_same_picture(catalog: Catalog) -> None:
    first, second = (made(catalog, number, split="test") for number in (4, 5))
    assert first.members["frame0.jpg"] == second.members["frame0.jpg"]
    assert first.members["mask0.png"] != second.members["mask0.png"]
    assert first.members["audio.flac"] != second.members["audio.flac"]
    shown = [[(o["class"], o["visible"]) for o in s.meta["objects"][0]] for s in (first, second)]
    assert shown[0] == shown[1]


def test_the_metadata_says_what_the_contract_asks_for(catalog: Catalog) -> None:
    spec = plan(catalog, 3)
    meta = render(spec, catalog.roots, kind="made").meta
    assert (meta["key"], meta["split"], meta["scene"]) == (spec.key, "train", spec.scene)
    assert (meta["kind"], meta["frames"], len(meta["objects"])) == ("made", 1, 1)
    assert meta["sound"] == [sound.id for sound in spec.sounds]
    assert meta["background"] == spec.background.id


def test_a_picture_or_sound_that_went_bad_is_refused_by_name(tmp_path: Path) -> None:
    catalog = made_catalog(tmp_path)
    spec = plan(catalog)
    for asset in (spec.background, spec.objects[0].asset, spec.sounds[0].asset):
        path = tmp_path / asset.uri
        whole = path.read_bytes()
        for damage, reason in ((b"went bad", "changed: "), (None, "missing: ")):
            path.unlink() if damage is None else path.write_bytes(damage)
            for loader in (load_background, load_cutout, load_sound):
                loader.cache_clear()
            with pytest.raises(Unusable, match=f"{asset.uri} cannot be used: {reason}") as caught:
                render(spec, catalog.roots, kind="made")
            assert caught.value.asset == asset
        path.write_bytes(whole)
