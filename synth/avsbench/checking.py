"""What is missing, damaged or odd in a tree, clip by clip and in sum.

Whether a clip can be used is found out by reading it as the sharding does, so both always agree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.corpus import Refused
from synth.avsbench.reading import to_sample
from synth.avsbench.rows import ClipRow
from synth.avsbench.splits import leak_of, splits_of_videos, video_of
from synth.avsbench.table import NO_OBJECT, PUBLISHED, SPLITS, Entry
from synth.avsbench.tree import PICKLED, Layout


@dataclass(frozen=True, kw_only=True)
class Report:
    """A tree that was looked at."""

    refused: dict[str, str]
    """By clip why it cannot be used."""
    odd: dict[str, list[str]]
    """By clip what is odd about it and handled."""
    summary: dict[str, Any]
    """Counts, for people and for the last line."""
    remarks: list[str] = field(default_factory=list)
    """Sentences on the tree as a whole."""


def look(row: ClipRow) -> dict[str, Any]:
    """Read one clip: its id, why it is refused (or an empty string), and what is odd about it."""
    odd: list[str] = []
    try:
        to_sample(row, odd)
    except (ValueError, FileNotFoundError) as error:
        return {"id": row.entry.id, "refused": str(error), "odd": odd}
    return {"id": row.entry.id, "refused": "", "odd": odd}


def problems_of_table(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """By clip what is odd about its row."""
    splits = splits_of_videos(entries)
    odd: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        named = entry.objects.split("_")
        for part in named:
            if " " in part:
                odd[entry.id].append(f"class name: {part!r} is read as {part.replace(' ', '')!r}")
        if entry.off_screen:
            odd[entry.id].append("off the screen: something sounds that is not shown")
        if NO_OBJECT in named:
            odd[entry.id].append("background: the table names it among what sounds")
        others = sorted(splits[video_of(entry.name)] - {entry.split})
        if others:
            odd[entry.id].append(f"shared video: it has clips in {' and '.join(others)} too")
    return dict(odd)


def summarise(
    layout: Layout,
    entries: Sequence[Entry],
    stray_headers: int,
    refused: Sequence[Refused],
    verdicts: Sequence[Mapping[str, Any]],
) -> Report:
    """The report on a tree.

    Args:
        entries, stray_headers: what the table has.
        refused: clips that lack something.
        verdicts: ``look`` of all others.
    """
    lost = {row.id: row.reason for row in refused}
    lost.update({v["id"]: v["refused"] for v in verdicts if v["refused"]})
    odd = problems_of_table(entries)
    for verdict in verdicts:
        if verdict["odd"]:
            odd[verdict["id"]] = [*odd.get(verdict["id"], []), *verdict["odd"]]
    usable = Counter(v["id"].split("/")[1] for v in verdicts if not v["refused"])
    listed = Counter(entry.split for entry in entries)
    published = _published(layout)
    leak = leak_of(entries)
    return Report(
        refused=dict(sorted(lost.items())),
        odd=dict(sorted(odd.items())),
        summary={
            "tree": layout.uri,
            "kind": layout.kind,
            "published": published,
            "listed": {name: listed[name] for name in SPLITS},
            "usable": {name: usable[name] for name in SPLITS},
            "complete": all(usable[name] >= published[name] for name in SPLITS),
            "refused": len(lost),
            "refused_by_reason": _kinds(lost.values()),
            "odd": _kinds(text for texts in odd.values() for text in set(map(_kind, texts))),
            "share_video_with_train": {name: leak[name] for name in ("val", "test")},
            "train_clips_left_out_by_clean_splits": leak["train"],
            "files": len(layout.files),
            "files_left_out": dict(layout.left_out),
        },
        remarks=_remarks(layout, entries, stray_headers, leak, listed),
    )


def _published(layout: Layout) -> dict[str, int]:
    if layout.miniature:
        counts = layout.miniature.get("counts", {}).get(layout.subset, {})
        return {name: int(counts.get(name, 0)) for name in SPLITS}
    return dict(zip(SPLITS, PUBLISHED[layout.subset], strict=True))


def _kind(text: str) -> str:
    return text.split(":")[0]


def _kinds(texts: Any) -> dict[str, int]:
    return dict(sorted(Counter(map(_kind, texts)).items()))


def _remarks(
    layout: Layout,
    entries: Sequence[Entry],
    stray_headers: int,
    leak: Mapping[str, int],
    listed: Mapping[str, int],
) -> list[str]:
    said = []
    dashed = sum(entry.name.startswith("-") for entry in entries)
    if dashed:
        said.append(f"{dashed} names begin with a dash: they are clips like others.")
    infix = sum(".mp4_" in path for path in layout.files)
    if infix:
        said.append(f"{infix} frames have .mp4 inside their names: they are found there.")
    if stray_headers:
        said.append(f"The table has its header {stray_headers} times among its rows: left out.")
    if leak["train"]:
        said.append(
            f"{leak['val']} of {listed['val']} val and {leak['test']} of {listed['test']} test "
            f"clips share their video with a train clip: --splits clean leaves the {leak['train']} "
            "train clips of these videos out."
        )
    if layout.left_out[PICKLED]:
        said.append(pickles_note(layout.left_out[PICKLED]))
    if layout.subset not in ("s4", "ms3") and not layout.label_classes:
        said.append("label2idx.json is missing: the corpus will not name its label classes.")
    return said


def pickles_note(count: int) -> str:
    """What is said of the pickled log-mels in a tree."""
    return f"{count} pickled log-mels are not read: log-mels are computed from the sound."
