"""Candidates -> validated tables, and what was refused with its reason.

``looking`` looks at every file, ``assemble`` puts all rows together. What comes out depends on the
files alone, neither on their order nor on who looked at them.

    <uri>/{objects,clips,backgrounds,silent,photos,refused}.parquet
    <uri>/catalog.json          the commit point, written last
    <uri>/looked-*.parquet      until then, what a run that is interrupted goes on from
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra import config, storage
from synth.inspection import Accepted
from synth.looked import Looked
from synth.rows import Rows
from synth.tables import MEDIA, Background, Clip, Object, Photo, Refused, locate

FORMAT = 3
MARKER = "catalog.json"

TABLES: dict[str, type[Any]] = {
    "objects": Object,
    "clips": Clip,
    "backgrounds": Background,
    "silent": Object,
    "photos": Photo,
    "refused": Refused,
}


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
        return config.digest({name: getattr(self, name).digest() for name in TABLES})

    @property
    def licences(self) -> dict[str, int]:
        """How many accepted rows stand under each licence."""
        counts: Counter[str] = Counter()
        for name in TABLES:
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
        counts = {name: len(getattr(self, name)) for name in TABLES}
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
            standing = Catalog.read(uri)
        except (FileNotFoundError, ValueError):
            standing = None
        if standing != self:
            self._write(uri)
        Looked(uri).clear()

    def _write(self, uri: str) -> None:
        storage.remove(storage.join(uri, MARKER))
        for name in TABLES:
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
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no catalog stands at {uri}: {MARKER} is missing; check the URI, or make it with "
                "pipelines/catalog.py"
            ) from None
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"{uri} is no catalog of format {FORMAT}: make it again")
        tables: dict[str, Any] = {
            name: Rows.read(storage.join(uri, f"{name}.parquet"), row_type)
            for name, row_type in TABLES.items()
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
        for name, kind in TABLES.items()
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
            raise ValueError(
                f"{where} holds no usable {what}{_first_refusal(catalog)}: add a source that has "
                "objects with masks and one that has sounds"
            )
    if not catalog.classes:
        raise ValueError(
            f"no class in {where} has both an object and a sound: name the folders of "
            "objects/ and sounds/ alike, or add a source for the other"
        )


def _first_refusal(catalog: Catalog) -> str:
    if not len(catalog.refused):
        return ""
    first = catalog.refused[0]
    count = len(catalog.refused)
    return f" ({count} inputs were refused, the first is {first.id}, {first.reason})"
