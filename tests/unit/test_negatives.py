"""What a corpus says of its samples with nothing to mask: how many, and what is heard in them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from infra.commit import build_manifest
from infra.config import to_dict
from infra.corpus import Corpus, Sample, write_shard
from synth import page as page_module
from synth.catalog import Catalog
from synth.gallery import count_off_screen, unmasked_rows
from synth.pools import split_assets
from synth.recipe import Recipe, Samples
from synth.render import KIND, make_samples
from synth.rows import Rows
from synth.tables import Object
from tests.made_sources import natural_catalog
from tests.unit.test_page import page

RECIPE = Recipe(
    scenes="natural",
    image_size=64,
    samples=Samples(train=60, val=0, test=0, unseen=0),
    asset_shares=(1.0, 0.0, 0.0),
    silence=0.2,
    off_screen=0.5,
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """One in which every other photograph denies no class."""
    whole = natural_catalog(tmp_path_factory.mktemp("natural"))
    rows = [
        dataclasses.replace(row, absent="" if int(row.picture, 16) % 2 else row.absent)
        for row in whole.objects
    ]
    return dataclasses.replace(whole, objects=Rows.of(Object, rows))


def made(uri: str, catalog: Catalog, recipe: Recipe = RECIPE) -> tuple[Corpus, list[Sample]]:
    pools = split_assets(catalog, recipe)["train"]
    drawn = make_samples(pools, recipe, catalog.roots, 0, "train", range(recipe.samples.train))
    samples = [sample for sample in drawn if isinstance(sample, Sample)]
    record, _ = write_shard(uri, "train", 0, samples, plan="x")
    manifest = build_manifest(
        kind=KIND, seed=0, recipe=to_dict(recipe), sources={}, licences=[], shards=[record],
        refused=[],
    )  # fmt: skip
    return Corpus(uri, manifest, sha256=""), samples


def test_the_page_says_which_share_sounds_off_screen(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, samples = made(str(tmp_path), catalog)
    share = np.mean([bool(sample.meta["off_screen"]) for sample in samples])
    assert 0.1 < share < 0.4
    said = f"of train, 50.0% should sound of a class that is not in the picture, and {share:.1%} do"
    assert said in page(corpus)[1].sections["splits"]
    # Of a large corpus some are looked at.
    monkeypatch.setattr(page_module, "_MOST_ASKED", 16)
    found = re.search(r"and about ([\d.]+)% do", page(corpus)[1].sections["splits"])
    assert found and float(found[1]) == pytest.approx(100 * share, abs=15)


def test_where_no_sound_off_screen_was_asked_for_nothing_is_said_of_it(
    catalog: Catalog, tmp_path: Path
) -> None:
    corpus, _ = made(str(tmp_path), catalog, dataclasses.replace(RECIPE, off_screen=0.0))
    assert "Off screen" not in page(corpus)[1].text


def test_a_sound_off_screen_is_not_shown_as_silence(catalog: Catalog, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, silence=0.15, off_screen=0.15)
    corpus, samples = made(str(tmp_path), catalog, recipe)
    heard = {sample.key: sample.meta["off_screen"] for sample in samples}
    text, reader = page(corpus)
    group = re.findall(r"<h3>nothing to mask</h3>(.*?)</section>", text)[0]
    shown = re.findall(r'alt="Picture of (\S+), sound: (.*?)".*?<figcaption><b>(.*?)</b>', group)
    assert len(shown) == 4
    for key, told, caption in shown:
        assert told == caption == (f"{heard[key][0]} off screen" if heard[key] else "silence")
    assert {bool(heard[key]) for key, *_ in shown} == {True, False}
    assert "split samples nothing to mask frames" in " ".join(reader.sections["splits"].split())


def test_a_clip_of_avsbench_that_sounds_off_screen_is_not_shown_as_silence(
    catalog: Catalog, tmp_path: Path
) -> None:
    _, (sample, *_) = made(str(tmp_path / "made"), catalog)
    metas = [
        {"classes": [], "frames": 1, "scene": "s", "sound": ["audio.wav"], **more}
        for more in ({"off_screen": True}, {})
    ]
    clips = [Sample(key=f"clip{n}", members=sample.members, meta=m) for n, m in enumerate(metas)]
    uri = str(tmp_path / "avsbench")
    record, _ = write_shard(uri, "train", 0, clips, plan="x")
    manifest = build_manifest(
        kind="avsbench_ms3", seed=0, recipe={}, sources={}, licences=[], shards=[record],
        refused=[],
    )  # fmt: skip
    text, _ = page(Corpus(uri, manifest, sha256=""))
    told = dict(re.findall(r'alt="Picture of (\S+), sound: (.*?)"', text))
    assert told == {"clip0": "a sound off screen", "clip1": "nothing to mask"}


def test_damaged_metadata_is_named(catalog: Catalog, tmp_path: Path) -> None:
    corpus, _ = made(str(tmp_path), catalog)
    index = corpus.table("train")
    with (tmp_path / corpus.shards[0].path).open("r+b") as shard:
        for member in (member for row in index.to_pylist() for member in row["members"]):
            if member["name"] == "json":
                shard.seek(member["offset"])
                shard.write(b" " * member["size"])
    for read in (
        lambda: page(corpus),
        lambda: count_off_screen(corpus, index, unmasked_rows(index)),
    ):
        with pytest.raises(ValueError, match=r"train-00000.tar is damaged at train-\d+ \(Expect"):
            read()
