"""The row types of every table, and how tables are stored (Parquet, equal rows in equal bytes).

An ``id`` is unique in its catalog. A ``uri`` is the path of the file below the catalog's media
folder. ``sha256`` is of the *decoded* pixels or samples, so that two files with the same content
have the same one. ``source`` is the package or collection, ``author`` and ``origin`` (a page or the
name of the original) stand where the source tells them.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.corpus import Refused as Refused

ROLES = ("object", "annotated", "sound", "background", "silent", "photo")


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An object that a source marks in a photograph, not looked at yet.

    Just one of ``segmentation`` and ``mask_path`` is set.
    """

    id: str
    """Unique in its source."""
    class_name: str
    segmentation: str = ""
    """JSON of COCO's ``segmentation``: a list of polygons, or run lengths (``counts`` a list or a
    string) with their ``size``."""
    mask_path: str = ""
    """A mask picture below the source's folder."""
    crowd: bool = False
    """Whether it covers several objects that nobody told apart (COCO's ``iscrowd``)."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture or sound that a source offers for a role, not looked at yet."""

    role: str
    """One of ``ROLES``; an ``annotated`` one is a photograph with objects marked in it."""
    source: str
    """The package or collection."""
    path: str
    """Of the file, below the folder of its source."""
    root: str = "media"
    """The name under which the catalog knows that folder."""
    class_name: str = ""
    licence: str = ""
    author: str = ""
    origin: str = ""
    collection: str = ""
    video: str = ""
    """The YouTube id of the video that a sound was cut from, where there is one."""
    annotations: tuple[Annotation, ...] = ()
    """The objects in an annotated photograph, those of the taxonomy's classes alone."""
    absent: tuple[str, ...] = ()
    """Classes of which the source states that the photograph does not show them."""
    refusal: str = ""
    """The reason where the source itself knows that it must not be used."""

    def refused(self, reason: str) -> Candidate:
        """The same candidate with a reason why it must not be used."""
        return dataclasses.replace(self, refusal=reason)


@dataclass(frozen=True, kw_only=True)
class Object:
    """A photographic cut-out (RGBA) of something that sounds.

    ``mask_fraction``: share of the pixels whose alpha is at least 128 of 255.
    """

    id: str
    class_name: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    width: int
    height: int
    mask_fraction: float
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SilentObject:
    """A photographic cut-out (RGBA) of something that has no sound here: a distractor."""

    id: str
    class_name: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    width: int
    height: int
    mask_fraction: float
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A sound of one class. ``rate`` in Hz; ``rms`` and ``peak`` of full scale 1, in mono."""

    id: str
    class_name: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    seconds: float
    rate: int
    rms: float
    peak: float
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Background:
    """A photograph without anything in it that sounds. ``collection`` groups similar ones."""

    id: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    collection: str
    width: int
    height: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A natural photograph of a class, without a mask: something to predict on."""

    id: str
    class_name: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    width: int
    height: int
    sha256: str


class _Row(Protocol):
    __dataclass_fields__: dict[str, Any]

    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_Row)

_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema(row_type: type[_Row]) -> pa.Schema:
    """The Arrow schema of a row type; no column is nullable."""
    kinds = get_type_hints(row_type)
    return pa.schema(
        [
            pa.field(field.name, _ARROW_TYPES[kinds[field.name]], nullable=False)
            for field in dataclasses.fields(row_type)  # type: ignore[arg-type]
        ]
    )


def write_table(uri: str, row_type: type[Row], rows: Sequence[Row]) -> None:
    """Write rows as one Parquet file, sorted by id."""
    ordered = sorted(rows, key=lambda row: row.id)
    table = pa.Table.from_pylist([vars(row) for row in ordered], schema=schema(row_type))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", version="2.6")
    storage.write_bytes(uri, buffer.getvalue())


def read_table(uri: str, row_type: type[Row]) -> list[Row]:
    """The rows of a file that ``write_table`` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not Parquet, or with other columns than ``row_type``.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri} is no table: {error}") from None
    if not table.schema.equals(schema(row_type)):
        raise ValueError(
            f"{uri} has the columns {table.schema.names}, not those of {row_type.__name__}: "
            "make it again with this version"
        )
    return [row_type(**row) for row in table.to_pylist()]
