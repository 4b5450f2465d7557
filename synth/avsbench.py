"""Reading a tree in AVSBench's own layout (S4 and MS3): the real one, or a miniature of it.

::

    Single-source/s4_meta_data.csv                                    name,start,category,split
    Single-source/s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
    Single-source/s4_data/gt_masks/{split}/{category}/{name}/{name}_{1..5}.png   train: only _1
    Single-source/s4_data/audio_wav/{split}/{category}/{name}.wav
    Multi-sources/ms3_meta_data.csv                                   video_id,split
    Multi-sources/ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png   no split level
    Multi-sources/ms3_data/gt_masks/{split}/{name}/{name}_{1..5}.png
    Multi-sources/ms3_data/audio_wav/{split}/{name}.wav

(https://github.com/OpenNLPLab/AVSBench, avs_scripts/*/config.py and dataloader.py.) Frames and
masks pass through unchanged. A clip that lacks something is refused by name; raw videos and
pickled log-mels beside these folders are not read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra import media, storage
from infra.corpus import Refused, Sample

SUBSETS = ("s4", "ms3")
SPLITS = ("train", "val", "test")
FRAMES = 5
MINIATURE = "miniature.json"

_FOLDER = {"s4": "Single-source", "ms3": "Multi-sources"}
_COLUMNS = {"s4": ("name", "category", "split"), "ms3": ("video_id", "split")}
_PARTS = ("visual_frames", "gt_masks", "audio_wav")
_NAME = re.compile(r"[^/\\\x00-\x1f]{1,120}")
_MAX_FILE_BYTES = 64 << 20
_MAX_SECONDS = 60.0
_EXAMPLE_SAMPLES = 15_600
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A tree that holds one subset."""

    uri: str
    """The folder that holds the csv table and the data folder."""
    subset: str
    files: dict[str, int]
    """Bytes of every frame, mask and sound, by path below ``uri``."""
    miniature: dict[str, Any]
    """The content of ``miniature.json``; empty for the real benchmark."""

    @property
    def table(self) -> str:
        """Name of the csv table."""
        return f"{self.subset}_meta_data.csv"

    @property
    def kind(self) -> str:
        """``avsbench_s4`` or ``avsbench_ms3``, with ``_miniature`` where it is one."""
        return f"avsbench_{self.subset}" + ("_miniature" if self.miniature else "")

    @property
    def fingerprint(self) -> str:
        """sha256 of the table, the paths and sizes, and of what a miniature was made from."""
        digest = hashlib.sha256(storage.read_bytes(storage.join(self.uri, self.table)))
        digest.update(json.dumps(sorted(self.files.items())).encode())
        digest.update(str(self.miniature.get("fingerprint", "")).encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """One clip whose files are all there."""

    kind: str
    subset: str
    split: str
    name: str
    key: str
    category: str
    """Of S4; empty in MS3."""
    uri: str
    """What the paths are relative to."""
    frames: tuple[str, ...]
    masks: tuple[str | None, ...]
    """None for a frame that is not annotated."""
    sound: str
    bytes: int
    """Size of all its files together."""
    objects: tuple[Any, ...] | None = None
    """Of a miniature: per frame every object, its class and what is visible of it."""
    clips: tuple[str, ...] = ()
    """Of a miniature: the ids of the clips in its sound."""


def find(uri: str, subset: str) -> Layout:
    """The tree at ``uri``, which is the benchmark's folder or the subset's folder in it.

    Raises:
        ValueError: an unknown subset, or no such tree; says what was expected and what is there.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset {subset!r} is not known: use one of {', '.join(SUBSETS)}")
    root = storage.normalise(uri)
    table, folder = f"{subset}_meta_data.csv", _FOLDER[subset]
    places = [storage.join(root, folder), root]
    place = next((p for p in places if storage.exists(storage.join(p, table))), None)
    if place is None:
        raise ValueError(
            f"{root} is no AVSBench tree: {folder}/{table} beside {folder}/{subset}_data/ with "
            f"{', '.join(_PARTS)} is expected, found {_names_in(root)}"
        )
    files = _list(place, [f"{subset}_data/{part}" for part in _PARTS])
    for part in _PARTS:
        if not any(path.startswith(f"{subset}_data/{part}/") for path in files):
            raise ValueError(
                f"{place}/{subset}_data/{part} is missing or empty: an AVSBench tree has "
                f"{', '.join(_PARTS)} there, found {_names_in(f'{place}/{subset}_data')}"
            )
    return Layout(
        uri=place, subset=subset, files=files, miniature=_read_miniature(root, place, places[0])
    )


def _names_in(uri: str) -> str:
    fs, path = storage.filesystem(uri)
    try:
        names = sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, False))
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    shown = ", ".join(names[:6]) or "nothing"
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _list(uri: str, folders: Sequence[str]) -> dict[str, int]:
    files: dict[str, int] = {}
    for folder in folders:
        fs, path = storage.filesystem(storage.join(uri, folder))
        for name, info in fs.find(path, detail=True).items():
            files[folder + str(name)[len(path) :]] = int(info["size"])
    return files


def _read_miniature(root: str, place: str, below: str) -> dict[str, Any]:
    """``miniature.json`` stands beside the subsets' folders: in ``root``, or one level up."""
    beside = root if place == below else root.rpartition("/")[0]
    try:
        data = storage.read_bytes(storage.join(beside, MINIATURE))
    except (FileNotFoundError, ValueError):
        return {}
    try:
        marker = json.loads(data)
        if marker["kind"] == "miniature" and isinstance(marker["clips"], dict):
            return dict(marker)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{beside}/{MINIATURE} is damaged: write the miniature again")


def clips(layout: Layout) -> tuple[list[ClipRow], list[Refused]]:
    """The clips of a tree sorted by key, and those that lack something, with the reason.

    Raises:
        ValueError: the table has other columns, or no clip in it is whole.
    """
    rows: dict[str, ClipRow] = {}
    refused: list[Refused] = []
    for entry in _read_table(layout):
        try:
            row = _clip(layout, entry)
            if row.key in rows:
                raise ValueError("twice: the table has the clip twice")
            rows[row.key] = row
        except ValueError as error:
            name = entry[_COLUMNS[layout.subset][0]]
            identity = f"{layout.subset}/{entry['split']}/{name}"
            refused.append(Refused(id=identity, source=layout.kind, reason=str(error)))
    if not rows:
        reason = (
            f"the first is refused because of {refused[0].reason}" if refused else "it is empty"
        )
        raise ValueError(f"no clip of {layout.uri}/{layout.table} is whole: {reason}")
    return [rows[key] for key in sorted(rows)], refused


def _read_table(layout: Layout) -> list[dict[str, str]]:
    uri, columns = storage.join(layout.uri, layout.table), _COLUMNS[layout.subset]
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{uri} is no UTF-8 text: a csv table is expected") from None
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{uri} lacks the column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}"
        )
    entries = [{name: row[name] or "" for name in columns} for row in reader]
    # A shuffled copy of the S4 table that is about has its header among the rows.
    return [entry for entry in entries if entry["split"] != "split"]


def _clip(layout: Layout, entry: dict[str, str]) -> ClipRow:
    """The row of one clip; ValueError with the reason where something is amiss."""
    subset, split = layout.subset, entry["split"]
    name, category = entry.get("name") or entry.get("video_id", ""), entry.get("category", "")
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is none of {', '.join(SPLITS)}")
    for part in (name, category) if subset == "s4" else (name,):
        if not _NAME.fullmatch(part) or part in (".", ".."):
            raise ValueError(f"name: {part!r} cannot be the name of a folder")
    data = f"{subset}_data"
    level = f"{split}/{category}" if subset == "s4" else split
    shown = f"{level}/{name}/{name}" if subset == "s4" else f"{name}/{name}.mp4"
    frames = [f"{data}/visual_frames/{shown}_{k + 1}.png" for k in range(FRAMES)]
    masks = [f"{data}/gt_masks/{level}/{name}/{name}_{k + 1}.png" for k in range(FRAMES)]
    sound = f"{data}/audio_wav/{level}/{name}.wav"
    # Of an S4 train clip only the first frame is annotated.
    needed = masks[:1] if subset == "s4" and split == "train" else masks
    for what, paths in (("frames", frames), ("masks", needed), ("sound", [sound])):
        absent = [path for path in paths if path not in layout.files]
        if absent:
            raise ValueError(f"{what}: {len(absent)} of {len(paths)} missing, {absent[0]}")
    present = [path if path in layout.files else None for path in masks]
    record: dict[str, Any] = {}
    if layout.miniature:
        record = layout.miniature["clips"].get(name, {})
        if len(record.get("frames", ())) != FRAMES:
            raise ValueError(f"miniature: {MINIATURE} does not know the clip")
    return ClipRow(
        kind=layout.kind,
        subset=subset,
        split=split,
        name=name,
        key=clip_key(subset, split, name),
        category=category,
        uri=layout.uri,
        frames=tuple(frames),
        masks=tuple(present),
        sound=sound,
        bytes=sum(layout.files[p] for p in [*frames, *present, sound] if p is not None),
        objects=tuple(record["frames"]) if record else None,
        clips=tuple(record.get("sound", ())),
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


def read_clips(rows: Sequence[ClipRow]) -> Iterator[Sample | Refused]:
    """``to_sample`` of each; a clip that cannot be used is refused with its reason."""
    for row in rows:
        try:
            yield to_sample(row)
        except (ValueError, FileNotFoundError) as error:
            identity = f"{row.subset}/{row.split}/{row.name}"
            yield Refused(id=identity, source=row.kind, reason=str(error))


def clip_key(subset: str, split: str, name: str) -> str:
    """The corpus key of a clip, for instance ``s4-test--wNxGVNCOUY``.

    A name with other characters than ASCII letters, digits, ``_`` and ``-`` gets a piece of its
    hash, so that two names never share a key.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
    if plain != name:
        plain = f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{subset}-{split}-{plain}"


def to_sample(row: ClipRow) -> Sample:
    """Read a clip: frames and masks as they are, sound as 16 kHz mono FLAC.

    Raises:
        ValueError: a file cannot be decoded, a mask has other values than 0 and 255 (or 0 and 1),
            sizes differ, or the sound is shorter than one audio example (0.975 s).
        FileNotFoundError: a file has gone since the tree was listed.
    """
    members: dict[str, bytes] = {}
    for frame, (picture, mask) in enumerate(zip(row.frames, row.masks, strict=True)):
        data = _read(row, picture)
        size = _decoded(data, picture).shape[:2]
        members[f"frame{frame}.{_suffix(data, picture)}"] = data
        if mask is not None:
            members[f"mask{frame}.png"] = _mask(_read(row, mask), mask, size)
    wave_N = _sound(row)
    members["audio.flac"] = media.encode_flac(wave_N)
    meta: dict[str, Any] = {
        "key": row.key,
        "kind": row.kind,
        "split": row.split,
        "scene": row.name,
        "name": row.name,
        "classes": _classes(row),
        "frames": len(row.frames),
        "audio_seconds": wave_N.size / media.SAMPLE_RATE,
        "sound": list(row.clips),
    }
    if row.category:
        meta["category"] = row.category
    if row.objects is not None:
        meta["objects"] = list(row.objects)
    return Sample(key=row.key, members=members, meta=meta)


def _classes(row: ClipRow) -> list[str]:
    """What sounds: the category of S4; MS3 itself does not say, its miniature does."""
    if row.subset == "s4":
        return [row.category]
    shown = [thing for frame in row.objects or () for thing in frame]
    return sorted({thing["class"] for thing in shown if thing["sounding"]})


def _read(row: ClipRow, path: str) -> bytes:
    return storage.read_bytes(storage.join(row.uri, path), limit=_MAX_FILE_BYTES)


def _decoded(data: bytes, path: str) -> np.ndarray:
    try:
        return media.decode_image(data)[..., :3]
    except ValueError as error:
        raise ValueError(f"unreadable: {path}: {error}") from None


def _suffix(data: bytes, path: str) -> str:
    if data.startswith(_PNG):
        return "png"
    if data.startswith(_JPEG):
        return "jpg"
    raise ValueError(f"unreadable: {path} is neither PNG nor JPEG")


def _mask(data: bytes, path: str, size: tuple[int, ...]) -> bytes:
    """The mask's own bytes where they are 8-bit grey with 0 and 255, else the same mask so."""
    image_HW3 = _decoded(data, path)
    if image_HW3.shape[:2] != size:
        raise ValueError(f"mask: {path} is {image_HW3.shape[:2]} and its frame {size} pixels")
    mask_HW = image_HW3[..., 0]
    if (image_HW3 != mask_HW[..., None]).any():
        raise ValueError(f"mask: {path} is coloured where black and white are allowed")
    values = {int(value) for value in np.unique(mask_HW)}
    if values <= {0, 255}:
        depth_and_colour = data[24:26] if data.startswith(_PNG) else b""
        return data if depth_and_colour == b"\x08\x00" else media.encode_png(mask_HW > 0)
    if values <= {0, 1}:
        return media.encode_png(mask_HW > 0)
    shown = ", ".join(map(str, sorted(values)[:8])) + (", ..." if len(values) > 8 else "")
    raise ValueError(f"mask: {path} has the values {shown} where 0 and 255 are allowed")


def _sound(row: ClipRow) -> np.ndarray:
    """int16 ``[N]`` at 16 kHz; a 16-bit mono file of that rate keeps every sample."""
    try:
        wave_N, rate = media.decode_audio(_read(row, row.sound), max_seconds=_MAX_SECONDS)
    except ValueError as error:
        raise ValueError(f"unreadable: {row.sound}: {error}") from None
    wave_N = media.resample(wave_N, rate)
    if wave_N.size < _EXAMPLE_SAMPLES:
        seconds = wave_N.size / media.SAMPLE_RATE
        raise ValueError(f"sound: {row.sound} lasts {seconds:.3f} s, one example needs 0.975 s")
    return np.clip(np.rint(wave_N * 32768.0), -32768, 32767).astype(np.int16)
