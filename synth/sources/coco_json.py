"""Instance annotations in COCO's JSON, the kind of file that COCO and LVIS share, as candidates.

Such a file is one object that holds the arrays ``images``, ``annotations``, ``categories`` and
``licenses`` in any order, up to 1.1 GB of them. It is read twice, a record at a time: once for the
short arrays and then, when it is known which categories count, for the annotations. What is kept
of them lies in a temporary database on disk, so that memory holds one photograph at a time.

A record that cannot be used is left out and counted in ``Labels.left_out``. A file is given up
only where it is no JSON to its end, or holds no instance annotations.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from infra import storage
from synth.sources.database import temporary_database
from synth.sources.json_records import read_records
from synth.tables import Annotation, Candidate
from synth.taxonomy import Labels

# Characters. No published record comes near any of these.
MAX_SEGMENTATION = 1 << 20
MAX_SEGMENTATIONS_OF_PHOTOGRAPH = 16 << 20
MAX_PHOTOGRAPH = 1 << 16
MAX_TEXT = 1000
# LVIS has 1203 categories, and both have eight licences.
MAX_ENTRIES = 100_000

Record = dict[str, Any]
PathOf = Callable[[str, Record], str]
Denied = Callable[[Record, Collection[int]], Collection[int]]

# ``versions`` counts the different records under one id. A category is NULL where it cannot be
# told, and a segmentation empty where it cannot be used: both still show that something is there.
_TABLES = """
    CREATE TABLE photographs (id INTEGER PRIMARY KEY, record TEXT, versions INTEGER);
    CREATE TABLE annotations (
        photograph INTEGER, id INTEGER, category INTEGER, crowd INTEGER, segmentation TEXT,
        refusal TEXT
    );
"""
_ADD_PHOTOGRAPH = """
    INSERT INTO photographs VALUES (?, ?, 1)
    ON CONFLICT (id) DO UPDATE SET versions = versions + (record != excluded.record)
"""
_EMPTY_SHARED_IDS = """
    UPDATE annotations SET segmentation = '', refusal = '' WHERE segmentation || refusal != ''
    AND id IN (SELECT id FROM annotations GROUP BY id HAVING count(*) > 1)
"""
_EMPTY_LOST = """
    UPDATE annotations SET segmentation = '', refusal = '' WHERE segmentation || refusal != ''
    AND photograph NOT IN (SELECT id FROM photographs)
"""
_WANTED = """
    SELECT id, record, versions, size FROM photographs JOIN (
        SELECT photograph, sum(length(segmentation) + length(refusal)) AS size FROM annotations
        GROUP BY photograph
    ) ON id = photograph WHERE size > 0 ORDER BY id
"""
_CATEGORIES_OF = "SELECT DISTINCT category FROM annotations WHERE photograph = ?"
_UNMARKED_OF = """
    SELECT DISTINCT category FROM annotations WHERE photograph = ? AND segmentation || refusal = ''
"""
_USABLE_OF = """
    SELECT id, category, crowd, segmentation, refusal FROM annotations
    WHERE photograph = ? AND segmentation || refusal != '' ORDER BY id
"""


def candidates(
    source: str,
    folder: str,
    annotations: Sequence[str],
    images: str,
    labels: Labels,
    *,
    path_of: PathOf,
    denied: Denied,
) -> Iterator[Candidate]:
    """Every photograph with an annotation of a class asked for: file by file, by image id.

    A class is ``absent`` from a photograph where the source denies every one of the categories
    that the taxonomy joins in it, and none of them is annotated there, well or badly.

    Args:
        source: the name and the root of the candidates.
        annotations: the JSON files, below ``folder``.
        images: the folder of the photographs, below ``folder``.
        path_of: (JSON file, record of a photograph) -> its path below ``images``, or ValueError
            with the reason why it has none.
        denied: (record of a photograph, ids of all categories) -> ids of those of which the source
            states that the photograph does not show them.

    Raises:
        FileNotFoundError: one of ``annotations`` is not there.
        ValueError: one is no JSON, cut off, or holds no instance annotations.
    """
    stems = [PurePosixPath(name).stem for name in annotations]
    if not stems or len(set(stems)) < len(stems):
        # Ids of annotations are unique in their file alone, so that its name is part of them.
        raise ValueError(f"annotations {list(annotations)}: give files whose names differ")
    storage.join(folder, images)  # ValueError where it leads out
    there: dict[str, set[str]] = {}
    seen: set[str] = set()
    for name, stem in zip(annotations, stems, strict=True):
        for photograph in _photographs(storage.join(folder, name), stem, labels, denied):
            record = photograph.record
            candidate = Candidate(
                role="annotated",
                source=source,
                root=source,
                path=f"{name}#{record['id']}",
                licence=photograph.licence,
                origin=_text(record.get("flickr_url")) or _text(record.get("coco_url")),
                annotations=photograph.annotations,
                absent=photograph.absent,
                partial=photograph.partial,
            )
            try:
                if photograph.refusal:
                    raise ValueError(photograph.refusal)
                path = _checked(path_of(name, record))
            except ValueError as error:
                yield candidate.refused(str(error))
                continue
            split = path.split("/")[0]
            if split not in there:
                there[split] = _files_in(folder, _below(images, split))
            path = _below(images, path)
            if path not in there[split]:
                labels.left_out["no file"] += 1
            elif path in seen:
                labels.left_out["a photograph listed twice"] += 1
            else:
                seen.add(path)
                yield dataclasses.replace(candidate, path=path)


def _checked(path: str) -> str:
    """The same path; ValueError unless each of its parts is a plain name."""
    # What begins with a dot is never listed.
    if len(path) > MAX_TEXT or any(
        not part or part.startswith(".") or "\\" in part or not part.isprintable()
        for part in path.split("/")
    ):
        raise ValueError(f"path: {path[:100]!a} is no name of a file below its folder")
    return path


def _below(images: str, path: str) -> str:
    return f"{images.strip('/')}/{path}" if images.strip("/") else path


def _files_in(folder: str, split: str) -> set[str]:
    """Paths below ``folder`` of all files in a folder there, with one listing."""
    root = storage.normalise(folder)
    return {uri[len(root) + 1 :] for uri in storage.list_files(storage.join(root, split))}


@dataclass(frozen=True, kw_only=True)
class _Photograph:
    record: Record
    licence: str
    annotations: tuple[Annotation, ...]
    absent: tuple[str, ...]
    partial: tuple[str, ...]
    refusal: str


@dataclass(frozen=True, kw_only=True)
class _Categories:
    names: dict[int, str]
    classes: dict[int, str]
    """Of those categories that mean a class asked for."""
    joined: dict[str, set[int]]
    """The categories of every class asked for of which the file has all that the taxonomy joins."""


def _photographs(uri: str, stem: str, labels: Labels, denied: Denied) -> Iterator[_Photograph]:
    """Every photograph of one file with a usable annotation, by id."""
    with temporary_database() as database:
        database.executescript(_TABLES)
        categories, licences = _read_short_arrays(uri, database, labels)
        _read_annotations(uri, database, labels, categories)
        for photograph, text, versions, size in database.execute(_WANTED):
            record = json.loads(text)
            refusal = ""
            if versions > 1:
                # None of them is told about, whichever came first.
                record = {"id": photograph}
                refusal = "row: its id is that of other photographs as well"
            elif size > MAX_SEGMENTATIONS_OF_PHOTOGRAPH:
                refusal = f"size: {size} characters of segmentations, too many for one photograph"
            rows = [] if refusal else database.execute(_USABLE_OF, (photograph,))
            marked = {row[0] for row in database.execute(_CATEGORIES_OF, (photograph,))}
            excluded = set(denied(record, categories.names)) - marked
            unmarked = {row[0] for row in database.execute(_UNMARKED_OF, (photograph,))}
            yield _Photograph(
                record=record,
                licence=licences.get(record.get("license"), "") or "not stated",
                annotations=tuple(
                    Annotation(
                        id=f"{stem}-{number}",
                        class_name=categories.classes[category],
                        segmentation=segmentation,
                        crowd=bool(crowd),
                        refusal=reason,
                    )
                    for number, category, crowd, segmentation, reason in rows
                ),
                absent=tuple(
                    sorted(
                        name
                        for name, joined in categories.joined.items()
                        if joined <= excluded and None not in marked
                    )
                ),
                partial=_partial(record, categories, unmarked),
                refusal=refusal,
            )


def _partial(
    record: Record, categories: _Categories, unmarked: Collection[int | None]
) -> tuple[str, ...]:
    """The classes of which LVIS marked some instances alone, or some marks cannot be used."""
    if None in unmarked:
        return tuple(sorted(set(categories.classes.values())))
    listed = record.get("not_exhaustive_category_ids")
    known = listed if isinstance(listed, list) else []
    numbers = {*unmarked, *(number for number in known if isinstance(number, int))}
    return tuple(sorted({categories.classes[n] for n in numbers if n in categories.classes}))


def _read_short_arrays(
    uri: str, database: sqlite3.Connection, labels: Labels
) -> tuple[_Categories, dict[int, str]]:
    """Photographs into the database; the categories, and the licences' names by id."""
    names: dict[int, str] = {}
    licences: dict[int, str] = {}
    sections = set()
    for section, record in read_records(uri):
        sections.add(section)
        if section not in ("images", "categories", "licenses"):
            continue
        number = _number(record.get("id")) if isinstance(record, dict) else None
        if number is None:
            labels.left_out[f"{section}: a record without a whole number as its id"] += 1
        elif section == "images":
            text = json.dumps(_flat(record), sort_keys=True)
            if len(text) > MAX_PHOTOGRAPH:
                labels.left_out["images: a record that is too long"] += 1
            else:
                database.execute(_ADD_PHOTOGRAPH, (number, text))
        else:
            table = names if section == "categories" else licences
            name = _text(record.get("name"))
            # Two names for one id: none of them holds.
            table[number] = name if table.get(number, name) == name else ""
            if len(table) > MAX_ENTRIES:
                raise ValueError(f"{uri} has more than {MAX_ENTRIES} {section}: give another file")
    for section in ("images", "annotations", "categories"):
        if section not in sections:
            raise ValueError(
                f"{uri} lists no {section}: give a file of instance annotations as its publisher "
                "wrote it"
            )
    return _meanings({number: name for number, name in names.items() if name}, labels), licences


def _meanings(names: dict[int, str], labels: Labels) -> _Categories:
    # Asked of a copy, because ``unknown`` counts annotations, not categories.
    quiet = copy.deepcopy(labels)
    meant = {number: quiet.of(name) for number, name in names.items()}
    classes = {number: name for number, name in meant.items() if name}
    joined: dict[str, set[int]] = {}
    for number, name in classes.items():
        joined.setdefault(name, set()).add(number)
    return _Categories(
        names=names,
        classes=classes,
        joined={
            name: numbers
            for name, numbers in joined.items()
            if {names[number] for number in numbers} == set(labels.names_of(name))
        },
    )


def _read_annotations(
    uri: str, database: sqlite3.Connection, labels: Labels, categories: _Categories
) -> None:
    """The annotations of the classes asked for into the database."""
    left_out = labels.left_out
    for section, record in read_records(uri):
        if section != "annotations":
            continue
        photograph = _number(record.get("image_id")) if isinstance(record, dict) else None
        if photograph is None:
            left_out["annotations: of an unknown photograph"] += 1
            continue
        number, category = _number(record.get("id")), _number(record.get("category_id"))
        segmentation = refusal = ""
        if category not in categories.names:
            left_out["annotations: of an unknown category"] += 1
            category = None
        elif category not in categories.classes:
            labels.of(categories.names[category])
            continue
        elif number is None:
            left_out["annotations: a record without a whole number as its id"] += 1
        else:
            try:
                segmentation = _segmentation(record.get("segmentation"))
            except ValueError as error:
                refusal = f"mask: {error}"
        crowd = bool(record.get("iscrowd"))
        row = (photograph, number, category, crowd, segmentation, refusal)
        database.execute("INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?)", row)
    for statement, reason in (
        (_EMPTY_SHARED_IDS, "annotations: an id that others have as well"),
        (_EMPTY_LOST, "annotations: of an unknown photograph"),
    ):
        if found := database.execute(statement).rowcount:
            left_out[reason] += found
    database.execute("CREATE INDEX by_photograph ON annotations (photograph)")


def _segmentation(value: Any) -> str:
    """Compact JSON of polygons or run lengths; whether they make a mask is told when decoded."""
    if isinstance(value, dict):
        value = {key: value.get(key) for key in ("size", "counts")}
        fits = _is_row(value["size"]) and (
            isinstance(value["counts"], str) or _is_row(value["counts"])
        )
    else:
        fits = isinstance(value, list) and bool(value) and all(map(_is_row, value))
    if not fits:
        raise ValueError("neither polygons nor run lengths")
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ValueError("a segmentation with a number that is none") from None
    if len(text) > MAX_SEGMENTATION:
        raise ValueError("a segmentation that is too long")
    return text


def _is_row(value: Any) -> bool:
    """Whether it is a list without lists or objects in it."""
    return isinstance(value, list) and {list, dict}.isdisjoint(map(type, value))


def _flat(record: Record) -> Record:
    """A record with nothing in it but plain values and lists of whole numbers.

    Ids come out as whole numbers; what nests deeper is in no published record.
    """
    flat: Record = {}
    for key, value in record.items():
        if key in ("id", "license"):
            flat[key] = _number(value)
        elif isinstance(value, list):
            flat[key] = [number for number in map(_number, value) if number is not None]
        elif not isinstance(value, dict):
            flat[key] = value
    return flat


def _number(value: Any) -> int | None:
    """A whole number that fits 64 bits, also where a tool wrote it as a string of digits."""
    if isinstance(value, str) and len(value) < 19 and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >> 63:
        return None
    return value


def _text(value: Any) -> str:
    """A line of text, or nothing."""
    usable = isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()
    return value if usable else ""
