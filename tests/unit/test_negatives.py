"""What a corpus says of its samples with nothing to mask: how many, and what is heard in them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from infra import media
from infra.commit import build_manifest
from infra.config import to_dict
from infra.corpus import Corpus, Sample, write_shard
from synth import avsbench
from synth import page as page_module
from synth.catalog import Catalog
from synth.gallery import count_off_screen, unmasked_rows
from synth.pools import split_assets
from synth.recipe import Recipe, Samples
from synth.render import KIND, make_samples
from synth.rows import Rows
from synth.tables import Object
from tests import made_avsbench as avsbench_tree
from tests.made_sources import natural_catalog
from tests.unit.test_page import Reader, page

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
    assert len(shown) == 4 and "no class stated" not in reader.text
    for key, told, caption in shown:
        assert told == caption == (f"{heard[key][0]} off screen" if heard[key] else "silence")
    assert {bool(heard[key]) for key, *_ in shown} == {True, False}
    assert "split samples nothing to mask frames" in " ".join(reader.sections["splits"].split())


EMPTY = media.encode_png(np.zeros((avsbench_tree.SIDE, avsbench_tree.SIDE), bool))
MS3_MASKS = "Multi-sources/ms3_data/gt_masks"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small AVSBench in its published layout."""
    avsbench_tree.write_tree(tmp_path / "tree", avsbench_tree.small())
    return tmp_path / "tree"


def emptied(tree: Path, masks: str) -> None:
    """Masks or label maps without anything in them."""
    paths = sorted((tree / masks).glob("*.png"))
    assert paths
    for path in paths:
        avsbench_tree.own_copy(path, EMPTY)


def sharded(tree: Path, subset: str) -> Corpus:
    """What the AVSBench job makes of a tree, in this process."""
    layout = avsbench.find(str(tree), subset)
    rows, _ = avsbench.clips(layout)
    uri = str(tree.parent / subset)
    records = [
        write_shard(uri, split, number, avsbench.read_clips(shard), plan="x")[0]
        for (split, number), shard in avsbench.plan_shards(rows, 64).items()
    ]
    manifest = build_manifest(
        kind=layout.kind, seed=0, recipe={}, sources={}, licences=[], shards=records, refused=[]
    )
    return Corpus(uri, manifest, sha256="")


def groups(text: str) -> dict[str, dict[str, tuple[str, str]]]:
    """By the heading of the gallery and the sample's key: what it sounds of and what is masked."""
    found = re.findall(r"<h3>([^<]*)</h3><div class=\"figures\">(.*?)</section>", text)
    shown = r'alt="Picture of (\S+), sound: (.*?)".*?class="mask".*?alt="(.*?) of the picture"'
    return {
        heading: {key: (told, area) for key, told, area in re.findall(shown, figures)}
        for heading, figures in found
    }


def splits(reader: Reader) -> str:
    return " ".join(reader.sections["splits"].split())


def test_ms3_is_said_to_state_no_class_and_not_to_be_silent(tree: Path) -> None:
    emptied(tree, f"{MS3_MASKS}/val/Efg_hij0123_36")
    text, reader = page(sharded(tree, "ms3"))
    assert "nothing to mask no class stated frames classes" in splits(reader)
    assert " train 3 0 3 15 0 1 " in splits(reader) and " val 1 1 0 5 0 1 " in splits(reader)
    assert "Samples for which no class is stated: 4." in reader.sections["classes"]
    assert "Nothing sounds" not in text and "<dt>classes</dt><dd>none stated</dd>" in text
    shown = groups(text)
    masked = {
        "ms3-train-Efg_hij0123_4", "ms3-train-Fgh-ijk0123", "ms3-train-baby_dog_2_1",
        "ms3-test--bcdefg0123_36",
    }  # fmt: skip
    assert shown == {
        "no class stated": dict.fromkeys(masked, ("no class stated", "mask 25.0%")),
        "nothing to mask": {"ms3-val-Efg_hij0123_36": ("no class stated", "empty mask")},
    }
    assert "silence" not in "".join(reader.sections[f"class-{number}"] for number in range(2))


def test_only_a_miniature_of_ms3_is_known_to_be_silent(tree: Path) -> None:
    quiet = {"class": "cow", "asset": "cow.png", "sounding": False, "visible": {}}
    sounding = {**quiet, "sounding": True}
    clips = {
        clip.name: {"frames": [[sounding]] * 5, "sound": ["cow.ogg"]}
        for clip in avsbench_tree.small()
        if clip.subset == "ms3"
    }
    clips["Efg_hij0123_36"] = {"frames": [[quiet]] * 5, "sound": []}
    emptied(tree, f"{MS3_MASKS}/val/Efg_hij0123_36")
    (tree / "miniature.json").write_text(json.dumps({"kind": "miniature", "clips": clips}))
    text, reader = page(sharded(tree, "ms3"))
    shown = groups(text)
    assert shown["nothing to mask"] == {"ms3-val-Efg_hij0123_36": ("silence", "empty mask")}
    assert {told for told, _ in shown["cow"].values()} == {"cow"}
    assert "no class stated" not in reader.text


def test_the_semantic_subsets_say_what_their_table_does(tree: Path) -> None:
    hidden, background = "v2/Ghi_jkl0123_16000_26000", "v1m/Efg_hij0123_36"
    emptied(tree, f"{hidden}/labels_rgb")
    text, reader = page(sharded(tree, "avss"))
    assert " train 3 1 0 20 3 1 " in splits(reader) and " val 2 0 1 15 2 1 " in splits(reader)
    shown = groups(text)
    assert shown["nothing to mask"] == {
        f"v2-train-{Path(hidden).name}": ("a sound off screen", "empty mask")
    }
    unstated = {f"v1m-val-{Path(background).name}": ("no class stated", "mask 37.5%")}
    assert shown["no class stated"] == unstated
    assert [told for told, _ in shown["emergency-car"].values()] == ["emergency-car"]
    emptied(tree, f"{background}/labels_rgb")
    shutil.rmtree(tree.parent / "avss")
    again = groups(page(sharded(tree, "avss"))[0])
    assert again["nothing to mask"][f"v1m-val-{Path(background).name}"][0] == "no class stated"


def test_a_clip_of_s4_without_a_mask_has_nothing_to_mask_and_keeps_its_class(tree: Path) -> None:
    emptied(tree, "Single-source/s4_data/gt_masks/test/dog_barking/Def-ghi0123")
    text, reader = page(sharded(tree, "s4"))
    assert " test 1 1 5 1 1 " in splits(reader) and " val 1 0 5 1 1 " in splits(reader)
    assert "no class stated" not in reader.text
    assert groups(text)["nothing to mask"] == {"s4-test-Def-ghi0123": ("dog_barking", "empty mask")}


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
