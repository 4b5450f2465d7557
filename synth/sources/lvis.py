"""LVIS: photographs of COCO with masks of 1203 categories, https://www.lvisdataset.org.

A federated data set: every photograph is annotated for some categories alone. Its record names
those that it is sure not to show (``neg_category_ids``) and those of which only some instances are
marked (``not_exhaustive_category_ids``); of all others nothing is known where nothing is marked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from synth.sources import coco_json
from synth.tables import Candidate
from synth.taxonomy import Labels

NAME = "lvis"

_URL = re.compile(r".*/((?:train|val|test)2017/[^/]+)")


@dataclass(frozen=True, kw_only=True)
class LvisConfig:
    """Where LVIS lies."""

    folder: str
    """A path or URI below which both the annotations and COCO's photographs lie."""
    annotations: tuple[str, ...] = ("annotations/lvis_v1_train.json",)
    """Files of annotations below the folder, as published."""
    images: str = ""
    """The folder below it that holds train2017/ and val2017/: the files for validation show
    photographs out of both."""


def candidates(source: LvisConfig, labels: Labels) -> Iterator[Candidate]:
    """Every photograph with a mask of a class asked for: file by file, by image id.

    A class that joins several categories (dog, puppy, bulldog, ...) is ``absent`` only where the
    photograph is sure to show none of them: every single one is among its negative categories,
    none is annotated, and none is said to be annotated in part.

    Raises:
        FileNotFoundError: one of the annotations' files is not there.
        ValueError: one is no JSON, cut off, or holds no instance annotations.
    """
    return coco_json.candidates(
        NAME,
        source.folder,
        source.annotations,
        source.images,
        labels,
        path_of=_path,
        denied=_denied,
    )


def _path(annotations: str, record: coco_json.Record) -> str:
    """``train2017/000000391895.jpg``, the end of ``coco_url``: no other field names the file."""
    url = record.get("coco_url")
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if not found:
        raise ValueError("row: no coco_url of a photograph of COCO 2017")
    return found[1]


def _denied(record: coco_json.Record, categories: Collection[int]) -> set[int]:
    negative = record.get("neg_category_ids", [])
    partly = record.get("not_exhaustive_category_ids", [])
    if not isinstance(negative, list) or not isinstance(partly, list):
        return set()
    return set(negative) - set(partly)
