"""What damaged or hostile JSON of LVIS and COCO does: a record alone, or the file with its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synth.sources.coco_json import MAX_SEGMENTATION, MAX_SEGMENTATIONS_OF_PHOTOGRAPH
from synth.sources.json_records import MAX_RECORD
from synth.taxonomy import Labels
from tests.made_coco import (
    LICENCES,
    annotation,
    coco_json,
    coco_photograph,
    lvis_json,
    lvis_photograph,
    picture,
    read_coco,
    read_lvis,
    read_one_annotation,
    write_tree,
)


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
    assert found.partial == ("person",)
    assert labels.left_out == {"annotations: an id that others have as well": 2}


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
    with pytest.raises(ValueError, match="a folder stands"):
        read_lvis(tmp_path)
    with pytest.raises(ValueError, match="instances_<folder>"):
        read_coco(tmp_path, annotations=("annotations/mine.json",))
    with pytest.raises(ValueError, match="leads out"):
        read_lvis(tmp_path, images="../elsewhere")
