"""LVIS and COCO instance annotations in their published JSON, made record by record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synth.sources import coco, lvis
from synth.tables import Candidate
from synth.taxonomy import Labels

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
