"""VGGSound: ten-second clips of YouTube videos, each with one label.

vggsound.csv                       youtube_id,start_seconds,label,split; no header as published
<audio>/{id}_{start:06d}.wav       also flac, ogg, mp3, m4a and mp4, in folders of any depth
                                   (see ``clips.clip_files``)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infra import storage
from synth.sources.clips import YOUTUBE_LICENCE, Files, clip_files, clip_of, on_youtube
from synth.sources.csv_rows import read_rows
from synth.tables import Candidate
from synth.taxonomy import Labels

NAME = "vggsound"

_COLUMNS = ("youtube_id", "start_seconds", "label", "split")


@dataclass(frozen=True, kw_only=True)
class VggSoundConfig:
    """Where VGGSound lies."""

    folder: str
    """A path, file:// or s3:// prefix that holds the table and the clips."""
    table: str = "vggsound.csv"
    """The table, below the folder."""
    audio: str = ""
    """The folder of the clips, below the folder; empty for the whole of it."""
    splits: tuple[str, ...] = ("train", "test")
    """The splits to take clips from. A row that names none is of ``train``."""


def candidates(source: VggSoundConfig, labels: Labels) -> Iterator[Candidate]:
    """Every clip whose label means a class, in the order of the table.

    ``labels.left_out`` counts rows of other splits, rows without a label or a file, and rows whose
    file another row names as well.

    Raises:
        FileNotFoundError: there is no table.
        ValueError: the table is none.
    """
    files = clip_files(source.folder, source.audio)
    found = Files(labels)
    table = storage.join(source.folder, source.table)
    rows = read_rows(table, _COLUMNS, required=("youtube_id", "label"), left_out=labels.left_out)
    for number, row in enumerate(rows, start=1):
        if (row["split"] or "train") not in source.splits:
            labels.left_out["other split"] += 1
            continue
        if not row["label"]:
            labels.left_out["no label"] += 1
            continue
        class_name = labels.of(row["label"])
        if class_name is None:
            continue
        candidate = Candidate(
            role="sound",
            source=NAME,
            root=NAME,
            path=f"{source.table} row {number}",
            class_name=class_name,
            licence=YOUTUBE_LICENCE,
        )
        try:
            # A header of one's own may call the second column ``start``.
            clip = clip_of(row["youtube_id"], row["start_seconds"] or row.get("start", ""))
        except ValueError as error:
            found.add(candidate.refused(f"row: {error}"))
            continue
        path = files.get(clip)
        found.add(on_youtube(candidate, clip, path) if path else None)
    yield from found.agreed()
