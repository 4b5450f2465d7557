"""LVIS and COCO: their JSON in the published formats."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from synth import taxonomy
from synth.taxonomy import Labels
from tests.made_coco import (
    annotation,
    coco_json,
    coco_photograph,
    lvis_json,
    lvis_photograph,
    picture,
    read_coco,
    read_lvis,
    write_tree,
)

LISTS = Path(__file__).resolve().parents[3] / "shared" / "labels"


def test_lvis_is_read_as_published(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        "lvis_v1_train.json",
        lvis_json(
            [lvis_photograph(391895, license=2), lvis_photograph(42), lvis_photograph(77)],
            [
                annotation(3, 391895, 2),
                annotation(1, 42, 1),
                annotation(2, 391895, 4),
                annotation(4, 77, 4),
            ],
        ),
        *map(picture, (391895, 42, 77)),
    )
    labels = Labels("lvis")
    first, second = read_lvis(tmp_path, labels)
    assert (first.path, second.path) == (picture(42), picture(391895))
    assert (second.role, second.source, second.root) == ("annotated", "lvis", "lvis")
    assert second.licence == "Attribution-NonCommercial License"
    assert second.origin == "http://farm9.staticflickr.com/8186/391895_z.jpg"
    (mark,) = second.annotations
    assert (mark.id, mark.class_name, mark.crowd) == ("lvis_v1_train-3", "cat", False)
    assert mark.segmentation == "[[1.5,1,9,1,9,8.25,1.5,8.25]]"
    # Both that are of no class, and the photograph that shows nothing else is not there.
    assert labels.unknown == {"aerosol_can": 2}
    assert not labels.left_out


def test_lvis_for_validation_finds_photographs_among_those_for_training(tmp_path: Path) -> None:
    content = lvis_json(
        [lvis_photograph(1), lvis_photograph(2, "val2017")],
        [annotation(1, 1, 1), annotation(2, 2, 1)],
    )
    pictures = ["coco/" + picture(1), "coco/" + picture(2, "val2017")]
    write_tree(tmp_path, "lvis_v1_val.json", content, *pictures)
    found = read_lvis(tmp_path, annotations=("annotations/lvis_v1_val.json",), images="coco/")
    assert [one.path for one in found] == pictures


def test_coco_is_read_as_published(tmp_path: Path) -> None:
    runs = {"counts": [30, 5, 85], "size": [10, 12]}
    packed = {"size": [10, 12], "counts": "Q1[2mb0"}
    write_tree(
        tmp_path,
        "instances_val2017.json",
        coco_json(
            [coco_photograph(139), coco_photograph(285)],
            [
                annotation(9, 139, 2, runs, iscrowd=1),
                annotation(8, 139, 1, packed),
                annotation(7, 139, 5),
            ],
        ),
        picture(139, "val2017"),
        picture(285, "val2017"),
    )
    labels = Labels("coco")
    (found,) = read_coco(tmp_path, labels, annotations=("annotations/instances_val2017.json",))
    assert (found.path, found.licence) == (picture(139, "val2017"), "Attribution License")
    person, dogs = found.annotations
    assert (person.class_name, person.crowd) == ("person", False)
    assert (dogs.id, dogs.class_name, dogs.crowd) == ("instances_val2017-9", "dog", True)
    assert json.loads(person.segmentation) == packed
    assert json.loads(dogs.segmentation) == runs
    assert labels.unknown == {"cup": 1}


def test_coco_of_2014_finds_its_photographs(tmp_path: Path) -> None:
    name = "COCO_train2014_000000000009.jpg"
    content = coco_json([coco_photograph(9, file_name=name)], [annotation(1, 9, 2)])
    write_tree(tmp_path, "instances_train2014.json", content, f"train2014/{name}")
    (found,) = read_coco(tmp_path, annotations=("annotations/instances_train2014.json",))
    assert found.path == f"train2014/{name}"


def test_only_the_classes_asked_for_are_kept(tmp_path: Path) -> None:
    content = coco_json(
        [coco_photograph(1), coco_photograph(2)], [annotation(1, 1, 2), annotation(2, 2, 1)]
    )
    write_tree(tmp_path, "instances_train2017.json", content, picture(1), picture(2))
    labels = Labels("coco", classes=["dog", "cutlery"])
    (found,) = read_coco(tmp_path, labels)
    assert [mark.class_name for mark in found.annotations] == ["dog"]
    assert found.absent == ("cutlery",)
    assert not labels.unknown


def test_coco_denies_what_it_has_no_annotation_of(tmp_path: Path) -> None:
    content = coco_json(
        [coco_photograph(number) for number in (1, 2, 3, 4)],
        [
            annotation(1, 1, 2),
            annotation(2, 1, 3, {"counts": [0, 120], "size": [10, 12]}, iscrowd=1),
            annotation(3, 2, 2),
            annotation(4, 2, 1, "no polygon"),
            annotation(5, 3, 2),
            annotation(6, 3, 99),
            annotation(7, 4, 2),
        ],
    )
    write_tree(tmp_path, "instances_train2017.json", content, *map(picture, (1, 2, 3, 4)))
    absent = [one.absent for one in read_coco(tmp_path)]
    # A crowd is there, so is what is marked badly, and an unknown category may be anything.
    assert absent == [("person",), ("cutlery",), (), ("cutlery", "person")]


def test_lvis_denies_a_class_only_where_it_denies_every_category_of_it(tmp_path: Path) -> None:
    goat, cat, kitten, zebra = 1, 2, 3, 6
    cases = {
        (): {"neg_category_ids": [cat]},
        ("cat",): {"neg_category_ids": [cat, kitten]},
        ("cat", "zebra"): {"neg_category_ids": [4, kitten, zebra, cat, 999]},
        ("zebra",): {"neg_category_ids": [zebra, cat, kitten]}
        | {"not_exhaustive_category_ids": [kitten]},
    }
    images = [lvis_photograph(number) | lists for number, lists in enumerate(cases.values())]
    images.append(lvis_photograph(50, neg_category_ids=[goat, zebra]))
    images.append(lvis_photograph(51, neg_category_ids="123"))
    marks = [annotation(100 + image["id"], image["id"], goat) for image in images]
    content = lvis_json(images, marks)
    write_tree(tmp_path, "lvis_v1_train.json", content, *(picture(i["id"]) for i in images))
    labels = Labels("lvis")
    found = read_lvis(tmp_path, labels)
    # A goat is marked in all of them, even where its category is denied.
    assert [one.absent for one in found] == [*cases, ("zebra",), ()]
    assert not labels.unknown


def test_lvis_does_not_deny_a_class_of_which_it_lacks_a_category(tmp_path: Path) -> None:
    content = lvis_json([lvis_photograph(1, neg_category_ids=[2])], [annotation(1, 1, 1)])
    content["categories"] = [one for one in content["categories"] if one["name"] != "kitten"]
    write_tree(tmp_path, "lvis_v1_train.json", content, picture(1))
    assert [one.absent for one in read_lvis(tmp_path)] == [()]


def test_the_order_of_records_and_arrays_does_not_matter(tmp_path: Path) -> None:
    images = [lvis_photograph(i, neg_category_ids=[2, 3]) for i in range(1, 8)]
    images += [lvis_photograph(3, license=2), lvis_photograph(6)]
    marks = [annotation(i, i % 8 + 1, 1 + i % 6) for i in range(40)]
    marks += [annotation(5, 1, 6), annotation(7, 4, 1, segmentation=[[1, 2, 3]])]
    outcomes = set()
    for seed in range(6):
        order = random.Random(seed)
        content = lvis_json(order.sample(images, len(images)), order.sample(marks, len(marks)))
        order.shuffle(content["categories"])
        content = dict(order.sample(list(content.items()), len(content)))
        write_tree(tmp_path / str(seed), "lvis_v1_train.json", content, *map(picture, range(8)))
        labels = Labels("lvis")
        found = read_lvis(tmp_path / str(seed), labels)
        assert len(found) == 7
        outcomes.add(repr((found, sorted(labels.unknown.items()), sorted(labels.left_out.items()))))
    assert len(outcomes) == 1


def test_ids_of_annotations_differ_between_files(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        content = coco_json([coco_photograph(1)], [annotation(1, 1, 2)])
        write_tree(tmp_path, f"instances_{split}.json", content, picture(1, split))
    names = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
    ids = [mark.id for one in read_coco(tmp_path, annotations=names) for mark in one.annotations]
    assert ids == ["instances_train2017-1", "instances_val2017-1"]
    with pytest.raises(ValueError, match="names differ"):
        read_coco(tmp_path, annotations=(names[0], names[0]))


def test_a_photograph_without_a_file_is_left_out_and_counted(tmp_path: Path) -> None:
    content = coco_json(
        [coco_photograph(1), coco_photograph(2)], [annotation(1, 1, 2), annotation(2, 2, 2)]
    )
    write_tree(tmp_path, "instances_train2017.json", content, picture(2))
    labels = Labels("coco")
    assert [one.path for one in read_coco(tmp_path, labels)] == [picture(2)]
    assert labels.left_out == {"no file": 1}


@pytest.mark.parametrize(("source", "file"), [("lvis", "lvis_v1_categories"), ("coco", "coco_80")])
def test_every_name_of_the_taxonomy_is_an_official_category(source: str, file: str) -> None:
    path = LISTS / f"{file}.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with path.open(newline="") as rows:
        official = {row["name"] for row in csv.DictReader(rows)}
    named = {label for row in taxonomy.classes() for label in row.labels[source]}
    assert named
    assert not named - official
