"""VGGSound: ten-second clips of YouTube videos, each with one label.

vggsound.csv                       youtube_id,start_seconds,label,split; no header as published
<audio>/{id}_{start:06d}.wav       also flac, ogg, mp3, m4a and mp4, in folders of any depth

VGGSound publishes the table alone, and those who fetch the videos name the clips in several ways:
``clip_files`` knows them by what their names say, for AudioSet as well.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from infra import storage
from synth.sources.csv_rows import read_rows
from synth.tables import Candidate
from synth.taxonomy import Labels

NAME = "vggsound"
LICENCE = "YouTube uploaders' terms; annotations CC BY 4.0"

_COLUMNS = ("youtube_id", "start_seconds", "label", "split")

# Of the same clip in several files the one that lost least is taken.
_ENDINGS = ("wav", "flac", "ogg", "mp3", "m4a", "mp4")
_VIDEO = re.compile(r"[\w-]{11}", re.ASCII)
_STEM = re.compile(
    r"Y?(?P<video>[\w-]{11})"
    r"(?:_(?P<start>\d{1,9}(?:\.\d{1,6})?)(?:_(?P<end>\d{1,9}(?:\.\d{1,6})?))?)?",
    re.ASCII,
)
_LONGEST_CLIP = 60.0
_LONGEST_VIDEO = 1e6


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
    file an earlier row has named.

    Raises:
        FileNotFoundError: there is no table.
        ValueError: the table is none.
    """
    files = clip_files(source.folder, source.audio)
    taken: set[str] = set()
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
            licence=LICENCE,
        )
        try:
            # A header of one's own may call the second column ``start``.
            clip = clip_of(row["youtube_id"], row["start_seconds"] or row.get("start", ""))
        except ValueError as error:
            yield candidate.refused(f"row: {error}")
            continue
        path = files.get(clip)
        if path is None:
            labels.left_out["no file"] += 1
        elif path in taken:
            labels.left_out["named twice"] += 1
        else:
            taken.add(path)
            yield on_youtube(candidate, clip, path)


def clip_files(folder: str, audio: str = "") -> dict[tuple[str, int | None], str]:
    """``(YouTube id, start in ms) -> path below folder`` of every clip below ``folder/audio``.

    Known are ``{id}_{start}`` in seconds, with or without leading zeros, ``{id}_{start}_{end}`` in
    seconds or milliseconds, and ``{id}``, whose start is None; a ``Y`` may stand before the id.
    Other files are left alone.
    """
    root = storage.normalise(folder)
    files: dict[tuple[str, int | None], str] = {}
    for uri in sorted(storage.list_files(storage.join(root, audio)), key=_preference):
        path = uri[len(root) + 1 :]
        name = _STEM.fullmatch(path.rpartition("/")[2].rpartition(".")[0])
        if name is not None and _preference(path) < len(_ENDINGS):
            files.setdefault((name["video"], _start_ms(name["start"], name["end"])), path)
    return files


def _start_ms(start: str | None, end: str | None) -> int | None:
    if start is None:
        return None
    # No clip lasts that many seconds: then they are milliseconds.
    in_ms = end is not None and float(end) - float(start) > _LONGEST_CLIP
    return round(float(start) * (1 if in_ms else 1000))


def _preference(path: str) -> int:
    ending = path.rpartition(".")[2].lower()
    return _ENDINGS.index(ending) if ending in _ENDINGS else len(_ENDINGS)


def clip_of(video: str, start_seconds: str) -> tuple[str, int]:
    """``(YouTube id, start in ms)`` from the cells of a row; ValueError where they are neither."""
    if not _VIDEO.fullmatch(video):
        raise ValueError(f"{video[:40]!r} is no YouTube id")
    try:
        start = float(start_seconds)
    except ValueError:
        start = math.nan
    if not 0 <= start <= _LONGEST_VIDEO:
        raise ValueError(f"{start_seconds[:40]!r} is no second of a video")
    return video, round(1000 * start)


def on_youtube(candidate: Candidate, clip: tuple[str, int], path: str) -> Candidate:
    """The candidate with its file and the place in the video that it was cut from."""
    video, start = clip
    return dataclasses.replace(
        candidate,
        path=path,
        video=video,
        origin=f"https://www.youtube.com/watch?v={video}&t={start // 1000}s",
    )
