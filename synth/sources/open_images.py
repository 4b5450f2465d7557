"""Open Images (V5 and later): photographs whose objects are marked by mask pictures.

    train-annotations-object-segmentation.csv    2.7 M objects, not grouped by photograph
    train-masks/<MaskPath>                       published as 16 zips: unpacked side by side, or
    train-masks/<folder>/<MaskPath>              each into a folder
    train/<ImageID>.jpg
    train-images-boxable-with-rotation.csv       licences and authors (optional)
    train-annotations-human-imagelabels-boxable.csv    what people looked for in vain (optional)

Masks often differ from their photographs in resolution, never in shape: they were drawn on the
originals, and the published photographs are scaled. Labels are MIDs (``/m/0bt9lr``).

The tables meet in a SQLite database that SQLite keeps in a temporary file of its own, so memory
does not grow with them.
"""

from __future__ import annotations

import copy
import itertools
import logging
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infra import storage
from synth.sources.csv_rows import read_rows
from synth.sources.database import temporary_database
from synth.tables import Annotation, Candidate
from synth.taxonomy import Labels

logger = logging.getLogger(__name__)

NAME = "open_images"
# What the publisher lists for all photographs (storage.googleapis.com/openimages/web).
LICENCE = "CC BY 2.0"

_OBJECTS = [
    "MaskPath",
    "ImageID",
    "LabelName",
    "BoxID",
    *("BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax"),
    "PredictedIoU",
    "Clicks",
]
_PHOTOGRAPHS = [
    "ImageID",
    "Subset",
    *("OriginalURL", "OriginalLandingURL", "License", "AuthorProfileURL", "Author", "Title"),
    *("OriginalSize", "OriginalMD5", "Thumbnail300KURL", "Rotation"),
]
_IMAGE_LABELS = ["ImageID", "Source", "LabelName", "Confidence"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CREATIVE_COMMONS = re.compile(r"https?://creativecommons\.org/licenses/([a-z-]+)/([\d.]+)/?")

_SCHEMA = """
CREATE TABLE object (
    mask TEXT, image TEXT, class TEXT, times INTEGER, disputed INTEGER, path TEXT,
    PRIMARY KEY (mask, image, class)
) WITHOUT ROWID;
CREATE INDEX object_of_image ON object (image);
CREATE TABLE photograph (
    image TEXT PRIMARY KEY, path TEXT, licence TEXT, author TEXT, origin TEXT, disputed INTEGER
) WITHOUT ROWID;
CREATE TABLE absence (image TEXT, class TEXT, label TEXT, PRIMARY KEY (image, class, label))
    WITHOUT ROWID;
"""
_ADD_OBJECT = """
    INSERT INTO object VALUES (?, ?, ?, 1, 0, NULL)
    ON CONFLICT (mask, image, class) DO UPDATE SET times = times + 1
"""
# A mask that is given for several objects shows none of them, whichever row came first.
_DISPUTE = """
    UPDATE object SET disputed = 1
    WHERE mask IN (SELECT mask FROM object GROUP BY mask HAVING count(*) > 1)
"""
_ADD_LICENCE = """
    UPDATE photograph SET licence = ?1, author = ?2, origin = ?3,
    disputed = disputed OR ifnull((licence, author, origin) != (?1, ?2, ?3), 0)
    WHERE image = ?4
"""


@dataclass(frozen=True, kw_only=True)
class OpenImagesConfig:
    """Where Open Images lies. The defaults are the names of the train split."""

    folder: str
    """Path or URI of the folder with everything below."""
    annotations: str = "train-annotations-object-segmentation.csv"
    """The table of masks."""
    masks: str = "train-masks"
    """Folder of the mask pictures, at any depth."""
    images: str = "train"
    """Folder of ``<ImageID>.jpg``, at any depth."""
    photographs: str = "train-images-boxable-with-rotation.csv"
    """The table of licences and authors; without it the publisher's licence stands for all."""
    image_labels: str = "train-annotations-human-imagelabels-boxable.csv"
    """The table of labels that people confirmed or denied; without it nothing is known absent."""


def candidates(source: OpenImagesConfig, labels: Labels) -> Iterator[Candidate]:
    """A candidate per photograph with masks of the classes asked for, by ImageID.

    Objects and photographs whose files are not there are counted in ``labels.left_out``.

    Raises:
        FileNotFoundError: the table of masks is missing.
        ValueError: it is none, or another one.
    """
    with temporary_database() as database:
        database.execute("PRAGMA cache_size = -65536")  # KiB
        database.executescript(_SCHEMA)
        yield from _add_objects(database, source, labels)
        _add_files(database, source)
        yield from _add_optional(database, source, source.photographs, _add_licences, labels)
        yield from _add_optional(database, source, source.image_labels, _add_absences, labels)
        yield from _photographs(database, labels)


def _add_objects(
    database: sqlite3.Connection, source: OpenImagesConfig, labels: Labels
) -> Iterator[Candidate]:
    """Fill ``object`` and the ids of ``photograph``; yields what the rows themselves rule out."""
    rows = read_rows(
        storage.join(source.folder, source.annotations),
        _OBJECTS,
        required=("MaskPath", "ImageID", "LabelName"),
        left_out=labels.left_out,
    )
    for row in rows:
        mask, image, label = row["MaskPath"].removesuffix(".png"), row["ImageID"], row["LabelName"]
        refusal = ""
        if not (mask and image and label):
            refusal = "row: MaskPath, ImageID or LabelName is empty"
        elif not (_NAME.fullmatch(mask) and _NAME.fullmatch(image)):
            refusal = f"path: {row['MaskPath']!r} or {image!r} is no name of a file in its folder"
        if refusal:
            yield Candidate(
                role="annotated",
                source=NAME,
                root=NAME,
                path=row["MaskPath"] or image or source.annotations,
                licence=LICENCE,
                refusal=refusal,
            )
            continue
        class_name = labels.of(label)
        if class_name is None:
            continue
        database.execute(_ADD_OBJECT, (mask, image, class_name))
    database.execute(_DISPUTE)
    for reason, counted in (
        ("mask given twice", "sum(times - 1) FROM object WHERE NOT disputed"),
        ("mask of which rows differ", "sum(times) FROM object WHERE disputed"),
    ):
        (count,) = database.execute(f"SELECT {counted}").fetchone()
        if count:
            labels.left_out[reason] += count
    database.execute(
        "INSERT INTO photograph (image, disputed) SELECT DISTINCT image, 0 FROM object"
    )


def _add_files(database: sqlite3.Connection, source: OpenImagesConfig) -> None:
    """Note where masks and photographs lie; of two files with one name the first path counts."""
    for table, key, folder, ending in (
        ("object", "mask", source.masks.strip("/"), ".png"),
        ("photograph", "image", source.images.strip("/"), ".jpg"),
    ):
        database.executemany(
            f"UPDATE {table} SET path = min(ifnull(path, ?1), ?1) WHERE {key} = ?2",
            (
                (f"{folder}/{path}", path.rsplit("/", 1)[-1].removesuffix(ending))
                for path in storage.iter_files(storage.join(source.folder, folder))
                if path.endswith(ending)
            ),
        )


def _add_optional(
    database: sqlite3.Connection,
    source: OpenImagesConfig,
    name: str,
    add: Callable[[sqlite3.Connection, str, Labels], None],
    labels: Labels,
) -> Iterator[Candidate]:
    """Add what a table says that may be missing; a damaged one is refused, and holds up to there.

    Args:
        name: of the table; empty to do without it.
        add: takes the table's URI.
    """
    if not name:
        return
    uri = storage.join(source.folder, name)
    if not storage.exists(uri):
        labels.left_out[f"no table {name}"] += 1
        return
    try:
        add(database, uri, labels)
    except ValueError as error:
        logger.warning("not all of a table is used: %s", error)
        # Where the source lies must not show in the corpus.
        reason = str(error).replace(uri, name)
        yield Candidate(
            role="annotated",
            source=NAME,
            root=NAME,
            path=name,
            licence=LICENCE,
            refusal=f"unreadable: {reason[:200]}",
        )


def _add_licences(database: sqlite3.Connection, uri: str, labels: Labels) -> None:
    rows = read_rows(uri, _PHOTOGRAPHS, required={"ImageID", "License"}, left_out=labels.left_out)
    database.executemany(
        _ADD_LICENCE,
        (
            (
                _CREATIVE_COMMONS.sub(_licence_name, row["License"]),
                row["Author"],
                row["OriginalLandingURL"] or row["OriginalURL"],
                row["ImageID"],
            )
            for row in rows
        ),
    )


def _licence_name(link: re.Match[str]) -> str:
    return f"CC {link[1].upper()} {link[2]}"


def _add_absences(database: sqlite3.Connection, uri: str, labels: Labels) -> None:
    rows = read_rows(uri, _IMAGE_LABELS, required=set(_IMAGE_LABELS), left_out=labels.left_out)
    # What is not there was not met: it must not count among the unknown labels.
    quiet = copy.copy(labels)
    quiet.unknown = Counter()
    database.executemany(
        "INSERT OR IGNORE INTO absence SELECT ?1, ?2, ?3"
        " WHERE EXISTS (SELECT 1 FROM photograph WHERE image = ?1)",
        (
            (row["ImageID"], class_name, row["LabelName"])
            for row in rows
            if _is_zero(row["Confidence"])
            and (class_name := quiet.of(row["LabelName"])) is not None
        ),
    )


def _is_zero(number: str) -> bool:
    try:
        return float(number) == 0
    except ValueError:
        return False


def _photographs(database: sqlite3.Connection, labels: Labels) -> Iterator[Candidate]:
    photographs = database.execute(
        "SELECT image, path, ifnull(licence, ''), ifnull(author, ''), ifnull(origin, ''), disputed"
        " FROM photograph ORDER BY image"
    )
    for image, path, licence, author, origin, is_licence_disputed in photographs:
        objects = database.execute(
            "SELECT mask, class, path, disputed FROM object WHERE image = ? ORDER BY mask, class",
            (image,),
        ).fetchall()
        there = tuple(
            Annotation(id=mask, class_name=class_name, mask_path=mask_path)
            for mask, class_name, mask_path, disputed in objects
            if mask_path and not disputed
        )
        without = sum(not mask_path and not disputed for _, _, mask_path, disputed in objects)
        if path is None:
            labels.left_out["no image file"] += 1
            continue
        if without:
            labels.left_out["no mask file"] += without
        if not there:
            continue
        if is_licence_disputed:
            labels.left_out["licence of which rows differ"] += 1
            licence, author, origin = "not stated", "", ""
        shown = {class_name for _, class_name, _, _ in objects}
        unmarked = {name for _, name, mask_path, disputed in objects if disputed or not mask_path}
        yield Candidate(
            role="annotated",
            source=NAME,
            root=NAME,
            path=path,
            licence=licence or LICENCE,
            author=author,
            origin=origin or image,
            annotations=there,
            absent=tuple(name for name in _absent(database, image, labels) if name not in shown),
            partial=tuple(sorted(unmarked)),
        )


def _absent(database: sqlite3.Connection, image: str, labels: Labels) -> Iterator[str]:
    """The classes that a photograph lacks: those of which every label was denied."""
    denied = database.execute(
        "SELECT class, label FROM absence WHERE image = ? ORDER BY class", (image,)
    )
    for class_name, rows in itertools.groupby(denied, key=lambda row: row[0]):
        if {label for _, label in rows}.issuperset(labels.names_of(class_name)):
            yield class_name
