"""Sources strewn with damaged and hostile files: one job takes what is sound and names the rest."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra import media
from infra.corpus import Corpus
from pipelines.synthesize import SynthesizeConfig, run
from synth.catalog import Catalog
from synth.recipe import Recipe, Samples
from tests import damaged_media
from tests.hostile_sources import PICTURES, SOUNDS, Tree, write_tree
from tests.made_sources import HEIGHT, WIDTH

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

RECIPE = Recipe(
    image_size=64,
    samples=Samples(train=96, val=4, test=4, unseen=0),
    samples_per_shard=26,
    # More than half of what is offered is not usable.
    max_refused=0.9,
    silence=0.0,
    background_shares=(0.7, 0.15, 0.15, 0.0),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return write_tree(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def made(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    uri = tmp_path_factory.mktemp("corpus") / "corpus"
    run(SynthesizeConfig(uri=str(uri), media=tree.media, corpus=RECIPE))
    return uri


def refused_rows(uri: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(uri / "refused.parquet").to_pylist()
    return rows


def test_whatever_cannot_be_used_is_refused_with_its_source_and_reason(
    tree: Tree, made: Path
) -> None:
    reasons = {row["id"]: row["reason"] for row in refused_rows(made)}
    program = reasons["avs_synthetic:category_for_vggsound_audios.pkl"]
    assert program.startswith("unreadable: it asks for code (")
    kinds = {ident: reasons.get(ident, "accepted").partition(":")[0] for ident in tree.refused}
    assert kinds == tree.refused
    for row in refused_rows(made):
        assert row["source"] == (row["id"].partition(":")[0] if ":" in row["id"] else "folder")
        assert row["reason"].isprintable() and len(row["reason"]) < 300


def test_every_file_is_either_accepted_or_refused(tree: Tree, made: Path) -> None:
    catalog = Catalog.read(str(made / "catalog"))
    accepted = {
        ident
        for rows in (catalog.objects, catalog.clips, catalog.backgrounds)
        for ident in rows.texts("id")
    }
    refused = {row["id"] for row in refused_rows(made)}
    assert accepted.isdisjoint(refused)
    root = Path(str(tree.media.folder))
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_file() and name.endswith((*PICTURES, *SOUNDS)):
            assert name in accepted | refused, name


def test_odd_but_valid_media_are_accepted(tree: Tree, made: Path) -> None:
    catalog = Catalog.read(str(made / "catalog"))
    reasons = {row["id"]: row["reason"] for row in refused_rows(made)}
    assert {ident: reasons[ident] for ident in tree.accepted if ident in reasons} == {}
    turned = next(row for row in catalog.backgrounds if row.id == "backgrounds/turned.jpg")
    assert (turned.width, turned.height) == (40, 56)
    stored = [row for row in catalog.objects if row.uri == "coco:train2017/000000000001.jpg"]
    assert stored and {(row.width, row.height) for row in stored} == {(WIDTH, HEIGHT)}
    printed = [row for row in catalog.objects if row.uri == "coco:train2017/000000000000.jpg"]
    assert {row.class_name for row in printed} == {"cat", "cow"}


def test_what_marks_nothing_is_refused_and_an_unknown_label_counted(made: Path) -> None:
    manifest = Corpus.open(str(made)).manifest
    reasons = Counter(row["reason"] for row in refused_rows(made))
    assert reasons["mask: neither polygons nor run lengths"] == 2
    assert reasons["mask: a segmentation with a number that is none"] == 1
    assert manifest["unknown_labels"]["esc50"] == {"cat, and dog": 1}


def test_no_shard_holds_anything_of_a_refused_file(tree: Tree, made: Path) -> None:
    corpus = Corpus.open(str(made))
    refused = {row["id"] for row in refused_rows(made)}
    sources: set[str] = set()
    samples = 0
    for split in corpus.splits:
        for row in range(len(corpus.table(split))):
            sample = corpus.read(split, row)
            (objects,) = sample.meta["objects"]
            used = {*sample.meta["sound"], *(shown["asset"] for shown in objects)}
            used.add(sample.meta["background"])
            assert used.isdisjoint(refused | tree.refused.keys()), sample.key
            sources |= {ident.partition(":")[0] if ":" in ident else "folder" for ident in used}
            image_HW3 = media.decode_image(sample.members["frame0.jpg"])
            mask_HW = media.decode_mask(sample.members["mask0.png"])
            wave_N, rate = media.decode_audio(sample.members["audio.flac"])
            assert image_HW3.shape == (64, 64, 3) and mask_HW.shape == (64, 64)
            assert (wave_N.size, rate) == (16_000, 16_000) and np.isfinite(wave_N).all()
            assert mask_HW.any() and np.abs(wave_N).max() > 0
            samples += 1
    # All the same it is a whole corpus, of every source.
    assert samples == 104
    assert sources == {"folder", "coco", "vggsound", "esc50", "avs_synthetic"}


def test_no_code_of_a_file_has_run(tree: Tree, made: Path, tmp_path: Path) -> None:
    assert (made / "corpus.json").exists()
    # The trap is one: whoever unpickles such a file steps into it.
    pickle.loads(damaged_media.not_media(str(tmp_path / "trap"))["pickle"])
    assert (tmp_path / "trap").exists()
    assert not tree.trap.exists()
