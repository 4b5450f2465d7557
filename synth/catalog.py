"""Candidates -> validated tables, and what was refused with its reason.

Every file is looked at (``inspection``), on a cluster where there is one, and ``assemble`` puts all
rows together. What comes out depends on the files alone, neither on their order nor on who looked
at them.

    <uri>/{objects,clips,backgrounds,silent,photos,refused}.parquet
    <uri>/catalog.json          the commit point, written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from infra import config, storage
from synth.inspection import MAX_BYTES, Accepted, inspect, refuse
from synth.rows import Rows
from synth.sources import Offer
from synth.tables import (
    MEDIA,
    Annotation,
    Background,
    Candidate,
    Clip,
    Object,
    Photo,
    Refused,
    locate,
)

FORMAT = 2
MARKER = "catalog.json"

MapRows: TypeAlias = Callable[
    [list[dict[str, str]], Callable[[dict[str, str]], dict[str, str]]], list[dict[str, str]]
]

_TABLES: dict[str, type[Any]] = {
    "objects": Object,
    "clips": Clip,
    "backgrounds": Background,
    "silent": Object,
    "photos": Photo,
    "refused": Refused,
}
_TABLE_OF_ROLE = {
    "object": "objects",
    "annotated": "objects",
    "sound": "clips",
    "background": "backgrounds",
    "silent": "silent",
    "photo": "photos",
}
# Candidates that are looked at before the next are asked for: a source can have millions.
_BATCH = 20_000


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The validated tables, each sorted by id. ``roots`` are the folders that URIs start from."""

    roots: dict[str, str]
    objects: Rows[Object]
    clips: Rows[Clip]
    backgrounds: Rows[Background]
    silent: Rows[Object]
    photos: Rows[Photo]
    refused: Rows[Refused]
    unknown_labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """How often each source's labels outside the taxonomy were met."""
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    """How many records of each source gave no candidate, by reason."""
    offered: str = ""
    """sha256 of the candidates that were looked at, and of the folders that they lie in."""

    @property
    def folder(self) -> str:
        """The URI of the media folder."""
        return self.roots[MEDIA]

    @property
    def classes(self) -> list[str]:
        """The classes that have both an object and a clip, sorted."""
        return sorted({*self.objects.distinct("class_name")} & {*self.clips.distinct("class_name")})

    @property
    def fingerprint(self) -> str:
        """sha256 of the content of all tables; where the media lie does not matter."""
        return config.digest({name: getattr(self, name).digest() for name in _TABLES})

    @property
    def licences(self) -> dict[str, int]:
        """How many accepted rows stand under each licence."""
        counts: Counter[str] = Counter()
        for name in _TABLES:
            if name != "refused":
                codes, values = getattr(self, name).coded("licence")
                counts.update(dict(zip(values, np.bincount(codes, minlength=len(values)))))  # noqa: B905
        return {name: int(count) for name, count in sorted(counts.items()) if count}

    @property
    def refused_by_reason(self) -> dict[str, int]:
        """How many inputs were refused for each kind of reason."""
        return dict(sorted(Counter(row.reason.split(":")[0] for row in self.refused).items()))

    def uri_of(self, row: Accepted) -> str:
        """The full URI of a row's file."""
        return locate(self.roots, row.uri)

    def summary(self) -> dict[str, Any]:
        """Counts for people and reports."""
        counts = {name: len(getattr(self, name)) for name in _TABLES}
        return {
            **counts,
            "classes": len(self.classes),
            "refused_by_reason": self.refused_by_reason,
            "licences": self.licences,
            "unknown_labels": {name: sum(c.values()) for name, c in self.unknown_labels.items()},
        }

    def write(self, uri: str) -> None:
        """Write the tables, then the marker that makes them a catalog; one that stands stays."""
        try:
            if Catalog.read(uri) == self:
                return
        except (FileNotFoundError, ValueError):
            pass
        storage.remove(storage.join(uri, MARKER))
        for name in _TABLES:
            getattr(self, name).write(storage.join(uri, f"{name}.parquet"))
        marker = {
            "format": FORMAT,
            "roots": self.roots,
            "fingerprint": self.fingerprint,
            "offered": self.offered,
            **self.summary(),
            "unknown_labels": self.unknown_labels,
            "left_out": self.left_out,
        }
        storage.write_bytes(storage.join(uri, MARKER), config.canonical_json(marker))

    @classmethod
    def read(cls, uri: str) -> Catalog:
        """Read a catalog back.

        Raises:
            FileNotFoundError: there is none, or it was not finished.
            ValueError: another format, or the tables are not the ones that the marker speaks of.
        """
        try:
            marker = json.loads(storage.read_bytes(storage.join(uri, MARKER)))
            known = marker["format"] == FORMAT and isinstance(marker["roots"], dict)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"{uri} is no catalog of format {FORMAT}: make it again")
        tables: dict[str, Any] = {
            name: Rows.read(storage.join(uri, f"{name}.parquet"), row_type)
            for name, row_type in _TABLES.items()
        }
        about = {name: marker[name] for name in ("unknown_labels", "left_out", "offered")}
        catalog = cls(roots=marker["roots"], **tables, **about)
        if catalog.fingerprint != marker.get("fingerprint"):
            raise ValueError(f"the tables of {uri} are not those it was closed with: make it again")
        return catalog


def assemble(roots: Mapping[str, str], tables: Mapping[str, Sequence[Rows[Any]]]) -> Catalog:
    """All rows in their tables. Of files with the same decoded content the first by id stays.

    Args:
        tables: by name, in any number of parts and in any order.

    Raises:
        ValueError: nothing can be made of it: no object, no clip or no background is left, or no
            class has both an object and a clip.
    """
    whole: dict[str, Rows[Any]] = {
        name: Rows.joined(kind, tables.get(name, [])).sorted_by_id()
        for name, kind in _TABLES.items()
    }
    again = _duplicates({name: rows for name, rows in whole.items() if name != "refused"})
    refused = [whole["refused"]]
    for name, (numbers, firsts) in again.items():
        rows = whole[name]
        refused.append(
            Rows.of(
                Refused,
                [
                    Refused(id=row.id, source=row.source, reason=f"duplicate: {first}")
                    for row, first in zip(rows.take(numbers), firsts, strict=True)
                ],
            )
        )
        kept = np.ones(len(rows), bool)
        kept[numbers] = False
        whole[name] = rows.take(kept)
    whole["refused"] = Rows.joined(Refused, refused).sorted_by_id()
    compact: dict[str, Any] = {n: Rows.joined(r.row_type, [r]) for n, r in whole.items()}
    catalog = Catalog(roots=dict(roots), **compact)
    _check_usable(catalog)
    return catalog


def _duplicates(tables: Mapping[str, Rows[Any]]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """By table the rows that show or sound what an earlier row does, with what is said of them."""
    ids = np.concatenate([np.asarray(rows.texts("id"), object) for rows in tables.values()])
    contents = np.concatenate(
        [np.asarray(rows.texts("sha256"), object) for rows in tables.values()]
    )
    names = np.repeat(list(tables), [len(rows) for rows in tables.values()])
    first: dict[str, str] = {}
    found: dict[str, tuple[list[int], list[str]]] = {name: ([], []) for name in tables}
    starts = dict(zip(tables, np.cumsum([0, *map(len, tables.values())]), strict=False))
    for position in np.lexsort((names, ids)).tolist():
        ident = ids[position]
        earlier = first.setdefault(contents[position], ident)
        if earlier != ident:
            name = str(names[position])
            found[name][0].append(position - int(starts[name]))
            found[name][1].append(f"decodes to the same content as {earlier}")
    _add_second_sources(tables["objects"], *found["objects"])
    return {name: (np.asarray(numbers, np.int64), said) for name, (numbers, said) in found.items()}


def _add_second_sources(objects: Rows[Object], numbers: list[int], said: list[str]) -> None:
    """The objects of a photograph that another source marks the same class in.

    LVIS and COCO mark the same photographs, each in its own way: both together would show every
    object twice.
    """
    marked = np.flatnonzero(~np.isin(np.arange(len(objects)), numbers))
    picture, _ = objects.coded("picture")
    kind, _ = objects.coded("class_name")
    source, sources = objects.coded("source")
    order = np.argsort(np.argsort(sources)) if sources else np.zeros(0, int)
    # A photograph's class belongs to its first source by name.
    key = picture.astype(np.int64) * (int(kind.max(initial=0)) + 1) + kind
    least = np.full(len(objects), len(sources))
    groups, group = np.unique(key[marked], return_inverse=True)
    best = np.full(len(groups), len(sources))
    np.minimum.at(best, group, order[source[marked]])
    least[marked] = best[group]
    by_order = sorted(sources)
    for number in marked[order[source[marked]] > least[marked]].tolist():
        numbers.append(number)
        said.append(f"{by_order[least[number]]} marks the class in the same photograph")


def _check_usable(catalog: Catalog) -> None:
    where = ", ".join(sorted(catalog.roots.values()))
    needed: dict[str, Rows[Any]] = {"object": catalog.objects, "sound": catalog.clips}
    for what, rows in needed.items():
        if not len(rows):
            raise ValueError(f"{where} holds no usable {what}; {_first_refusal(catalog)}")
    if not catalog.classes:
        raise ValueError(
            f"no class in {where} has both an object and a sound: name the folders of "
            "objects/ and sounds/ alike, or add a source for the other"
        )


def _first_refusal(catalog: Catalog) -> str:
    if not len(catalog.refused):
        return "none was offered"
    first = catalog.refused[0]
    return f"{len(catalog.refused)} files were refused, the first is {first.id} ({first.reason})"


def map_here(
    rows: list[dict[str, str]], fn: Callable[[dict[str, str]], dict[str, str]]
) -> list[dict[str, str]]:
    """Apply ``fn`` to every row in this process."""
    return [fn(row) for row in rows]


def build_catalog(
    roots: Mapping[str, str] | str,
    candidates: Iterable[Candidate],
    *,
    map_rows: MapRows = map_here,
) -> Catalog:
    """Look at every candidate and assemble the catalog.

    Args:
        roots: the folder of each root, or the media folder alone.
        candidates: an ``Offer``, which also knows which labels its readers could not place, or
            anything else that yields candidates.
        map_rows: who applies a function to every row, in any order (``distribute.map_rows``
            does it on a Ray cluster).
    """
    folders = _normalised({MEDIA: roots} if isinstance(roots, str) else roots)
    digest = OfferDigest(folders)
    parts = _look(folders, digest.passing(candidates), map_rows)
    return _described(assemble(folders, parts), candidates, digest.value)


def _normalised(folders: Mapping[str, str]) -> dict[str, str]:
    return {name: storage.normalise(folder) for name, folder in folders.items()}


def look_again(
    catalog: Catalog, candidates: Iterable[Candidate], *, map_rows: MapRows = map_here
) -> Catalog:
    """The catalog with a second look at what it refused, of the same candidates."""
    refused = set(catalog.refused.texts("id"))

    def was_refused(candidate: Candidate) -> bool:
        marked = (f"{candidate.root}:{a.id}" for a in candidate.annotations)
        return candidate.uri in refused or any(ident in refused for ident in marked)

    parts = _look(catalog.roots, filter(was_refused, candidates), map_rows)
    for name in _TABLES:
        if name != "refused":
            known = getattr(catalog, name)
            old = set(known.texts("id"))
            parts[name] = [
                known,
                *(p.take(np.asarray([i not in old for i in p.texts("id")])) for p in parts[name]),
            ]
    return _described(assemble(catalog.roots, parts), candidates, catalog.offered)


def _described(catalog: Catalog, candidates: Iterable[Candidate], offered: str) -> Catalog:
    labels = getattr(candidates, "labels", {})
    return dataclasses.replace(
        catalog,
        offered=offered,
        unknown_labels={n: dict(sorted(known.unknown.items())) for n, known in labels.items()},
        left_out={n: dict(sorted(known.left_out.items())) for n, known in labels.items()},
    )


class OfferDigest:
    """sha256 of candidates in any order, taken as they pass, and of the folders of their roots."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = config.digest(dict(folders)).encode()
        self._digests: list[bytes] = []

    def passing(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        """The candidates, each noted."""
        for candidate in candidates:
            self._digests.append(hashlib.sha256(_packed(candidate).encode()).digest())
            yield candidate

    @property
    def value(self) -> str:
        """Of all that have passed."""
        return hashlib.sha256(b"".join([self._folders, *sorted(self._digests)])).hexdigest()


def digest_of_offer(offer: Offer) -> str:
    """What ``Catalog.offered`` is of a catalog of this offer."""
    digest = OfferDigest(_normalised(offer.roots))
    for _ in digest.passing(offer):
        pass
    return digest.value


def _look(
    roots: Mapping[str, str], candidates: Iterable[Candidate], map_rows: MapRows
) -> dict[str, list[Rows[Any]]]:
    parts: dict[str, list[Rows[Any]]] = {name: [] for name in _TABLES}
    look = partial(_inspect_row, roots=roots)
    remaining = iter(candidates)
    while batch := list(islice(remaining, _BATCH)):
        made: dict[str, list[Any]] = {name: [] for name in _TABLES}
        made["refused"] += [refuse(c, c.refusal) for c in batch if c.refusal]
        rows = [{"candidate": _packed(c)} for c in batch if not c.refusal]
        for answer in map_rows(rows, look):
            for name, values in json.loads(answer["rows"]):
                made[name].append(_TABLES[name](**values))
        for name, some in made.items():
            if some:
                parts[name].append(Rows.of(_TABLES[name], some))
    return parts


def _packed(candidate: Candidate) -> str:
    return json.dumps(dataclasses.asdict(candidate))


def _unpacked(text: str) -> Candidate:
    values = json.loads(text)
    values["annotations"] = tuple(Annotation(**a) for a in values["annotations"])
    values["absent"], values["partial"] = tuple(values["absent"]), tuple(values["partial"])
    return Candidate(**values)


def _inspect_row(row: dict[str, str], *, roots: Mapping[str, str]) -> dict[str, str]:
    """``inspect`` for a row of strings: what a table of mixed row types can carry."""
    candidate = _unpacked(row["candidate"])

    def read(path: str) -> bytes:
        uri = storage.join(roots[candidate.root], path)
        bytes_there = storage.size(uri)
        if bytes_there > MAX_BYTES:
            raise ValueError(f"size: {bytes_there} bytes, more than {MAX_BYTES}")
        return storage.read_bytes(uri, limit=MAX_BYTES)

    def read_mask(path: str) -> bytes:
        try:
            return read(path)
        except FileNotFoundError:
            raise ValueError(f"mask: {path} does not exist") from None

    try:
        made = inspect(candidate, read(candidate.path), read_mask)
    except FileNotFoundError:
        made = [refuse(candidate, "missing: no such file")]
    except ValueError as error:
        made = [refuse(candidate, str(error))]
    return {"rows": json.dumps(list(_tabled(candidate, made)))}


def _tabled(
    candidate: Candidate, made: Sequence[Accepted | Refused]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in made:
        name = "refused" if isinstance(row, Refused) else _TABLE_OF_ROLE[candidate.role]
        yield name, vars(row)
