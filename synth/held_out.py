"""The contamination guard: which videos no training sound may come from.

AVSBench's single-source clips (S4) were cut out of VGGSound: pretraining on all of it plays the
very sounds of the test set, with their class. AudioSet draws on the same site. So a sound is judged
by the YouTube id of its video, wherever in the video it lies.

``held_out.csv`` holds the first 8 bytes of a salted sha256 of every id, and the splits it is in,
because AVSBench's own tables are given out on request only. That another video meets one of the
5,609 digests has a chance of 5,609 / 2**64, so 6e-11 over 200,000 clips.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from infra import storage

# AVSBench has the same video in several splits: a refusal names them in this order.
_VAL_TEST = ("s4_test", "ms3_test", "avss_test", "s4_val", "ms3_val", "avss_val")
LEVELS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "val_test": _VAL_TEST,
    "zero_shot": (*_VAL_TEST, "s4_train"),
}

# subset -> the column with the video, and those that tell its table from the others
_TABLES = {
    "s4": ("name", ("name", "category", "split")),
    "ms3": ("video_id", ("video_id", "split")),
    "avss": ("vid", ("vid", "uid", "split")),
}
_SPLITS = ("train", "val", "test")
_VIDEO = re.compile(r"[A-Za-z0-9_-]{11}")
# MS3 numbers the clips of a video; AVSS adds start and end in milliseconds.
_CLIP = re.compile(r"([A-Za-z0-9_-]{11})(_\d+){0,2}")
_MAX_TABLE_BYTES = 64 << 20
# Changing either makes every digest in held_out.csv void.
_SALT = b"save-pipelines held-out videos 1\n"
_DIGEST_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What one level holds out."""

    splits: Mapping[bytes, tuple[str, ...]]
    """By the digest of a video the splits that it is in; empty where nothing is held out."""

    def reason(self, video: str) -> str:
        """Why no sound of a video may be used, or an empty string; takes about 2 microseconds.

        Args:
            video: a YouTube id, or empty for a sound that is from no video. What is neither
                cannot be compared, and is held out.
        """
        if not video or not self.splits:
            return ""
        if not _VIDEO.fullmatch(video):
            return f"held out: {video[:40]!r} is no YouTube id, so AVSBench may have the video"
        splits = self.splits_of(video)
        return f"held out: the video is in AVSBench's {', '.join(splits)}" if splits else ""

    @property
    def fingerprint(self) -> str:
        """sha256 of the list; it differs where other videos are held out, or for other splits."""
        lines = (f"{digest.hex()},{'|'.join(s)}" for digest, s in sorted(self.splits.items()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def splits_of(self, video: str) -> tuple[str, ...]:
        """The splits that a video is in, such as ``s4_test``; none for what is not held out."""
        return self.splits.get(_digest(video), ())


def guard(level: str, tables: Sequence[str] = ()) -> HeldOut:
    """The guard at a level.

    Args:
        level: ``val_test`` holds out every video in a val or test split of S4, MS3 or AVSS (2,164);
            ``zero_shot`` those of S4's train split as well (5,609 in all); ``none`` none.
        tables: a person's own copies of AVSBench's tables (``s4_meta_data.csv``,
            ``ms3_meta_data.csv``, AVSS's ``metadata.csv``), as paths or URIs: what they have in
            these splits is held out as well. Not read where the level is ``none``.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: an unknown level, or a table that is none of these.
    """
    if level not in LEVELS:
        raise ValueError(f"held-out level {level!r} is not known: use one of {', '.join(LEVELS)}")
    order = LEVELS[level]
    found = {digest: set(splits) for digest, splits in _shipped().items()}
    for table in tables if order else ():
        _add(found, table)
    held = {digest: tuple(s for s in order if s in splits) for digest, splits in found.items()}
    return HeldOut(splits={digest: splits for digest, splits in held.items() if splits})


def list_of(tables: Sequence[str]) -> bytes:
    """The bytes of ``held_out.csv`` from AVSBench's three tables.

    They do not depend on the order of tables or rows. Raises what ``guard`` raises.
    """
    found: dict[bytes, set[str]] = {}
    for table in tables:
        _add(found, table)
    order = LEVELS["zero_shot"]
    lines = [
        f"{digest.hex()},{'|'.join(split for split in order if split in splits)}\n"
        for digest, splits in sorted(found.items())
        if not splits.isdisjoint(order)
    ]
    return "".join(["digest,splits\n", *lines]).encode()


def _digest(video: str) -> bytes:
    return hashlib.sha256(_SALT + video.encode()).digest()[:_DIGEST_BYTES]


@cache
def _shipped() -> dict[bytes, tuple[str, ...]]:
    text = resources.files("synth").joinpath("held_out.csv").read_text(encoding="ascii")
    rows = csv.DictReader(text.splitlines())
    return {bytes.fromhex(row["digest"]): tuple(row["splits"].split("|")) for row in rows}


def _add(found: dict[bytes, set[str]], table: str) -> None:
    for split, video in _read_table(table):
        found.setdefault(_digest(video), set()).add(split)


def _read_table(uri: str) -> Iterator[tuple[str, str]]:
    """The split (for instance ``s4_test``) and the video of each clip in an AVSBench table.

    A clip that is from no YouTube video (MS3 has one) is passed over.
    """
    try:
        text = storage.read_bytes(uri, limit=_MAX_TABLE_BYTES).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{uri} is no csv table in UTF-8: {error}") from None
    header = [name.strip() for name in lines[0]] if lines else []
    subset = next((s for s, (_, needed) in _TABLES.items() if set(needed) <= set(header)), None)
    if subset is None:
        known = "; ".join(f"{s}: {', '.join(needed)}" for s, (_, needed) in _TABLES.items())
        raise ValueError(
            f"{uri} is no table of AVSBench: it has the columns {', '.join(header)[:200]!r} and "
            f"needs those of one subset ({known})"
        )
    column, at = header.index(_TABLES[subset][0]), header.index("split")
    empty = True
    for number, line in enumerate(lines[1:], start=2):
        clip, split = (line[k].strip() if k < len(line) else "" for k in (column, at))
        # Shuffled copies that are about have their header among the rows.
        if not (clip or split) or split == "split":
            continue
        if split not in _SPLITS:
            raise ValueError(
                f"row {number} of {uri} has the split {split[:40]!r}: it should be one of "
                f"{', '.join(_SPLITS)}"
            )
        empty = False
        if match := _CLIP.fullmatch(clip):
            yield f"{subset}_{split}", match[1]
    if empty:
        raise ValueError(f"{uri} has no clips: name AVSBench's whole table")
