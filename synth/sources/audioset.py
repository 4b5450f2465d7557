"""AudioSet: ten-second clips of YouTube videos, each with the MIDs of all sounds in it.

unbalanced_train_segments.csv      YTID, start_seconds, end_seconds, "mid,mid"; also balanced_train
                                   and eval; three comment lines stand above
ontology.json                      [{"id", "name", "child_ids", ...}]
<audio>/{YTID}_{start}.wav         see ``clips.clip_files`` for the names and endings

A clip is of use where it has the sound of one class and no other. Its labels are of all depths of
the ontology ("Animal", "Dog", "Bark"), so only the ontology tells which of them add something.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from infra import storage
from synth.sources.clips import (
    YOUTUBE_LICENCE,
    Files,
    classes_by_label,
    clip_files,
    clip_of,
    on_youtube,
    only_class,
)
from synth.sources.csv_rows import read_rows
from synth.tables import Candidate
from synth.taxonomy import Labels

NAME = "audioset"
ONTOLOGY = "ontology.json"

_COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
# The published one has 340 kB.
_MAX_ONTOLOGY = 4 << 20


@dataclass(frozen=True, kw_only=True)
class AudioSetConfig:
    """Where AudioSet lies."""

    folder: str
    """A path, file:// or s3:// prefix that holds the tables and the clips."""
    tables: tuple[str, ...] = (
        "balanced_train_segments.csv",
        "unbalanced_train_segments.csv",
        "eval_segments.csv",
    )
    """The tables, below the folder. Those that it lacks are passed over, but for all of them."""
    audio: str = ""
    """The folder of the clips, below the folder; empty for the whole of it."""
    ontology: str | None = None
    """AudioSet's ontology, below the folder; ontology.json where that is there, and "" for none.
    With it a sound that is a kind of a class counts as the class, and what includes the class's
    sounds (Animal) is no further label; without it few clips are of one class alone."""
    pure: bool = True
    """Leave out clips with any further label, be it Speech or Music or one without a class."""


def candidates(source: AudioSetConfig, labels: Labels) -> Iterator[Candidate]:
    """Every clip with the sound of just one class, in the order of the tables.

    ``labels.left_out`` counts clips with several classes, with further labels, and without a file,
    rows whose file another row names as well, and the tables and the ontology that are not there.

    Raises:
        FileNotFoundError: there is no ontology where one is named.
        ValueError: none of the tables is there, or one of them or the ontology is no such file.
    """
    ontology = _ontology(source, labels)
    files = clip_files(source.folder, source.audio)
    found = Files(labels)
    for table in _tables(source, labels):
        rows = read_rows(
            storage.join(source.folder, table),
            _COLUMNS,
            required=("YTID", "start_seconds", "positive_labels"),
            left_out=labels.left_out,
        )
        for number, row in enumerate(rows, start=1):
            class_name = _class_of(row["positive_labels"], labels, ontology, pure=source.pure)
            if class_name is None:
                continue
            candidate = Candidate(
                role="sound",
                source=NAME,
                root=NAME,
                path=f"{table} row {number}",
                class_name=class_name,
                licence=YOUTUBE_LICENCE,
            )
            try:
                clip = clip_of(row["YTID"], row["start_seconds"])
            except ValueError as error:
                found.add(candidate.refused(f"row: {error}"))
                continue
            path = files.get(clip) or files.get((clip[0], None))
            found.add(on_youtube(candidate, clip, path) if path else None)
    yield from found.agreed()


def _tables(source: AudioSetConfig, labels: Labels) -> list[str]:
    there = [t for t in source.tables if storage.exists(storage.join(source.folder, t))]
    if not there:
        raise ValueError(
            f"{source.folder} holds no {' or '.join(source.tables)}: name the tables of AudioSet "
            "that it holds"
        )
    for table in source.tables:
        if table not in there:
            labels.left_out[f"no table {table}"] += 1
    return there


@dataclass(frozen=True, kw_only=True)
class Ontology:
    """What AudioSet's ontology says about its MIDs; as it stands, nothing."""

    ancestors: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By a MID all that include its sound."""
    stands_for: Mapping[str, str] = field(default_factory=dict)
    """By a MID outside the taxonomy one in it, of the class whose sound it is a kind of."""


def _ontology(source: AudioSetConfig, labels: Labels) -> Ontology:
    if source.ontology:
        return read_ontology(storage.join(source.folder, source.ontology))
    usual = storage.join(source.folder, ONTOLOGY)
    if source.ontology is None and storage.exists(usual):
        return read_ontology(usual)
    if source.ontology is None:
        labels.left_out[f"no file {ONTOLOGY}"] += 1
    return Ontology()


def read_ontology(uri: str) -> Ontology:
    """What AudioSet's ontology.json says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is none, or larger than 4 MiB.
    """
    data = storage.read_bytes(uri, limit=_MAX_ONTOLOGY)
    try:
        edges = [(child, row["id"]) for row in json.loads(data) for child in row["child_ids"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        edges = []
    if not edges or not all(isinstance(mid, str) for edge in edges for mid in edge):
        raise ValueError(
            f"{uri} is not AudioSet's ontology: give ontology.json as it was published"
        )
    parents: dict[str, set[str]] = {}
    for child, parent in edges:
        parents.setdefault(child, set()).add(parent)
    ancestors = {mid: _ancestors(mid, parents) for mid in parents}
    return Ontology(ancestors=ancestors, stands_for=_stand_ins(parents))


def _ancestors(mid: str, parents: Mapping[str, Collection[str]]) -> frozenset[str]:
    found: set[str] = set()
    ahead = [mid]
    while ahead:
        above = set(parents.get(ahead.pop(), ())) - found
        found |= above
        ahead.extend(above)
    return frozenset(found)


def _stand_ins(parents: Mapping[str, Collection[str]]) -> dict[str, str]:
    """By the MIDs outside the taxonomy below just one class of it a MID of that class.

    All parents have to lead to the class: Buzz is below Bee, but below Fly as well, and so it is
    neither's.
    """
    classes = classes_by_label(NAME)
    known = {mid: mid for mid, names in classes.items() if len(names) == 1}
    growing = True
    while growing:
        growing = False
        for mid, above in parents.items():
            if mid in classes or mid in known or not all(parent in known for parent in above):
                continue
            if len({classes[known[parent]] for parent in above}) == 1:
                known[mid] = known[min(above)]
                growing = True
    return {mid: stands_for for mid, stands_for in known.items() if mid not in classes}


def _class_of(cell: str, labels: Labels, ontology: Ontology, *, pure: bool) -> str | None:
    mids = dict.fromkeys(filter(None, (mid.strip() for mid in cell.split(","))))
    means = {mid: ontology.stands_for.get(mid, mid) for mid in mids}
    class_name = only_class(means, ontology.ancestors, labels)
    if class_name is None or not pure:
        return class_name
    own = labels.names_of(class_name)
    if all(means[mid] in own or _are_related(mid, own, ontology) for mid in mids):
        return class_name
    labels.left_out["further labels"] += 1
    return None


def _are_related(mid: str, own: Collection[str], ontology: Ontology) -> bool:
    """Whether a MID includes one of a class's own sounds or is a kind of one."""
    above = ontology.ancestors.get(mid, ())
    return any(name in above or mid in ontology.ancestors.get(name, ()) for name in own)
