"""FSD50K: 51,197 clips from Freesound of up to 30 s, each with all labels that are right for it.

FSD50K.ground_truth/dev.csv                     fname,labels,mids,split; eval.csv without split
FSD50K.metadata/dev_clips_info_FSD50K.json      {fname: {"license": URL, "uploader": name, ...}}
FSD50K.dev_audio/{fname}.wav                    and the same for eval

Labels are nodes of AudioSet's ontology by name, and with each of them stand all that include it:
``Crow,Bird,Wild_animals,Animal``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra import storage
from synth.sources.clips import FREESOUND_CLIP, Files, only_class
from synth.sources.csv_rows import read_rows
from synth.tables import Candidate
from synth.taxonomy import Labels

NAME = "fsd50k"

_COLUMNS = ("fname", "labels", "mids", "split")
# The published ones have some 30 MB.
_MAX_CLIPS_INFO = 128 << 20
_CLIP = re.compile(r"\d{1,12}", re.ASCII)
_LICENCE = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)"
    r"/(?P<kind>[a-z-]{2,10}\+?)/(?P<version>\d\.\d)/?"
)

# Where a label of one class includes one of another: the more specific one is what is heard.
BROADER = {
    "Bicycle_bell": ("Bell",),
    "Child_speech_and_kid_speaking": ("Speech",),
    "Crow": ("Bird",),
    "Female_singing": ("Singing",),
    "Female_speech_and_woman_speaking": ("Speech",),
    "Gull_and_seagull": ("Bird",),
    "Male_singing": ("Singing",),
    "Male_speech_and_man_speaking": ("Speech",),
    "Organ": ("Keyboard_(musical)",),
    "Piano": ("Keyboard_(musical)",),
    "Race_car_and_auto_racing": ("Car",),
    "Ringtone": ("Telephone",),
    "Typewriter": ("Typing",),
    "Wind_chime": ("Bell",),
}


@dataclass(frozen=True, kw_only=True)
class Fsd50kConfig:
    """Where FSD50K lies."""

    folder: str
    """A path, file:// or s3:// prefix that holds the unpacked archives."""
    splits: tuple[str, ...] = ("dev", "eval")
    """The splits to take clips from; each needs its table and its metadata."""
    table: str = "FSD50K.ground_truth/{split}.csv"
    """The table of a split, below the folder."""
    clips_info: str = "FSD50K.metadata/{split}_clips_info_FSD50K.json"
    """The licences and authors of a split's clips, below the folder."""
    audio: str = "FSD50K.{split}_audio"
    """The folder of a split's clips, below the folder."""


def candidates(source: Fsd50kConfig, labels: Labels) -> Iterator[Candidate]:
    """Every clip whose labels name just one class, in the order of the tables.

    A clip without a licence is refused. ``labels.left_out`` counts clips with several classes and
    without a file, and rows whose file another row names as well.

    Raises:
        FileNotFoundError: a table or the metadata of a split is not there.
        ValueError: one of them is no such file.
    """
    for split in source.splits:
        yield from _split_candidates(source, split, labels)


def _split_candidates(source: Fsd50kConfig, split: str, labels: Labels) -> Iterator[Candidate]:
    table, clips_info, folder = (
        pattern.replace("{split}", split)
        for pattern in (source.table, source.clips_info, source.audio)
    )
    root = storage.normalise(source.folder)
    audio = storage.normalise(storage.join(root, folder))
    files = set(storage.list_files(audio))
    terms = _read_terms(storage.join(root, clips_info))
    found = Files(labels)
    rows = read_rows(
        storage.join(root, table),
        _COLUMNS,
        required=("fname", "labels"),
        left_out=labels.left_out,
    )
    for number, row in enumerate(rows, start=1):
        names = filter(None, (name.strip() for name in row["labels"].split(",")))
        class_name = only_class({name: name for name in names}, BROADER, labels)
        if class_name is None:
            continue
        clip = row["fname"]
        uri = f"{audio}/{clip}.wav"
        licence, author = terms.get(clip, ("", ""))
        candidate = Candidate(
            role="sound",
            source=NAME,
            root=NAME,
            path=uri[len(root) + 1 :],
            class_name=class_name,
            licence=licence or "not stated",
            author=author,
            origin=FREESOUND_CLIP.format(clip),
            recording=FREESOUND_CLIP.format(clip),
        )
        if not _CLIP.fullmatch(clip):
            where = f"{table} row {number}"
            refused = candidate.refused(f"row: {clip[:40]!r} is no number of a Freesound clip")
            found.add(dataclasses.replace(refused, path=where, origin="", recording=""))
            continue
        if not licence:
            candidate = candidate.refused(f"licence: {clips_info} states none")
        found.add(candidate if uri in files else None)
    yield from found.agreed()


def _read_terms(uri: str) -> dict[str, tuple[str, str]]:
    """``(licence, author)`` by clip; both empty where they are not stated."""
    data = storage.read_bytes(uri, limit=_MAX_CLIPS_INFO)
    try:
        # Descriptions and tags are most of the file and are dropped as soon as they are read.
        clips = json.loads(data, object_hook=_terms)
    except (ValueError, RecursionError):
        clips = None
    found = {}
    if isinstance(clips, dict):
        found = {clip: terms for clip, terms in clips.items() if isinstance(terms, tuple)}
    if not found:
        raise ValueError(
            f"{uri} states no licence of a clip: give FSD50K's clips_info file as it was published"
        )
    return found


def _terms(entry: dict[str, Any]) -> dict[str, Any] | tuple[str, str]:
    if "license" not in entry:
        return entry
    licence, author = entry["license"], entry.get("uploader")
    return (
        licence_name(licence) if isinstance(licence, str) else "",
        author if isinstance(author, str) else "",
    )


def licence_name(url: str) -> str:
    """``CC BY-NC 3.0`` for the URL of a Creative Commons licence; any other text as it stands."""
    known = _LICENCE.fullmatch(url.strip())
    if known is None:
        return url.strip()
    if known["kind"] == "zero":
        return f"CC0 {known['version']}"
    kind = known["kind"].upper()
    return f"CC {kind.replace('SAMPLING', 'Sampling')} {known['version']}"
