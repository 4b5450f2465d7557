"""COCO: photographs with masks of 80 categories, https://cocodataset.org, releases 2014 and 2017.

Every photograph is annotated for all 80, so that it shows none of those that it has no annotation
of. Where objects of a category are too many to tell apart, one annotation covers the crowd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from synth.sources import coco_json
from synth.tables import Candidate
from synth.taxonomy import Labels

NAME = "coco"

_FILE = re.compile(r"(?:.*/)?instances_(\w+)\.json")


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """Where COCO lies."""

    folder: str
    """A path or URI below which both the annotations and the photographs lie."""
    annotations: tuple[str, ...] = ("annotations/instances_train2017.json",)
    """Files of annotations below the folder, each named instances_<folder of its
    photographs>.json as published."""
    images: str = ""
    """The folder below it that holds train2017/ and val2017/."""


def candidates(source: CocoConfig, labels: Labels) -> Iterator[Candidate]:
    """Every photograph with a mask of a class asked for: file by file, by image id.

    A class is ``absent`` where the photograph has no annotation of it, not even one of a crowd or
    one that cannot be used.

    Raises:
        FileNotFoundError: one of the annotations' files is not there.
        ValueError: one is no JSON, cut off, holds no instance annotations, or has another name.
    """
    for name in source.annotations:
        if not _FILE.fullmatch(name):
            raise ValueError(
                f"annotations {name!r}: name the file instances_<folder>.json after the folder of "
                "its photographs, such as annotations/instances_train2017.json"
            )
    yield from coco_json.candidates(
        NAME,
        source.folder,
        source.annotations,
        source.images,
        labels,
        path_of=_path,
        denied=lambda record, categories: categories,
    )


def _path(annotations: str, record: coco_json.Record) -> str:
    """``train2017/000000391895.jpg``."""
    split, name = _FILE.sub(r"\1", annotations), record.get("file_name")
    if not isinstance(name, str):
        raise ValueError("row: no file_name")
    return f"{split}/{name}"
