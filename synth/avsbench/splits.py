"""Videos that occur in more than one split, and splits without them.

MS3's clips were dealt out by clip and not by video: 41 of its 64 val clips and 38 of its 64 test
clips are from a YouTube video that train has clips of, and AVSBench-semantic's v1m is the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from synth.avsbench.table import Entry

Splits = Literal["published", "clean"]

# MS3 numbers the clips of a video; AVSS adds start and end in milliseconds.
_CLIP = re.compile(r"([A-Za-z0-9_-]{11})(?:_\d+){0,2}")
_HELD_OUT = ("val", "test")


def video_of(name: str) -> str:
    """The YouTube id in a clip's name; the whole name where it is of no YouTube video."""
    found = _CLIP.fullmatch(name)
    return found[1] if found else name


def splits_of_videos(entries: Sequence[Entry]) -> dict[str, set[str]]:
    """By video the splits that it has clips in."""
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        splits[video_of(entry.name)].add(entry.split)
    return dict(splits)


def leak_of(entries: Sequence[Entry]) -> dict[str, int]:
    """Clips of val and of test whose video has clips in train, and of train the other way round."""
    splits = splits_of_videos(entries)
    counts = dict.fromkeys(("train", *_HELD_OUT), 0)
    for entry in entries:
        own = splits[video_of(entry.name)]
        leaks = own.intersection(_HELD_OUT) if entry.split == "train" else {"train"} & own
        if entry.split in counts and leaks:
            counts[entry.split] += 1
    return counts


def without_leak(entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """The entries without those of train whose video is in val or test, and these with a reason.

    Train is the side that loses them, so that a score on val or test stays a score on the clips
    that everyone else reports.
    """
    splits = splits_of_videos(entries)
    kept: list[Entry] = []
    dropped: list[tuple[Entry, str]] = []
    for entry in entries:
        others = [name for name in _HELD_OUT if name in splits[video_of(entry.name)]]
        if entry.split == "train" and others:
            dropped.append((entry, f"leak: its video has clips in {' and '.join(others)}"))
        else:
            kept.append(entry)
    return kept, dropped


def note_on(entries: Sequence[Entry], splits: Splits) -> str:
    """What a corpus says of its splits."""
    leak = leak_of(entries)
    if splits == "clean":
        return (
            f"Clean splits: {leak['train']} train clips whose video has clips in val or test are "
            "left out. Val and test are the published ones."
        )
    if not leak["train"]:
        return "Splits as published: no val or test clip shares its video with a train clip."
    counts = {name: sum(entry.split == name for entry in entries) for name in _HELD_OUT}
    shares = " and ".join(f"{leak[name]} of {counts[name]} {name}" for name in _HELD_OUT)
    return f"Splits as published: {shares} clips share their video with a train clip."
