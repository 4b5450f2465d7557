"""What the readers of sounds share: which file is a row's, and which class a clip has.

VGGSound and AudioSet publish tables alone, and those who fetch the videos name the clips in several
ways: ``clip_files`` knows them by what their names say. AudioSet and FSD50K give a clip all its
labels: ``only_class`` tells whether they mean one class.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache

from infra import storage
from synth import taxonomy
from synth.tables import Candidate
from synth.taxonomy import Labels

YOUTUBE_LICENCE = "YouTube uploaders' terms; annotations CC BY 4.0"
# Both ESC-50 and FSD50K were cut from it.
FREESOUND_CLIP = "freesound.org clip {}"

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


class Files:
    """What rows make of their files, each file once, and not where its rows differ.

    ``labels.left_out`` counts rows whose file is not there, rows that say once more what another
    says, and all rows of a file of which they do not say the same.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._found: dict[str, Candidate] = {}
        self._again: Counter[str] = Counter()
        self._disputed: set[str] = set()

    def add(self, candidate: Candidate | None) -> None:
        """Note what a row makes of its file; None where that is not there."""
        if candidate is None:
            self._labels.left_out["no file"] += 1
            return
        path = candidate.path
        if path not in self._found:
            self._found[path] = candidate
            return
        self._again[path] += 1
        if candidate != self._found[path]:
            self._disputed.add(path)

    def agreed(self) -> Iterator[Candidate]:
        """The candidates that no other row of their file speaks against, by their first rows."""
        for path, times in self._again.items():
            if path in self._disputed:
                self._labels.left_out["named by rows that differ"] += 1 + times
            else:
                self._labels.left_out["named twice"] += times
        for path, candidate in self._found.items():
            if path not in self._disputed:
                yield candidate


def only_class(
    means: Mapping[str, str], broader: Mapping[str, Collection[str]], labels: Labels
) -> str | None:
    """The class of a clip with several labels, or None where they name none or more than one.

    Classes that are not asked for count as well: a clip with a dog and a cat is of no use for
    either. Clips with more than one are counted in ``labels.left_out``.

    Args:
        means: by each label of the clip the one that the taxonomy knows it by.
        broader: by a label those that it implies; beside it they say nothing.
    """
    classes = classes_by_label(labels.source)
    asked = {label: labels.of(known) for label, known in means.items()}
    # Of labels with a class alone: Buzz is below Bee and Fly, and beside Bee it implies neither.
    telling = [label for label in means if means[label] in classes]
    implied = {name for label in telling for name in broader.get(label, ())}
    specific = [label for label in telling if label not in implied]
    found = sorted({name for label in specific if (name := asked[label]) is not None})
    if not found:
        return None
    if any(found[0] not in classes[means[label]] for label in specific):
        labels.left_out["several classes"] += 1
        return None
    return found[0]


@cache
def classes_by_label(source: str) -> dict[str, frozenset[str]]:
    """By every label of a source all classes of the taxonomy that share it."""
    shared: dict[str, set[str]] = {}
    for row in taxonomy.classes():
        for label in row.labels[source]:
            shared.setdefault(label, set()).add(row.name)
    return {label: frozenset(names) for label, names in shared.items()}
