"""What each clip of a tree is made of, and how the clips are dealt out to shards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.corpus import Refused
from synth.avsbench.files import File
from synth.avsbench.splits import Splits, without_leak
from synth.avsbench.table import SEMANTIC, SPLITS, Entry
from synth.avsbench.tree import MINIATURE, Layout, table_of

FRAMES = {"s4": 5, "ms3": 5, "v1s": 5, "v1m": 5, "v2": 10}
# The published frames of AVSBench-object are squashed to this (preprocess_scripts).
PUBLISHED_SIDE = 224

_NAME = re.compile(r"[^/\\\x00-\x1f]{1,120}")


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """One clip whose files are all there."""

    kind: str
    entry: Entry
    key: str
    frames: tuple[File | None, ...]
    """None for a frame that has to be taken from the raw video."""
    masks: tuple[File | None, ...]
    """Masks, or the label maps of AVSBench-semantic; None for a frame that is not annotated."""
    sound: File | None
    """None where it has to be taken from the raw video."""
    raw: File | None
    """The raw video, where something has to be taken from it."""
    side: int | None
    """Height and width of frames from the raw video; None keeps the video's own."""
    objects: tuple[Any, ...] | None = None
    """Of a miniature: per frame every object, its class and what is visible of it."""
    clips: tuple[str, ...] = ()
    """Of a miniature: the ids of the clips in its sound."""

    @property
    def name(self) -> str:
        """As the table has it."""
        return self.entry.name

    @property
    def split(self) -> str:
        """train, val or test."""
        return self.entry.split


def clips(
    layout: Layout, *, splits: Splits = "published", side: int | None = PUBLISHED_SIDE
) -> tuple[list[ClipRow], list[Refused]]:
    """The clips of a tree sorted by key, and those that lack something, with the reason.

    Args:
        splits: ``clean`` leaves out of train what shares its video with val or test.
        side: of frames that have to be taken from raw videos; None keeps the video's own size.

    Raises:
        ValueError: the table has other columns, or no clip in it is whole.
    """
    entries, _ = table_of(layout)
    rows, refused = rows_of(layout, entries, splits=splits, side=side)
    if not rows:
        reason = (
            f"the first is refused because of {refused[0].reason}" if refused else "it is empty"
        )
        raise ValueError(f"no clip of {layout.table.uri} is whole: {reason}")
    return rows, refused


def rows_of(
    layout: Layout, entries: Sequence[Entry], *, splits: Splits, side: int | None
) -> tuple[list[ClipRow], list[Refused]]:
    """``clips`` of some entries of the table; both lists may be empty."""
    dropped: list[tuple[Entry, str]] = []
    if splits == "clean":
        entries, dropped = without_leak(entries)
    rows: dict[str, ClipRow] = {}
    refused = [_refused(layout, entry, reason) for entry, reason in dropped]
    for entry in entries:
        try:
            row = _row(layout, entry, side)
            if row.key in rows:
                raise ValueError("twice: the table has the clip twice")
            rows[row.key] = row
        except ValueError as error:
            refused.append(_refused(layout, entry, str(error)))
    return [rows[key] for key in sorted(rows)], refused


def _refused(layout: Layout, entry: Entry, reason: str) -> Refused:
    return Refused(id=entry.id, source=layout.kind, reason=reason)


def _row(layout: Layout, entry: Entry, side: int | None) -> ClipRow:
    """The row of one clip; ValueError with the reason where something is amiss."""
    _check_entry(entry)
    frames, masks, sound, raw = _paths(entry)
    files = layout.files
    video = files.get(raw)
    # In v1s, as in s4, the first frame alone is annotated in train, whatever else lies there.
    first_only = entry.split == "train" and entry.subset in ("s4", "v1s")
    if entry.subset == "v1s" and first_only:
        masks = masks[:1]
    is_whole = all(path in files for path in [*frames, sound])
    needed = [("masks", masks[:1] if first_only else masks)]
    if video is None:
        needed = [("frames", frames), *needed, ("sound", [sound])]
    lacks = []
    for what, paths in needed:
        absent = [path for path in paths if path not in files]
        if absent:
            lacks.append(f"{what}: {len(absent)} of {len(paths)} missing, {absent[0]}")
    if lacks:
        raise ValueError("; ".join(lacks))
    record: dict[str, Any] = {}
    if layout.miniature:
        record = layout.miniature["clips"].get(entry.name, {})
        if len(record.get("frames", ())) != len(frames):
            raise ValueError(f"miniature: {MINIATURE} does not know the clip")
    present = [files.get(path) for path in masks]
    return ClipRow(
        kind=layout.kind,
        entry=entry,
        key=clip_key(entry.subset, entry.split, entry.name),
        frames=tuple(files.get(path) for path in frames),
        masks=(*present, *[None] * (len(frames) - len(present))),
        sound=files.get(sound),
        raw=None if is_whole else video,
        side=side,
        objects=tuple(record["frames"]) if record else None,
        clips=tuple(record.get("sound", ())),
    )


def _check_entry(entry: Entry) -> None:
    if entry.subset not in FRAMES:
        raise ValueError(f"label: {entry.subset!r} is none of {', '.join(SEMANTIC)}")
    if entry.split not in SPLITS:
        raise ValueError(f"split: {entry.split!r} is none of {', '.join(SPLITS)}")
    for part in (entry.name, entry.category) if entry.subset == "s4" else (entry.name,):
        if not _NAME.fullmatch(part) or part in (".", ".."):
            raise ValueError(f"name: {part!r} cannot be the name of a folder")


def _paths(entry: Entry) -> tuple[list[str], list[str], str, str]:
    """Where the frames, masks, sound and raw video of a clip are expected."""
    name, count = entry.name, FRAMES[entry.subset]
    if entry.subset in SEMANTIC:
        folder = f"{entry.subset}/{name}"
        frames = [f"{folder}/frames/{k}.jpg" for k in range(count)]
        labels = [f"{folder}/labels_rgb/{k}.png" for k in range(count)]
        return frames, labels, f"{folder}/audio.wav", ""
    data = f"{entry.subset}_data"
    level = f"{entry.split}/{entry.category}" if entry.subset == "s4" else entry.split
    shown = f"{level}/{name}/{name}" if entry.subset == "s4" else f"{name}/{name}.mp4"
    raw = f"{level}/{name}.mp4" if entry.subset == "s4" else f"{name}.mp4"
    return (
        [f"{data}/visual_frames/{shown}_{k + 1}.png" for k in range(count)],
        [f"{data}/gt_masks/{level}/{name}/{name}_{k + 1}.png" for k in range(count)],
        f"{data}/audio_wav/{level}/{name}.wav",
        f"{data}/raw_videos/{raw}",
    )


def plan_shards(
    rows: Sequence[ClipRow], samples_per_shard: int
) -> dict[tuple[str, int], list[ClipRow]]:
    """The clips of each shard by (split, number), in the order given."""
    plans: dict[tuple[str, int], list[ClipRow]] = {}
    for split in SPLITS:
        own = [row for row in rows if row.split == split]
        for number, first in enumerate(range(0, len(own), samples_per_shard)):
            plans[split, number] = own[first : first + samples_per_shard]
    return plans


def clip_key(subset: str, split: str, name: str) -> str:
    """The corpus key of a clip, for instance ``s4-test--wNxGVNCOUY``.

    A name with other characters than ASCII letters, digits, ``_`` and ``-`` gets a piece of its
    hash, so that two names never share a key.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
    if plain != name:
        plain = f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{subset}-{split}-{plain}"
