"""LVIS and COCO: their JSON in the published formats, and what damaged or hostile files do."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from synth import taxonomy
from synth.sources import coco, lvis
from synth.sources.coco_json import MAX_SEGMENTATION, MAX_SEGMENTATIONS_OF_PHOTOGRAPH
from synth.sources.json_records import MAX_RECORD, read_records
from synth.tables import Candidate
from synth.taxonomy import Labels

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT.parent / "shared" / "labels"

SQUARE = [[1.5, 1, 9, 1, 9, 8.25, 1.5, 8.25]]
LICENCES = [
    {
        "url": "http://creativecommons.org/licenses/by-nc/2.0/",
        "id": 2,
        "name": "Attribution-NonCommercial License",
    },
    {"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"},
]
LVIS_CATEGORIES = ("goat", "cat", "kitten", "aerosol_can", "accordion", "zebra")
COCO_CATEGORIES = ("person", "dog", "fork", "spoon", "cup")

Json = dict[str, Any]


def photograph(number: int, split: str = "train2017", **more: Any) -> Json:
    """An image's record but for what only one of the two has."""
    return {
        "license": 4,
        "coco_url": f"http://images.cocodataset.org/{split}/{number:012}.jpg",
        "height": 10,
        "width": 12,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{number}_z.jpg",
        "id": number,
        **more,
    }


def coco_photograph(number: int, **more: Any) -> Json:
    return photograph(number, **{"file_name": f"{number:012}.jpg", **more})


def lvis_photograph(number: int, split: str = "train2017", **more: Any) -> Json:
    lists: Json = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return photograph(number, split, **{**lists, **more})


def annotation(
    number: Any, of: Any, category: Any, segmentation: Any = SQUARE, **more: Any
) -> Json:
    return {
        "segmentation": segmentation,
        "area": 54.375,
        "image_id": of,
        "bbox": [1.5, 1, 7.5, 7.25],
        "category_id": category,
        "id": number,
        **more,
    }


def lvis_json(images: list[Json], annotations: list[Json], **more: Any) -> Json:
    return {
        "info": {"description": "LVIS v1.0", "version": "1.0"},
        "annotations": annotations,
        "images": images,
        "licenses": LICENCES,
        "categories": [
            {"id": number, "name": name, "synset": f"{name}.n.01", "synonyms": [name]}
            | {"def": "", "frequency": "c", "image_count": 9, "instance_count": 9}
            for number, name in enumerate(LVIS_CATEGORIES, 1)
        ],
        **more,
    }


def coco_json(images: list[Json], annotations: list[Json], **more: Any) -> Json:
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": LICENCES,
        "images": images,
        "annotations": [{"iscrowd": 0} | record for record in annotations],
        "categories": [
            {"supercategory": "thing", "id": number, "name": name}
            for number, name in enumerate(COCO_CATEGORIES, 1)
        ],
        **more,
    }


def write_tree(folder: Path, name: str, content: Json | str, *pictures: str) -> None:
    """A file of annotations and the photographs beside it; no reader looks into those."""
    text = content if isinstance(content, str) else json.dumps(content)
    for path, data in ((f"annotations/{name}", text), *((path, "jpeg") for path in pictures)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(data)


def picture(number: int, split: str = "train2017") -> str:
    return f"{split}/{number:012}.jpg"


def read_lvis(folder: Path, labels: Labels | None = None, **more: Any) -> list[Candidate]:
    config = lvis.LvisConfig(folder=str(folder), **more)
    return list(lvis.candidates(config, labels or Labels("lvis")))


def read_coco(folder: Path, labels: Labels | None = None, **more: Any) -> list[Candidate]:
    config = coco.CocoConfig(folder=str(folder), **more)
    return list(coco.candidates(config, labels or Labels("coco")))


def read_one_annotation(folder: Path, record: Any) -> tuple[list[Candidate], Labels]:
    """What comes of a good annotation (id 1) and another one in the same photograph (id 2)."""
    content = coco_json([coco_photograph(5)], [annotation(1, 5, 2)])
    content["annotations"].append(record)
    write_tree(folder, "instances_train2017.json", content, picture(5))
    labels = Labels("coco")
    return read_coco(folder, labels), labels


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


@pytest.mark.parametrize(
    "record",
    [
        annotation(2, 5, 2, segmentation=[[float("nan"), 1, 2, 3, 4, 5]]),
        annotation(2, 5, 2, segmentation=[[float("inf"), 1, 2, 3, 4, 5]]),
        annotation(2, 5, 2, segmentation="1,2,3,4,5,6"),
        annotation(2, 5, 2, segmentation=[]),
        annotation(2, 5, 2, segmentation=[1, 2, 3, 4, 5, 6]),
        annotation(2, 5, 2, segmentation=[[[[[1, 2]]]]]),
        annotation(2, 5, 2, segmentation={"counts": [1, 2]}),
        annotation(2, 5, 2, segmentation={"size": [10, 12], "counts": {"a": 1}}),
        annotation(2, 5, 2, segmentation=[[7] * MAX_SEGMENTATION]),
    ],
    ids=lambda record: str(record)[:60],
)
def test_an_annotation_with_a_bad_mask_is_passed_on_as_refused(tmp_path: Path, record: Any) -> None:
    (found,), labels = read_one_annotation(tmp_path, record)
    good, bad = found.annotations
    assert (good.id, good.refusal) == ("instances_train2017-1", "")
    assert bad.id == "instances_train2017-2" and bad.refusal.startswith("mask: ")
    assert bad.segmentation == "" and not labels.left_out


@pytest.mark.parametrize(
    "record",
    [
        annotation(2, 5, 77),
        annotation(2, 5, None),
        annotation(2, 6, 2),
        annotation(2, "five", 2),
        annotation(2, [5], 2),
        annotation("two", 5, 2),
        annotation(1 << 80, 5, 2),
        annotation(True, 5, 2),
        {},
        None,
        [1, 2],
        "annotation",
    ],
    ids=lambda record: str(record)[:60],
)
def test_a_bad_annotation_is_left_out_and_counted_alone(tmp_path: Path, record: Any) -> None:
    (found,), labels = read_one_annotation(tmp_path, record)
    assert [mark.id for mark in found.annotations] == ["instances_train2017-1"]
    assert sum(labels.left_out.values()) == 1


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3]], [["1", "2"]], [[None] * 6], {"size": [999, -1], "counts": [5]}],
    ids=str,
)
def test_what_only_decoding_can_tell_is_passed_on(tmp_path: Path, segmentation: Any) -> None:
    (found,), labels = read_one_annotation(tmp_path, annotation(2, 5, 2, segmentation))
    assert json.loads(found.annotations[1].segmentation) == segmentation
    assert not labels.left_out


def test_annotations_that_share_an_id_are_all_left_out(tmp_path: Path) -> None:
    content = coco_json(
        [coco_photograph(1), coco_photograph(2)],
        [annotation(1, 1, 2), annotation(2, 1, 1), annotation(2, 2, 2)],
    )
    write_tree(tmp_path, "instances_train2017.json", content, picture(1), picture(2))
    labels = Labels("coco")
    (found,) = read_coco(tmp_path, labels)
    assert [mark.class_name for mark in found.annotations] == ["dog"]
    # The person is still there to be seen.
    assert found.absent == ("cutlery",)
    assert labels.left_out == {"annotations: an id that others have as well": 2}


def test_ids_of_annotations_differ_between_files(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        content = coco_json([coco_photograph(1)], [annotation(1, 1, 2)])
        write_tree(tmp_path, f"instances_{split}.json", content, picture(1, split))
    names = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
    ids = [mark.id for one in read_coco(tmp_path, annotations=names) for mark in one.annotations]
    assert ids == ["instances_train2017-1", "instances_val2017-1"]
    with pytest.raises(ValueError, match="names differ"):
        read_coco(tmp_path, annotations=(names[0], names[0]))


def test_a_photograph_comes_once(tmp_path: Path) -> None:
    images = [coco_photograph(1), coco_photograph(2, file_name=coco_photograph(1)["file_name"])]
    images.append(images[0])
    content = coco_json(images, [annotation(1, 1, 2), annotation(2, 2, 2)])
    write_tree(tmp_path, "instances_train2017.json", content, picture(1))
    labels = Labels("coco")
    (found,) = read_coco(tmp_path, labels)
    assert [mark.id for mark in found.annotations] == ["instances_train2017-1"]
    assert labels.left_out == {"a photograph listed twice": 1}


def test_photographs_that_share_an_id_are_refused(tmp_path: Path) -> None:
    images = [coco_photograph(1), coco_photograph(1, file_name=coco_photograph(2)["file_name"])]
    content = coco_json(images, [annotation(1, 1, 2)])
    write_tree(tmp_path, "instances_train2017.json", content, picture(1), picture(2))
    (found,) = read_coco(tmp_path)
    assert found.path == "annotations/instances_train2017.json#1"
    assert found.refusal.startswith("row: ")


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.jpg", "/etc/passwd", "a/../../b.jpg", "..", "", "a\\b.jpg", "a\0.jpg"),
        *("\ud800.jpg", "x" * 5000, None, 7, ["a.jpg"]),
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: Any) -> None:
    content = coco_json([coco_photograph(1, file_name=name)], [annotation(1, 1, 2)])
    write_tree(tmp_path / "coco", "instances_train2017.json", content)
    (tmp_path / "secret.jpg").write_bytes(b"")
    (found,) = read_coco(tmp_path / "coco")
    assert found.refusal.split(":")[0] in ("path", "row")
    assert found.path == "annotations/instances_train2017.json#1"


@pytest.mark.parametrize(
    "url",
    [
        *("http://x/train2017/../../b.jpg", "file:///etc/passwd", "/train2017/..", "b.jpg"),
        *("http://x/../b.jpg", "http://x/train2017/", None, 5, []),
    ],
    ids=str,
)
def test_an_address_that_names_no_photograph_is_refused(tmp_path: Path, url: Any) -> None:
    content = lvis_json([lvis_photograph(1, coco_url=url)], [annotation(1, 1, 1)])
    write_tree(tmp_path, "lvis_v1_train.json", content)
    (found,) = read_lvis(tmp_path)
    assert found.refusal.split(":")[0] in ("path", "row")


def test_a_photograph_without_a_file_is_left_out_and_counted(tmp_path: Path) -> None:
    content = coco_json(
        [coco_photograph(1), coco_photograph(2)], [annotation(1, 1, 2), annotation(2, 2, 2)]
    )
    write_tree(tmp_path, "instances_train2017.json", content, picture(2))
    labels = Labels("coco")
    assert [one.path for one in read_coco(tmp_path, labels)] == [picture(2)]
    assert labels.left_out == {"no file": 1}


def test_ids_may_be_strings_of_digits(tmp_path: Path) -> None:
    content = coco_json(
        [coco_photograph(1, id="1", license="4"), coco_photograph(2, id="img-2")],
        [annotation("8", "1", "2"), annotation(9, 2, 2)],
    )
    write_tree(tmp_path, "instances_train2017.json", content, picture(1), picture(2))
    labels = Labels("coco")
    (found,) = read_coco(tmp_path, labels)
    assert (found.path, found.licence) == (picture(1), "Attribution License")
    assert [mark.id for mark in found.annotations] == ["instances_train2017-8"]
    assert labels.left_out == {
        "images: a record without a whole number as its id": 1,
        "annotations: of an unknown photograph": 1,
    }


def test_records_of_other_types_do_no_harm(tmp_path: Path) -> None:
    junk: list[Any] = [None, 5, "x", [], {}, {"id": None}, {"id": [1]}, {"id": 3, "name": {}}]
    image = coco_photograph(1, license=[4], flickr_url={}, coco_url=7, extra={"deep": [[[1]]]})
    content = coco_json([image, *junk], [annotation(1, 1, 2)])
    content["categories"] += junk
    content["licenses"] = [*LICENCES, *junk]
    content["more"] = [1, "a", {"b": []}]
    write_tree(tmp_path, "instances_train2017.json", content, picture(1))
    (found,) = read_coco(tmp_path)
    assert (found.licence, found.origin) == ("not stated", "")


def test_more_annotations_than_a_photograph_can_have_refuse_it(tmp_path: Path) -> None:
    long = {"size": [480, 640], "counts": "0" * (MAX_SEGMENTATION - 100)}
    count = MAX_SEGMENTATIONS_OF_PHOTOGRAPH // MAX_SEGMENTATION + 1
    content = coco_json([coco_photograph(1)], [annotation(i, 1, 2, long) for i in range(count)])
    write_tree(tmp_path, "instances_train2017.json", content, picture(1))
    (found,) = read_coco(tmp_path)
    assert found.refusal.startswith("size: ")
    assert not found.annotations


WHOLE = json.dumps(coco_json([coco_photograph(1)], [annotation(1, 1, 2)]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WHOLE[:-1], "'}' is missing|',' is missing"),
        (WHOLE[: WHOLE.index('"annotations"') + 40], "near byte"),
        (WHOLE.replace('"area":', '"area" '), "near byte"),
        ("", "'{' is missing"),
        ("[]", "'{' is missing"),
        ("<html>not found</html>", "'{' is missing"),
        ('{"images": [' + "[" * 300_000, "nested too deeply"),
        ('{"images": ' + "[" * 300_000 + "]" * 300_000 + "}", "nested too deeply"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "near byte"),
        ('{"info": "' + "x" * (MAX_RECORD + (2 << 20)), "in one value"),
        ('{5: [], "images": []}', "a name is missing"),
        ("{}", "lists no images"),
        (WHOLE.replace('"annotations"', '"captions"'), "lists no annotations"),
        (WHOLE.replace('"categories": [', '"categories": [], "x": ['), "lists no categories"),
    ],
    ids=lambda value: value[:40],
)
def test_a_file_that_is_no_instance_annotations_is_named(
    tmp_path: Path, text: str, reason: str
) -> None:
    write_tree(tmp_path, "instances_train2017.json", text)
    with pytest.raises(ValueError, match=reason) as caught:
        read_coco(tmp_path)
    assert "instances_train2017.json" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_cut_at_any_place_is_noticed(tmp_path: Path) -> None:
    for end in range(0, len(WHOLE), 7):
        write_tree(tmp_path, "instances_train2017.json", WHOLE[:end])
        with pytest.raises(ValueError, match=f"of the {end} read"):
            read_coco(tmp_path)


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_train\.json"):
        read_lvis(tmp_path)
    (tmp_path / "annotations/lvis_v1_train.json").mkdir(parents=True)
    with pytest.raises(ValueError, match="is a folder"):
        read_lvis(tmp_path)
    with pytest.raises(ValueError, match="instances_<folder>"):
        read_coco(tmp_path, annotations=("annotations/mine.json",))
    with pytest.raises(ValueError, match="leads out"):
        read_lvis(tmp_path, images="../elsewhere")


def test_a_byte_order_mark_and_damaged_text_are_read_over(tmp_path: Path) -> None:
    data = json.dumps({"a": [{"name": "wörter", "b": "X"}]}, ensure_ascii=False, indent=1)
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + data.encode().replace(b"X", b"\xff"))
    assert list(read_records(str(path))) == [("a", {"name": "wörter", "b": "\ufffd"})]


def test_a_record_may_lie_across_any_number_of_reads(tmp_path: Path) -> None:
    rows: list[Any] = ["é" * length for length in (0, 1, 1 << 19, (1 << 20) + 3)] * 2 + [12345] * 9
    rows += [[1.5e-3] * 300_000]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": rows, "b": 1}, ensure_ascii=False))
    assert [value for _, value in read_records(str(path))] == rows


def test_a_number_may_lie_across_two_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for before in range((1 << 20) - 8, (1 << 20) + 2):
        path.write_text('{"a": ['.ljust(before) + "12345, -1.5e-3]}")
        assert [value for _, value in read_records(str(path))] == [12345, -0.0015]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    polygon = json.dumps([[round(1.37 * k % 640, 2) for k in range(1200)]])
    runs = json.dumps({"size": [480, 640], "counts": "o0Q1[2mb0" * 2900})
    (tmp_path / "annotations").mkdir()
    with (tmp_path / "annotations/instances_train2017.json").open("w") as file:
        file.write('{"annotations": [')
        for number in range(3000):
            # Two of three are of a class, and are kept on disk.
            record = annotation(number, number % 500, 1 + number % 3 * 2, "HERE")
            text = json.dumps(record).replace('"HERE"', polygon if number % 4 == 1 else runs)
            file.write(("," if number else "") + text)
        rest = coco_json([coco_photograph(number) for number in range(500)], [])
        del rest["annotations"]
        file.write("]," + json.dumps(rest)[1:])
        assert file.tell() > 60e6
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from Linux's /proc")
    (tmp_path / "train2017").mkdir()
    for number in range(500):
        (tmp_path / picture(number)).write_bytes(b"")
    code = """
import json, re, sys
from pathlib import Path
from synth.sources import coco
from synth.taxonomy import Labels
# getrusage would count what the parent of this process had in memory as well.
status = Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) >> 10
before, labels = peak(), Labels("coco")
found = [len(c.annotations) for c in coco.candidates(coco.CocoConfig(folder=sys.argv[1]), labels)]
print(json.dumps([len(found), sum(found), peak() - before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    photographs, annotations, grown_mb = json.loads(done.stdout)
    assert (photographs, annotations) == (500, 2000)
    assert grown_mb < 32, grown_mb


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
