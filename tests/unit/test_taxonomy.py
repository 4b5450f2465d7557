"""The taxonomy against the publishers' own lists, and what readers and recipes ask of it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from synth.taxonomy import SOURCES, TIERS, Labels, classes, select

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT.parent / "shared" / "labels"

needs_lists = pytest.mark.skipif(
    not LISTS.is_dir(), reason="the publishers' lists are not beside the repository"
)

# source -> (file, column)
OFFICIAL = {
    "lvis": ("lvis_v1_categories.csv", "name"),
    "coco": ("coco_80.csv", "name"),
    "openimages": ("openimages_classes.csv", "mid"),
    "audioset": ("class_labels_indices.csv", "mid"),
    "esc50": ("esc50.csv", "category"),
    "fsd50k": ("fsd50k_vocabulary.csv", "name"),
    "avsbench_s4": ("s4_meta_data.csv", "category"),
}


def column(file: str, name: str) -> set[str]:
    with (LISTS / file).open(newline="", encoding="utf-8") as lines:
        return {row[name] for row in csv.DictReader(lines)}


def official(source: str) -> set[str]:
    if source == "vggsound":
        return set((LISTS / "vggsound_labels.txt").read_text(encoding="utf-8").splitlines())
    if source == "avss":
        return set(json.loads((LISTS / "avss_label2idx.json").read_text())) - {"background"}
    return column(*OFFICIAL[source])


def with_masks() -> set[str]:
    """The classes of Open Images' segmentation challenge, which have masks for certain."""
    return column("openimages_segmentation_300_challenge2019.csv", "mid")


def mapped(source: str) -> set[str]:
    return {label for row in classes() for label in row.labels[source]}


@needs_lists
@pytest.mark.parametrize("source", SOURCES)
def test_every_label_is_in_its_publishers_list(source: str) -> None:
    assert mapped(source) - official(source) == set()


@needs_lists
def test_every_audioset_label_is_in_the_ontology() -> None:
    assert mapped("audioset") - column("audioset_ontology.csv", "mid") == set()


@needs_lists
@pytest.mark.parametrize("source", SOURCES)
def test_each_official_label_is_mapped_or_counted_as_unknown(source: str) -> None:
    labels, known = Labels(source), {row.name for row in classes()}
    for label in official(source):
        meant = labels.of(label)
        assert (meant in known) != (labels.unknown[label] == 1), label
    # Beside labels without a class those are counted that several classes share.
    shared = Counter(label for row in classes() for label in row.labels[source])
    alone = {label for label, count in shared.items() if count == 1}
    assert set(labels.unknown) == official(source) - alone


@needs_lists
def test_each_open_images_class_with_masks_is_of_tier_a_or_counted_as_unknown() -> None:
    labels, tiers = Labels("openimages"), {row.name: row.tier for row in classes()}
    meant = {mid: labels.of(mid) for mid in with_masks()}
    assert len(meant) == 300 and meant.keys() < official("openimages")
    found = {mid for mid, name in meant.items() if name and tiers[name] == "A"}
    assert found == meant.keys() & mapped("openimages")
    assert set(labels.unknown) == meant.keys() - found


@needs_lists
def test_the_table_is_the_curated_mapping_with_its_tiers() -> None:
    with (LISTS / "taxonomy.csv").open(newline="") as lines:
        curated = {row["class"]: row for row in csv.DictReader(lines)}
    with (LISTS / "taxonomy_stats.csv").open(newline="") as lines:
        tiers = {row["class"]: row["tier"] for row in csv.DictReader(lines)}
    assert {row.name: row.tier for row in classes()} == tiers
    for row in classes():
        assert {s: "|".join(row.labels[s]) for s in SOURCES} == {
            s: curated[row.name][s] for s in SOURCES
        }


def test_no_class_is_there_twice() -> None:
    names = [row.name for row in classes()]
    assert len(names) == len(set(names)) == 135


def test_tiers_have_their_numbers_of_classes() -> None:
    counts = Counter(row.tier for row in classes())
    assert [counts[tier] for tier in TIERS] == [86, 16, 21, 12]


def test_every_class_has_a_source_of_pictures_and_one_of_sounds() -> None:
    for row in classes():
        assert any(row.labels[s] for s in ("lvis", "coco", "openimages")), row.name
        assert any(row.labels[s] for s in ("vggsound", "audioset", "esc50", "fsd50k")), row.name


def test_labels_with_commas_and_spaces_stay_whole() -> None:
    assert Labels("vggsound").of("donkey, ass braying") == "donkey"
    assert Labels("lvis").of("shepherd_dog") == "dog"
    assert Labels("openimages").of("/m/0bt9lr") == "dog"


def test_a_label_that_classes_share_means_none_of_them() -> None:
    roar = "/m/0cdnk"
    labels = Labels("audioset")
    assert labels.of(roar) is None
    assert labels.unknown == {roar: 1}
    assert roar in labels.names_of("lion")
    assert roar in labels.names_of("tiger")


def test_a_shared_label_means_the_only_class_that_is_asked_for() -> None:
    labels = Labels("audioset", classes=["tiger", "dog"])
    assert labels.of("/m/0cdnk") == "tiger"
    assert not labels.unknown


def test_a_class_that_is_not_asked_for_is_not_unknown() -> None:
    labels = Labels("coco", classes=("dog",))
    assert [labels.of("dog"), labels.of("cat"), labels.of("toaster oven")] == ["dog", None, None]
    assert labels.unknown == {"toaster oven": 1}
    assert not Labels("audioset", classes=("dog",)).of("/m/0cdnk")


def test_a_source_that_lacks_a_class_has_no_names_of_it() -> None:
    assert Labels("coco").names_of("donkey") == ()
    with pytest.raises(ValueError, match=r"'dnokey' is no class of the taxonomy.*donkey"):
        Labels("coco").names_of("dnokey")


def test_an_unknown_source_is_named_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"'open_images' is no source.*openimages"):
        Labels("open_images")


def test_nothing_given_selects_everything_in_the_order_of_the_table() -> None:
    assert select() == [row.name for row in classes()]
    assert select(names=["cat", "dog"]) == ["dog", "cat"]


def test_tiers_and_needs_select_together_and_names_are_added() -> None:
    needed = set(select(needed_by="s4"))
    assert needed == {row.name for row in classes() if row.labels["avsbench_s4"]}
    assert len(needed) == 20
    assert len(select(needed_by="avss")) == 61
    assert set(select(tiers=["A"], needed_by="s4")) == needed & set(select(tiers=["A"]))
    assert set(select(names=["wolf"], tiers=["D"])) == {"wolf", *select(tiers=["D"])}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": ["dog", "vioiln"]}, "'vioiln' is no class of the taxonomy.*violin"),
        ({"names": ["qqqqqq"]}, "'qqqqqq' is no class.*taxonomy.csv"),
        ({"tiers": ["E"]}, "'E' is no tier.*A, B, C, D"),
        ({"needed_by": "ms3"}, "'ms3' is no subset.*s4"),
    ],
)
def test_what_cannot_be_selected_is_named(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(**given)


def test_readers_that_share_a_source_do_not_share_counts() -> None:
    first, second = Labels("esc50"), Labels("esc50")
    first.of("no such sound")
    first.left_out["no file"] += 1
    assert not second.unknown
    assert not second.left_out
