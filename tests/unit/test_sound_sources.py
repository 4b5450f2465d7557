"""The sound sources with one label a clip, VGGSound and ESC-50, laid out as published."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from pathlib import Path

import pytest

from infra import media, storage
from synth.sources import esc50, vggsound
from synth.tables import Candidate
from synth.taxonomy import Labels, classes
from tests.made_media import tone

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT.parent / "shared" / "labels"
needs_lists = pytest.mark.skipif(
    not LISTS.is_dir(), reason="the publishers' lists are not beside the repository"
)


def write_sound(path: Path, pitch: float = 440.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(media.encode_wav(tone(pitch, seconds=0.1)))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def accepted(found: list[Candidate]) -> dict[str, str]:
    return {c.path: c.class_name for c in found if not c.refusal}


def refusals(found: list[Candidate]) -> list[tuple[str, str]]:
    return [(c.path, c.refusal) for c in found if c.refusal]


# VGGSound


def vggsound_of(
    folder: Path, *rows: str, asked: tuple[str, ...] = (), **more: object
) -> tuple[list[Candidate], Labels]:
    write_text(folder / "vggsound.csv", "".join(f"{row}\n" for row in rows))
    labels = Labels("vggsound", classes=asked)
    source = vggsound.VggSoundConfig(folder=str(folder), **more)  # type: ignore[arg-type]
    return list(vggsound.candidates(source, labels)), labels


def test_a_vggsound_clip_is_known_by_its_video_and_start(tmp_path: Path) -> None:
    write_sound(tmp_path / "-0PQM4-hqg0_000030.wav")
    write_sound(tmp_path / "_0PQM4-hqg1_000130.wav")
    found, labels = vggsound_of(
        tmp_path,
        "-0PQM4-hqg0,30,dog barking,train",
        '_0PQM4-hqg1,130,"pigeon, dove cooing",test',
        "_0PQM4-hqg1,140,cat meowing,test",
    )
    assert [
        (c.role, c.source, c.root, c.path, c.class_name, c.video, c.refusal) for c in found
    ] == [
        ("sound", "vggsound", "vggsound", "-0PQM4-hqg0_000030.wav", "dog", "-0PQM4-hqg0", ""),
        ("sound", "vggsound", "vggsound", "_0PQM4-hqg1_000130.wav", "pigeon", "_0PQM4-hqg1", ""),
    ]
    assert found[0].licence == "YouTube uploaders' terms; annotations CC BY 4.0"
    assert found[0].origin == "https://www.youtube.com/watch?v=-0PQM4-hqg0&t=30s"
    assert labels.left_out == {"no file": 1}
    assert media.decode_audio(storage.read_bytes(tmp_path / found[0].path))[1] == 16_000


@pytest.mark.parametrize(
    "name",
    [
        "aaaaaaaaaaa_000030.wav",
        "aaaaaaaaaaa_30.flac",
        "train/aaaaaaaaaaa_000030.mp4",
        "dog barking/aaaaaaaaaaa_30.M4A",
        "test/dog barking/aaaaaaaaaaa_000030.mp3",
        "aaaaaaaaaaa_30000_40000.ogg",
        "aaaaaaaaaaa_30_40.ogg",
    ],
)
def test_all_usual_names_of_a_clip_are_known(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clips" / name
    path.parent.mkdir(parents=True)
    path.touch()
    found, _ = vggsound_of(tmp_path, "aaaaaaaaaaa,30,dog barking,train", audio="clips")
    assert accepted(found) == {f"clips/{name}": "dog"}


def test_of_one_clip_in_several_files_the_best_is_taken(tmp_path: Path) -> None:
    for name in ("a/aaaaaaaaaaa_30.mp4", "b/aaaaaaaaaaa_000030.wav", "c/aaaaaaaaaaa_30.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found, _ = vggsound_of(tmp_path, "aaaaaaaaaaa,30,dog barking,train")
    assert list(accepted(found)) == ["b/aaaaaaaaaaa_000030.wav"]


def test_the_file_of_another_start_or_of_a_whole_video_is_not_taken(tmp_path: Path) -> None:
    for name in ("aaaaaaaaaaa_000300.wav", "aaaaaaaaaaa_3.wav", "aaaaaaaaaaa.wav"):
        (tmp_path / name).touch()
    (tmp_path / "aaaaaaaaaaa_000030.txt").touch()
    found, labels = vggsound_of(tmp_path, "aaaaaaaaaaa,30,dog barking,train")
    assert found == []
    assert labels.left_out == {"no file": 1}


def test_a_header_and_junk_rows_do_not_stop_vggsound(tmp_path: Path) -> None:
    write_sound(tmp_path / "aaaaaaaaaaa_000030.wav")
    found, labels = vggsound_of(
        tmp_path,
        "\ufeffyoutube_id,start,label,split\r",
        "aaaaaaaaaaa,30,dog barking,\r",
        "",
        "youtube_id,start,label,split\r",
        "../../etc/x,30,dog barking,train",
        "bbbbbbbbbbb,nan,dog barking,train",
        "bbbbbbbbbbb,-1,dog barking,train",
        "bbbbbbbbbbb,1e300,dog barking,train",
        "bbbbbbbbbbb,,dog barking,train",
        "ccccccccccc",
        "ccccccccccc,30,,train",
        "ccccccccccc,30,waterfall burbling,train",
        "aaaaaaaaaaa,30,dog barking,train",
        "ddddddddddd,30,dog barking,valid",
        f"{'x' * 100_000},30,dog barking,train",
    )
    assert accepted(found) == {"aaaaaaaaaaa_000030.wav": "dog"}
    reasons = [reason for _, reason in refusals(found)]
    assert reasons[0] == "row: '../../etc/x' is no YouTube id"
    assert reasons[1:] == [
        f"row: {start!r} is no second of a video" for start in ("nan", "-1", "1e300", "")
    ]
    assert len({c.path for c in found}) == len(found)
    assert labels.unknown == {"waterfall burbling": 1}
    assert labels.left_out == {
        "no label": 2,
        "named twice": 1,
        "other split": 1,
        "line too long": 1,
    }


def test_a_file_of_which_rows_differ_is_not_taken_whichever_row_comes_first(tmp_path: Path) -> None:
    for video in ("aaaaaaaaaaa", "bbbbbbbbbbb"):
        write_sound(tmp_path / f"{video}_000030.wav")
    rows = (
        "aaaaaaaaaaa,30,dog barking,train",
        "bbbbbbbbbbb,30,dog barking,train",
        "aaaaaaaaaaa,30,cat meowing,train",
        "bbbbbbbbbbb,30,dog bow-wow,train",
        "aaaaaaaaaaa,30,dog barking,test",
    )
    for order in (1, -1):
        found, labels = vggsound_of(tmp_path, *rows[::order])
        # Two labels of one class are of one mind.
        assert accepted(found) == {"bbbbbbbbbbb_000030.wav": "dog"} and len(found) == 1
        assert labels.left_out == {"named by rows that differ": 3, "named twice": 1}


def test_a_table_of_something_else_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vggsound\.csv"):
        vggsound_of(tmp_path, "just", "words")
    with pytest.raises(FileNotFoundError, match=r"other\.csv does not exist"):
        vggsound_of(tmp_path, "", table="other.csv")


def test_only_the_classes_and_splits_asked_for_are_read(tmp_path: Path) -> None:
    for video in ("aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc"):
        write_sound(tmp_path / f"{video}_000000.wav")
    rows = (
        "aaaaaaaaaaa,0,dog barking,train",
        "bbbbbbbbbbb,0,cat meowing,train",
        "ccccccccccc,0,dog barking,test",
    )
    found, labels = vggsound_of(tmp_path, *rows, asked=("dog",), splits=("train",))
    assert list(accepted(found)) == ["aaaaaaaaaaa_000000.wav"]
    assert labels.unknown == {}
    assert labels.left_out == {"other split": 1}


@needs_lists
def test_every_official_vggsound_label_is_mapped_or_counted(tmp_path: Path) -> None:
    with gzip.open(LISTS / "vggsound_union.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        text = lines.read()
    rows = list(csv.DictReader(io.StringIO(text)))
    write_text(tmp_path / "vggsound.csv", text)
    # A file for the first clip of every label, so that each can show its class.
    first = {row["label"]: row for row in reversed(rows) if row["label"]}
    for row in first.values():
        (tmp_path / f"{row['youtube_id']}_{int(row['start']):06d}.wav").touch()

    labels = Labels("vggsound")
    found = list(vggsound.candidates(vggsound.VggSoundConfig(folder=str(tmp_path)), labels))

    official = Counter(row["label"] for row in rows)
    mapped = {label: row.name for row in classes() for label in row.labels["vggsound"]}
    assert len(first) == 309
    assert labels.unknown == {k: n for k, n in official.items() if k and k not in mapped}
    assert refusals(found) == []
    assert Counter(c.class_name for c in found) == Counter(
        mapped[label] for label in first if label in mapped
    )
    assert labels.left_out["no label"] == official[""]
    assert len(found) + sum(labels.left_out.values()) + labels.unknown.total() == len(rows)


# ESC-50


def test_an_esc50_clip_has_its_own_licence_and_origin(tmp_path: Path) -> None:
    write_text(
        tmp_path / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "1-100038-A-14.wav,1,14,chirping_birds,False,100038,A\n"
        "1-17367-A-10.wav,1,10,rain,True,17367,A\n"
        "1-30226-A-0.wav,1,0,dog,True,30226,A\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "../meta/esc50.csv,1,0,dog,True,100032,A\n"
        ",1,0,dog,True,100032,A\n"
        "1-100032-A-0.wav,1\n",
    )
    write_sound(tmp_path / "audio" / "1-100032-A-0.wav")
    write_sound(tmp_path / "audio" / "1-100038-A-14.wav", 900.0)
    labels = Labels("esc50")
    found = list(esc50.candidates(esc50.Esc50Config(folder=str(tmp_path)), labels))
    assert found[:2] == [
        Candidate(
            role="sound",
            source="esc50",
            root="esc50",
            path=f"audio/{name}",
            class_name=class_name,
            licence=licence,
            origin=f"freesound.org clip {clip}",
            recording=f"freesound.org clip {clip}",
        )
        for name, class_name, licence, clip in (
            ("1-100032-A-0.wav", "dog", "CC BY 3.0", 100032),
            ("1-100038-A-14.wav", "bird", "CC BY-NC 3.0", 100038),
        )
    ]
    assert refusals(found) == [
        ("meta/esc50.csv row 6", "path: '../meta/esc50.csv' is no name of a file in audio"),
        ("meta/esc50.csv row 7", "path: '' is no name of a file in audio"),
    ]
    assert labels.unknown == {"rain": 1}
    assert labels.left_out == {"no file": 1, "named twice": 1, "no label": 1}


def test_an_esc50_clip_under_two_licences_is_not_taken(tmp_path: Path) -> None:
    write_sound(tmp_path / "audio" / "1-100032-A-0.wav")
    rows = [f"1-100032-A-0.wav,1,0,dog,{esc10},100032,A" for esc10 in ("True", "False")]
    for order in (1, -1):
        table = ["filename,fold,target,category,esc10,src_file,take", *rows[::order]]
        write_text(tmp_path / "meta" / "esc50.csv", "\n".join(table))
        labels = Labels("esc50")
        assert not list(esc50.candidates(esc50.Esc50Config(folder=str(tmp_path)), labels))
        assert labels.left_out == {"named by rows that differ": 2}


@needs_lists
def test_the_published_esc50_reads_whole(tmp_path: Path) -> None:
    text = (LISTS / "esc50.csv").read_text(encoding="utf-8")
    write_text(tmp_path / "meta" / "esc50.csv", text)
    (tmp_path / "audio").mkdir()
    for row in csv.DictReader(io.StringIO(text)):
        (tmp_path / "audio" / row["filename"]).touch()
    labels = Labels("esc50")
    found = list(esc50.candidates(esc50.Esc50Config(folder=str(tmp_path)), labels))
    mapped = {label for row in classes() for label in row.labels["esc50"]}
    assert len(accepted(found)) == 40 * len(mapped)
    assert len(found) + labels.unknown.total() == 2000
    assert labels.left_out == {}
    assert {c.licence for c in found if c.class_name == "dog"} == {"CC BY 3.0"}
    assert {c.licence for c in found if c.class_name == "cow"} == {"CC BY-NC 3.0"}
