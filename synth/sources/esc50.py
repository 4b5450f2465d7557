"""ESC-50: 2,000 five-second clips from Freesound, 40 of each of 50 categories.

meta/esc50.csv       filename,fold,target,category,esc10,src_file,take
audio/{filename}     {fold}-{src_file}-{take}-{target}.wav

The ten categories of ESC-10 stand under a freer licence than the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from infra import storage
from synth.sources.clips import FREESOUND_CLIP, Files
from synth.sources.csv_rows import read_rows
from synth.tables import Candidate
from synth.taxonomy import Labels

NAME = "esc50"

_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")


@dataclass(frozen=True, kw_only=True)
class Esc50Config:
    """Where ESC-50 lies."""

    folder: str
    """A path, file:// or s3:// prefix: the published repository."""
    table: str = "meta/esc50.csv"
    """The table, below the folder."""
    audio: str = "audio"
    """The folder of the clips, below the folder."""


def candidates(source: Esc50Config, labels: Labels) -> Iterator[Candidate]:
    """Every clip whose category means a class, in the order of the table.

    ``labels.left_out`` counts rows without a category or a file, and rows whose file another row
    names as well.

    Raises:
        FileNotFoundError: there is no table.
        ValueError: the table is none.
    """
    root = storage.normalise(source.folder)
    audio = storage.normalise(storage.join(root, source.audio))
    files = set(storage.list_files(audio))
    found = Files(labels)
    table = storage.join(root, source.table)
    rows = read_rows(table, _COLUMNS, required=("filename", "category"), left_out=labels.left_out)
    for number, row in enumerate(rows, start=1):
        if not row["category"]:
            labels.left_out["no label"] += 1
            continue
        class_name = labels.of(row["category"])
        if class_name is None:
            continue
        name = row["filename"]
        uri = f"{audio}/{name}"
        # Several clips are takes of one.
        origin = FREESOUND_CLIP.format(row["src_file"]) if row["src_file"] else ""
        candidate = Candidate(
            role="sound",
            source=NAME,
            root=NAME,
            path=uri[len(root) + 1 :],
            class_name=class_name,
            licence="CC BY 3.0" if row["esc10"].lower() == "true" else "CC BY-NC 3.0",
            origin=origin,
            recording=origin,
        )
        if not name or "/" in name or "\\" in name:
            refused = candidate.refused(
                f"path: {name[:40]!r} is no name of a file in {source.audio}"
            )
            found.add(dataclasses.replace(refused, path=f"{source.table} row {number}"))
        else:
            found.add(candidate if uri in files else None)
    yield from found.agreed()
