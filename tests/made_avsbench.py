"""Trees in AVSBench's published layouts, with made media: loose, or packed as people pack them.

``files_of`` tells which files a clip has. ``write_tree`` writes each distinct content once and
links the rest to it, and ``write_zip`` packs them, so that the whole benchmark is a matter of
seconds.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from infra import media

SEMANTIC = ("v1s", "v1m", "v2")
TABLES = {
    "s4": "Single-source/s4_meta_data.csv",
    "ms3": "Multi-sources/ms3_meta_data.csv",
    "avss": "metadata.csv",
}
SIDE = 16
# Two classes of AVSBench-semantic and their colours. In binary they are 100 011 and 1 000 110, and
# the three bits of each group are blue, green, red: the last group counts 128, the next 64, 32.
LABELLED = {35: (128, 128, 64), 70: (32, 128, 128)}
# Below what ext4 allows of one file.
_MOST_LINKS = 30_000


@dataclass(frozen=True, kw_only=True)
class MadeClip:
    """One row of a table."""

    subset: str
    """s4, ms3, v1s, v1m or v2."""
    name: str
    split: str
    category: str = ""
    objects: str = ""


def files_of(clip: MadeClip) -> Iterator[tuple[str, str]]:
    """Path and content (a key of ``contents``) of every file that a clip has as published."""
    name, split = clip.name, clip.split
    first_only = split == "train" and clip.subset in ("s4", "v1s")
    if clip.subset in SEMANTIC:
        count = 10 if clip.subset == "v2" else 5
        for k in range(count):
            yield f"{clip.subset}/{name}/frames/{k}.jpg", "jpg"
        for k in range(1 if first_only else count):
            yield f"{clip.subset}/{name}/labels_rgb/{k}.png", "labels"
        yield f"{clip.subset}/{name}/audio.wav", "wav10" if count == 10 else "wav5"
        return
    if clip.subset == "s4":
        data, level = "Single-source/s4_data", f"{split}/{clip.category}"
        frames = f"{level}/{name}/{name}"
    else:
        data, level, frames = "Multi-sources/ms3_data", split, f"{name}/{name}.mp4"
    for k in range(5):
        yield f"{data}/visual_frames/{frames}_{k + 1}.png", "png"
    for k in range(1 if first_only else 5):
        yield f"{data}/gt_masks/{level}/{name}/{name}_{k + 1}.png", "mask"
    yield f"{data}/audio_wav/{level}/{name}.wav", "wav5"


def contents() -> dict[str, bytes]:
    """One file of each kind."""
    random = np.random.default_rng(0)
    picture_HW3 = random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    return {
        "png": media.encode_png(picture_HW3),
        "jpg": media.encode_jpeg(picture_HW3),
        "mask": media.encode_png(square()),
        "labels": media.encode_png(labels()),
        "wav5": media.encode_wav(tone(5)),
        "wav10": media.encode_wav(tone(10)),
        "pickle": b"not to be read",
    }


def square() -> np.ndarray:
    """bool ``[H, W]``: a quarter of the picture."""
    mask_HW = np.zeros((SIDE, SIDE), bool)
    mask_HW[: SIDE // 2, : SIDE // 2] = True
    return mask_HW


def labels() -> np.ndarray:
    """uint8 ``[H, W, 3]``: a quarter in one class and an eighth in another."""
    image_HW3 = np.zeros((SIDE, SIDE, 3), np.uint8)
    image_HW3[square()] = LABELLED[35]
    image_HW3[SIDE // 2 :, : SIDE // 4] = LABELLED[70]
    return image_HW3


def tone(seconds: float) -> np.ndarray:
    """float32 ``[N]``: a period fills whole samples, so that it packs well."""
    times_N = np.arange(round(seconds * media.SAMPLE_RATE))
    return (0.25 * np.sin(2 * np.pi * times_N / 40)).astype(np.float32)


def png(image: Image.Image) -> bytes:
    """A PNG as Pillow writes it in the picture's own mode."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def tables(clips: Iterable[MadeClip]) -> dict[str, bytes]:
    """The tables of the clips, and label2idx.json where AVSBench-semantic is among them."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for clip in clips:
        if clip.subset == "s4":
            row: tuple[str, ...] = (clip.name, "0", clip.category, clip.split)
        elif clip.subset == "ms3":
            row = (clip.name, clip.split)
        else:
            row = (clip.name[:11], clip.name, "0", "0", clip.objects, clip.split, clip.subset)
        rows.setdefault("avss" if clip.subset in SEMANTIC else clip.subset, []).append(row)
    heads = {
        "s4": ("name", "start", "category", "split"),
        "ms3": ("video_id", "split"),
        "avss": ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"),
    }
    found = {}
    for subset, listed in rows.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([heads[subset], *listed])
        found[TABLES[subset]] = text.getvalue().encode()
    if "avss" in rows:
        names = ["background", *(f"class{k:02d}" for k in range(1, 71))]
        found["label2idx.json"] = json.dumps({name: k for k, name in enumerate(names)}).encode()
    return found


def write_tree(folder: Path, clips: Iterable[MadeClip]) -> None:
    """A loose tree with its tables."""
    clips = list(clips)
    write_files(folder, tables(clips))
    made, links = contents(), dict.fromkeys(contents(), 0)
    originals: dict[str, Path] = {}
    for clip in clips:
        for path, kind in files_of(clip):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if links[kind] % _MOST_LINKS == 0:
                target.write_bytes(made[kind])
                originals[kind] = target
            else:
                os.link(originals[kind], target)
            links[kind] += 1


def own_copy(path: Path, data: bytes) -> None:
    """Replace one file of a tree; what it was linked to stays as it is."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Files by their paths below the folder."""
    for path, data in files.items():
        own_copy(folder / path, data)


def write_zip(target: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A zip file; sounds are deflated and pictures stored, as most packers end up doing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as file:
        for path, data in members:
            how = zipfile.ZIP_STORED if path.endswith((".png", ".jpg")) else zipfile.ZIP_DEFLATED
            file.writestr(zipfile.ZipInfo(path), data, how)


def pack(folder: Path, target: Path, *, below: str = "", prefix: str = "") -> None:
    """Zip what lies in ``folder/below``, with ``prefix`` before each name."""
    root = folder / below
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    write_zip(target, ((f"{prefix}{path.relative_to(root)}", path.read_bytes()) for path in paths))


def published(labels: Path) -> list[MadeClip]:
    """All clips of the real tables, with their real names and splits."""
    clips = []
    for subset, name in (("s4", "s4_meta_data"), ("ms3", "ms3_meta_data"), ("", "avss_metadata")):
        with (labels / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                clip = MadeClip(
                    subset=subset or row["label"],
                    name=row.get("name") or row.get("video_id") or row["uid"],
                    split=row["split"],
                    category=row.get("category", ""),
                    objects=row.get("a_obj", ""),
                )
                clips.append(clip)
    return clips


def small() -> list[MadeClip]:
    """A few clips of every subset, with the names and quirks that the real tables have."""
    object_clips = [
        ("s4", "-Abc_def0-1", "train", "dog_barking"),
        ("s4", "Bcd-efg0123", "train", "horse_clip-clop"),
        ("s4", "Cde_fgh0123", "val", "dog_barking"),
        ("s4", "Def-ghi0123", "test", "dog_barking"),
        ("ms3", "Efg_hij0123_4", "train", ""),
        ("ms3", "Fgh-ijk0123", "train", ""),
        ("ms3", "baby_dog_2_1", "train", ""),
        ("ms3", "Efg_hij0123_36", "val", ""),
        ("ms3", "-bcdefg0123_36", "test", ""),
    ]
    semantic_clips = [
        ("v1s", "-Abc_def0-1_0_5000", "train", "h orse"),
        ("v1s", "Def-ghi0123_2000_7000", "test", "emergency-car"),
        ("v1m", "Efg_hij0123_4", "train", "man_ukulele"),
        ("v1m", "Efg_hij0123_36", "val", "background"),
        ("v2", "Ghi_jkl0123_16000_26000", "train", "off-the-screen"),
        ("v2", "Hij-klm0123_0_10000", "val", "guitar_man"),
        ("v2", "Ijk-lmn0123_0_10000", "test", "dog"),
    ]
    return [
        *(MadeClip(subset=a, name=b, split=c, category=d) for a, b, c, d in object_clips),
        *(MadeClip(subset=a, name=b, split=c, objects=d) for a, b, c, d in semantic_clips),
    ]
