"""Every recipe of a corpus that comes with the project makes samples, in picture and sound what it
promises, from small made media: photographs with masks, sounds, and backgrounds in a folder.

A recipe is changed only where the made media have less than what it is meant for: how many samples
there are, how much of the media val and test have to themselves, and which classes and collections
of backgrounds are named.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from infra import config, media
from infra.corpus import Refused, Sample
from infra.masks import decode_mask_rle
from pipelines.synthesize import RECIPES, SynthesizeConfig
from synth.catalog import Catalog
from synth.looking import build_catalog
from synth.pools import split_assets
from synth.recipe import Recipe, Samples
from synth.render import make_samples
from synth.sources import Offer
from tests import made_media, made_sources

SYNTHESIS = sorted(
    path for path in RECIPES.glob("*.yaml") if "corpus" in yaml.safe_load(path.read_text())
)
PITCHES = {name: row[2] for name, row in (made_media.CLASSES | made_sources.CLASSES).items()}
SAMPLES = Samples(train=12, val=4, test=4, unseen=0)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("media")
    own = made_media.write_made_media(folder / "own")
    offer = Offer(own, made_sources.natural_offer(folder).sources)
    return build_catalog(offer.roots, offer)


def fitted(path: Path) -> Recipe:
    """The recipe of a file, for the made media."""
    recipe = config.parse(SynthesizeConfig, ["--config", str(path)]).corpus
    return dataclasses.replace(
        recipe,
        samples=SAMPLES,
        asset_shares=(0.6, 0.2, 0.2),
        classes=tuple(name for name in recipe.classes if name in made_sources.CLASSES),
        backgrounds=(),
    )


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("path", SYNTHESIS, ids=lambda path: path.stem)
def test_a_recipe_makes_what_it_promises(path: Path, split: str, catalog: Catalog) -> None:
    recipe = fitted(path)
    assert bool(recipe.classes) == bool(yaml.safe_load(path.read_text())["corpus"].get("classes"))
    pools = split_assets(catalog, recipe)[split]
    count = getattr(SAMPLES, split)
    made = [
        sample
        for sample in make_samples(pools, recipe, catalog.roots, 0, split, range(count))
        if not isinstance(sample, Refused)
    ]
    # A scene is refused where too little is visible of what sounds.
    assert len(made) >= max(2, count * (1 - recipe.max_refused))
    assert any(sample.meta["classes"] for sample in made)
    for sample in made:
        check_picture(sample, recipe)
        check_sound(sample, recipe)


def check_picture(sample: Sample, recipe: Recipe) -> None:
    image_HW3 = media.decode_image(sample.members["frame0.jpg"])
    mask_HW = media.decode_mask(sample.members["mask0.png"])
    assert image_HW3.shape == (*mask_HW.shape, 3) == (recipe.image_size, recipe.image_size, 3)
    expected_HW = np.zeros_like(mask_HW)
    for shown in sample.meta["objects"][0]:
        if shown["sounding"]:
            assert shown["class"] in sample.meta["classes"]
            expected_HW |= decode_mask_rle(shown["visible"])
    assert np.array_equal(mask_HW, expected_HW)
    if sample.meta["classes"]:
        assert mask_HW.any() and mask_HW.mean() >= recipe.min_mask_area
    else:
        assert not mask_HW.any()


def check_sound(sample: Sample, recipe: Recipe) -> None:
    wave_N, rate = media.decode_audio(sample.members["audio.flac"])
    assert rate == media.SAMPLE_RATE and wave_N.size == recipe.seconds * rate
    heard = sample.meta["classes"] + sample.meta["off_screen"]
    assert len(sample.meta["sound"]) == len(heard) <= 3
    assert not (sample.meta["classes"] and sample.meta["off_screen"])
    power_F = np.abs(np.fft.rfft(wave_N)) ** 2
    pitches_F = np.fft.rfftfreq(wave_N.size, 1 / rate)
    for name in heard:
        # Clips of a class have pitches up to an eighth above its own.
        own_F = (pitches_F > 0.99 * PITCHES[name]) & (pitches_F < 1.14 * PITCHES[name])
        assert power_F[own_F].max() > 100 * np.median(power_F), (name, sample.key)
