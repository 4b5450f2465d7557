"""What the check of a tree finds, and what the real tables hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra import media
from synth import avsbench
from synth.avsbench.checking import Report
from synth.avsbench.splits import leak_of, video_of, without_leak
from synth.avsbench.table import PUBLISHED, Entry, read_table
from tests import made_avsbench as made

LABELS = Path(__file__).parents[3] / "shared" / "labels"
S4 = "Single-source/s4_data"


def check(tree: Path, subset: str) -> Report:
    layout = avsbench.find(str(tree), subset)
    entries, stray_headers = avsbench.table_of(layout)
    rows, refused = avsbench.rows_of(layout, entries, splits="published", side=224)
    verdicts = [avsbench.look(row) for row in rows]
    return avsbench.summarise(layout, entries, stray_headers, refused, verdicts)


def clips(count: int) -> list[made.MadeClip]:
    return [
        made.MadeClip(subset="s4", name=f"Abc_def01{k:02d}", split="test", category="dog_barking")
        for k in range(count)
    ]


def _mask(values: np.ndarray) -> bytes:
    return media.encode_png(values.astype(np.uint8))


def _palette() -> bytes:
    image = Image.fromarray(made.square().astype(np.uint8) * 255)
    return made.png(image.convert("P"))


MASK = "gt_masks/test/dog_barking/{0}/{0}_2.png"
SOUND = "audio_wav/test/dog_barking/{0}.wav"
FRAME = "visual_frames/test/dog_barking/{0}/{0}_3.png"
# File, its new content (None removes it), and how the reason begins.
UNUSABLE = [
    (SOUND, None, "sound: 1 of 1 missing, s4_data/audio_wav/"),
    (FRAME, None, "frames: 1 of 5 missing, s4_data/visual_frames/"),
    (MASK, None, "masks: 1 of 5 missing, s4_data/gt_masks/"),
    (FRAME, b"\x89PNG\r\n\x1a\n", "unreadable: s4_data/visual_frames/"),
    (SOUND, b"RIFF", "unreadable: s4_data/audio_wav/"),
    (SOUND, media.encode_wav(made.tone(0.5)), "sound: s4_data/audio_wav/"),
    (MASK, _mask(made.square() * 225), "mask: s4_data/gt_masks/"),
    (MASK, _mask(np.ones((3, 4)) * 255), "mask: s4_data/gt_masks/"),
]
HANDLED = [
    (MASK, _mask(made.square()), "mask values: 0 and 1"),
    (MASK, _palette(), "palette mask: black and white"),
    (SOUND, media.encode_wav(made.tone(3)), "short sound: 3.000 s, so 3 examples for 5 frames"),
]


def test_what_cannot_be_used_and_what_is_odd_are_told_apart_and_by_name(tmp_path: Path) -> None:
    cases = [*UNUSABLE, *HANDLED]
    made.write_tree(tmp_path, clips(len(cases) + 1))
    for clip, (path, data, _) in zip(clips(len(cases)), cases, strict=True):
        target = tmp_path / S4 / path.format(clip.name)
        target.unlink()
        if data is not None:
            target.write_bytes(data)
    report = check(tmp_path, "s4")
    names = [f"s4/test/{clip.name}" for clip in clips(len(cases))]
    assert list(report.refused) == names[: len(UNUSABLE)]
    for name, (path, _, reason) in zip(names, UNUSABLE, strict=False):
        assert report.refused[name].startswith(reason)
        assert path.format(name.rsplit("/", 1)[-1]) in report.refused[name]
    assert report.odd == {
        name: [odd] for name, (_, _, odd) in zip(names[len(UNUSABLE) :], HANDLED, strict=True)
    }
    summary = report.summary
    assert summary["usable"] == {"train": 0, "val": 0, "test": len(HANDLED) + 1}
    assert summary["published"] == {"train": 3452, "val": 740, "test": 740}
    assert not summary["complete"]
    reasons = {"frames": 1, "mask": 2, "masks": 1, "sound": 2, "unreadable": 2}
    assert summary["refused_by_reason"] == reasons
    assert summary["odd"] == {"mask values": 1, "palette mask": 1, "short sound": 1}


def test_a_clip_that_lacks_several_things_is_told_all_of_them(tmp_path: Path) -> None:
    made.write_tree(tmp_path, clips(2))
    name = clips(1)[0].name
    for path in (FRAME, SOUND):
        (tmp_path / S4 / path.format(name)).unlink()
    said = check(tmp_path, "s4").refused[f"s4/test/{name}"]
    assert [part.split(":")[0] for part in said.split("; ")] == ["frames", "sound"]


def test_the_check_and_the_sharding_agree_on_every_clip(tmp_path: Path) -> None:
    made.write_tree(tmp_path, made.small())
    layout = avsbench.find(str(tmp_path), "avss")
    assert check(tmp_path, "avss").refused == {}
    rows, _ = avsbench.clips(layout)
    assert sum(check(tmp_path, "avss").summary["usable"].values()) == len(rows)


def test_quirks_of_names_and_tables_are_named(tmp_path: Path) -> None:
    made.write_tree(tmp_path, made.small())
    table = tmp_path / made.TABLES["ms3"]
    table.write_text(table.read_text() + "video_id,split\n")
    made.write_files(tmp_path, {"Multi-sources/ms3_data/audio_log_mel/test/x.pkl": b"x"})
    ms3 = check(tmp_path, "ms3")
    assert ms3.summary["share_video_with_train"] == {"val": 1, "test": 0}
    assert ms3.odd["ms3/val/Efg_hij0123_36"] == ["shared video: it has clips in train too"]
    text = " ".join(ms3.remarks)
    for said in (
        "1 names begin with a dash",
        "25 frames have .mp4 inside",
        "its header 1 times",
        "1 of 1 val and 0 of 1 test",
        "1 pickled log-mels are not read",
    ):
        assert said in text
    avss = check(tmp_path, "avss")
    assert avss.odd["v1s/train/-Abc_def0-1_0_5000"] == ["class name: 'h orse' is read as 'horse'"]
    kinds = {"background": 1, "class name": 1, "off the screen": 1, "shared video": 2}
    assert avss.summary["odd"] == kinds


def _entries(subset: str) -> list[Entry]:
    name = f"{subset}_meta_data.csv" if subset in ("s4", "ms3") else "avss_metadata.csv"
    if not (LABELS / name).is_file():
        pytest.skip(f"the real table {name} is not at hand")
    return read_table((LABELS / name).read_bytes(), subset, name)[0]


@pytest.mark.parametrize("subset", PUBLISHED)
def test_the_real_tables_hold_the_published_counts(subset: str) -> None:
    entries = _entries(subset)
    counts = [sum(entry.split == split for entry in entries) for split in avsbench.SPLITS]
    assert tuple(counts) == PUBLISHED[subset]
    keys = {avsbench.clip_key(entry.subset, entry.split, entry.name) for entry in entries}
    assert len(keys) == len(entries)


def test_every_class_in_the_real_tables_is_one_of_the_seventy() -> None:
    known = set(json.loads((LABELS / "avss_label2idx.json").read_text())) - {"background"}
    entries = _entries("avss")
    assert {name for entry in entries for name in entry.classes} <= known
    assert sum(entry.off_screen for entry in entries) == 27


@pytest.mark.parametrize(
    ("subset", "leak"),
    [
        ("s4", {"train": 0, "val": 0, "test": 0}),
        ("ms3", {"train": 116, "val": 41, "test": 38}),
        ("v1m", {"train": 116, "val": 41, "test": 38}),
        ("v2", {"train": 0, "val": 0, "test": 0}),
        # v1m's, and clips of v1s and v2 that are of one video.
        ("avss", {"train": 170, "val": 52, "test": 53}),
    ],
)
def test_the_leak_of_the_real_tables_is_counted_and_can_be_left_out(
    subset: str, leak: dict[str, int]
) -> None:
    entries = _entries(subset)
    assert leak_of(entries) == leak
    kept, dropped = without_leak(entries)
    assert leak_of(kept) == {"train": 0, "val": 0, "test": 0}
    assert len(dropped) == leak["train"]
    assert [e for e in kept if e.split != "train"] == [e for e in entries if e.split != "train"]


def test_videos_are_told_by_the_youtube_id_in_a_name() -> None:
    names = ("-Abc_def0-1", "-Abc_def0-1_36", "-Abc_def0-1_0_5000", "baby_dog_2_1")
    assert [video_of(name) for name in names] == [*["-Abc_def0-1"] * 3, "baby_dog_2_1"]
