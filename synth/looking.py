"""Looking at every candidate, here or on a cluster: what they offer becomes a catalog."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from infra import config, storage
from infra.storage_errors import refusable
from synth.catalog import FORMAT, TABLES, Catalog, assemble
from synth.inspection import MAX_BYTES, Accepted, inspect, refuse
from synth.looked import Looked
from synth.rows import Rows
from synth.sources import Offer
from synth.tables import MEDIA, Annotation, Candidate, Refused

logger = logging.getLogger(__name__)

MapRows: TypeAlias = Callable[
    [list[dict[str, str]], Callable[[dict[str, str]], dict[str, str]]], list[dict[str, str]]
]

_TABLE_OF_ROLE = {
    "object": "objects",
    "annotated": "objects",
    "sound": "clips",
    "background": "backgrounds",
    "silent": "silent",
    "photo": "photos",
}
# Candidates that are looked at before the next are asked for, and between two lines of progress:
# a source can have millions.
_BATCH = 20_000


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
    looked: Looked | None = None,
) -> Catalog:
    """Look at every candidate and assemble the catalog.

    Args:
        roots: the folder of each root, or the media folder alone.
        candidates: an ``Offer``, which also knows which labels its readers could not place, or
            anything else that yields candidates.
        map_rows: who applies a function to every row, in any order (``distribute.map_rows``
            does it on a Ray cluster).
        looked: where batches are kept as they are done, and where those that an earlier run kept
            are taken from.
    """
    folders = _normalised({MEDIA: roots} if isinstance(roots, str) else roots)
    digest = OfferDigest(folders)
    parts = _look(folders, digest.passing(candidates), map_rows, looked)
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
    for name in TABLES:
        if name != "refused":
            known = getattr(catalog, name)
            # What is said of a photograph's other objects may have changed as well.
            anew = {ident for part in parts[name] for ident in part.texts("id")}
            kept = np.asarray([ident not in anew for ident in known.texts("id")], bool)
            parts[name].append(known.take(kept))
    return _described(assemble(catalog.roots, parts), candidates, catalog.offered)


def _described(catalog: Catalog, candidates: Iterable[Candidate], offered: str) -> Catalog:
    labels = getattr(candidates, "labels", {})
    return dataclasses.replace(
        catalog,
        offered=offered,
        unknown_labels={n: _sorted(known.unknown) for n, known in labels.items()},
        left_out={n: _sorted(known.left_out) for n, known in labels.items()},
    )


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(_spelled(dict(counts)).items()))


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
    roots: Mapping[str, str],
    candidates: Iterable[Candidate],
    map_rows: MapRows,
    looked: Looked | None = None,
) -> dict[str, list[Rows[Any]]]:
    parts: dict[str, list[Rows[Any]]] = {name: [] for name in TABLES}
    look = partial(_inspect_row, roots=roots)
    remaining = iter(candidates)
    done = before = refused = 0
    while batch := [_legible(c) for c in islice(remaining, _BATCH)]:
        made: dict[str, list[Any]] = {name: [] for name in TABLES}
        made["refused"] += [refuse(c, c.refusal) for c in batch if c.refusal]
        packed = [_packed(c) for c in batch if not c.refusal]
        known = _batch_name(roots, packed)
        answers = None if looked is None else looked.find(known)
        if answers is None:
            answers = [a["rows"] for a in map_rows([{"candidate": c} for c in packed], look)]
            if looked is not None:
                looked.keep(known, answers)
        else:
            before += len(batch)
        for answer in answers:
            for name, values in json.loads(answer):
                made[name].append(TABLES[name](**values))
        for name, some in made.items():
            if some:
                parts[name].append(Rows.of(TABLES[name], some))
        done, refused = done + len(batch), refused + len(made["refused"])
        earlier = f" ({before} of them by an earlier run)" if before else ""
        logger.info("%d files looked at%s, %d refusals", done, earlier, refused)
    return parts


def _batch_name(roots: Mapping[str, str], packed: Sequence[str]) -> str:
    """sha256 of all that is asked about a batch."""
    total = hashlib.sha256(config.digest({"format": FORMAT, "roots": dict(roots)}).encode())
    for candidate in packed:
        total.update(hashlib.sha256(candidate.encode()).digest())
    return total.hexdigest()


def _legible(candidate: Candidate) -> Candidate:
    """The same candidate; refused, and with escapes in it, where a text of it is no Unicode.

    Names of files that are not UTF-8 come with lone surrogates, as some JSON does; no table and no
    manifest can hold them.
    """
    rows = (candidate, *candidate.annotations)
    try:
        "".join(v for row in rows for v in vars(row).values() if isinstance(v, str)).encode()
    except UnicodeEncodeError:
        spelled = json.dumps(_spelled(dataclasses.asdict(candidate)))
        return _unpacked(spelled).refused("text: a name in it is no UTF-8")
    return candidate


def _spelled(value: Any) -> Any:
    """The same strings, lists and dictionaries with what is no Unicode as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, (list, tuple)):
        return [_spelled(item) for item in value]
    if isinstance(value, dict):
        return {_spelled(key): _spelled(item) for key, item in value.items()}
    return value


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
        with refusable(uri, path):
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
