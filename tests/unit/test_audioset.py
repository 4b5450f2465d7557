"""AudioSet, laid out as published: which clips have the sound of one class alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from infra import media
from synth.sources import audioset
from synth.sources.clips import classes_by_label
from synth.tables import Candidate
from synth.taxonomy import Labels
from tests.made_media import tone

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT.parent / "shared" / "labels"
needs_lists = pytest.mark.skipif(
    not LISTS.is_dir(), reason="the publishers' lists are not beside the repository"
)

ANIMAL, PETS, DOG, BARK, CAT = "/m/0jbk", "/m/068hy", "/m/0bt9lr", "/m/05tny_", "/m/01yrx"
BIRD, OWL, HORSE, NICKER = "/m/015p6", "/m/09d5_", "/m/03k3r", "/t/dd00140"
BEE, FLY, BUZZ, MUSIC, ROARING_CATS = "/m/01h3n", "/m/0h2mp", "/m/07pjwq1", "/m/04rlf", "/m/0cdnk"

# The part of the ontology that the tests speak of.
CHILDREN = {
    ANIMAL: [PETS, BIRD, HORSE, BEE, FLY, ROARING_CATS],
    PETS: [DOG, CAT],
    DOG: [BARK],
    BIRD: [OWL],
    HORSE: [NICKER],
    BEE: [BUZZ],
    FLY: [BUZZ],
    MUSIC: [],
}
VIDEO = "-0PQM4-hqg0"


def write(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def write_sound(path: Path) -> None:
    write(path, media.encode_wav(tone(440.0, seconds=0.1)))


def accepted(found: list[Candidate]) -> dict[str, str]:
    return {c.path: c.class_name for c in found if not c.refusal}


def segments(*rows: tuple[str, str, str]) -> str:
    """A segments file as it is published: id, start and MIDs of each row."""
    head = (
        f"# Segments csv created for the tests\n# num_ytids={len(rows)}, num_segs={len(rows)}\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
    )
    return head + "".join(
        f'{video}, {start}, {float(start or 0) + 10:.3f}, "{mids}"\n' for video, start, mids in rows
    )


def audioset_of(
    folder: Path, *, asked: tuple[str, ...] = (), **more: Any
) -> tuple[list[Candidate], Labels]:
    labels = Labels("audioset", classes=asked)
    source = audioset.AudioSetConfig(folder=str(folder), **more)
    return list(audioset.candidates(source, labels)), labels


def class_of(
    folder: Path, *mids: str, ontology: bool = True, **more: Any
) -> tuple[str | None, Labels]:
    """What becomes of a clip with these labels."""
    write(folder / "balanced_train_segments.csv", segments((VIDEO, "30.000", ",".join(mids))))
    write(folder / f"{VIDEO}.wav", b"")
    rows = [
        {"id": mid, "name": mid, "description": "", "child_ids": below, "restrictions": []}
        for mid, below in CHILDREN.items()
    ]
    write(folder / "ontology.json", json.dumps(rows))
    named = "ontology.json" if ontology else ""
    found, labels = audioset_of(folder, ontology=named, **more)
    assert not any(c.refusal for c in found)
    return (found[0].class_name if found else None), labels


def test_an_audioset_clip_has_its_video_licence_and_place(tmp_path: Path) -> None:
    rows = ((VIDEO, "30.000", f"{DOG},{BARK}"), ("_0PQM4-hqg1", "0.000", CAT))
    write(tmp_path / "unbalanced_train_segments.csv", segments(*rows))
    write_sound(tmp_path / "audio" / f"{VIDEO}_30.wav")
    found, labels = audioset_of(tmp_path, audio="audio")
    assert found == [
        Candidate(
            role="sound",
            source="audioset",
            root="audioset",
            path=f"audio/{VIDEO}_30.wav",
            class_name="dog",
            licence="YouTube uploaders' terms; annotations CC BY 4.0",
            origin=f"https://www.youtube.com/watch?v={VIDEO}&t=30s",
            video=VIDEO,
        )
    ]
    assert labels.left_out == {
        "no file": 1,
        "no file ontology.json": 1,
        "no table balanced_train_segments.csv": 1,
        "no table eval_segments.csv": 1,
    }


@pytest.mark.parametrize("video", [VIDEO, "Y0PQM4-hqg_", "_YPQM4_hqg0"])
@pytest.mark.parametrize(
    "name",
    [
        "{}_30.wav",
        "{}_30.000.flac",
        "{}_000030.mp3",
        "Y{}.wav",
        "{}.m4a",
        "{}_30000_40000.wav",
        "Y{}_30.000_40.000.wav",
    ],
)
def test_all_usual_names_of_an_audioset_clip_are_known(
    tmp_path: Path, name: str, video: str
) -> None:
    write(tmp_path / "eval_segments.csv", segments((video, "30.000", DOG)))
    write(tmp_path / "eval" / name.format(video), b"")
    write(tmp_path / "eval" / f"{video}_40000_50000.wav", b"")
    found, _ = audioset_of(tmp_path)
    assert accepted(found) == {f"eval/{name.format(video)}": "dog"}


def test_a_clip_with_several_classes_is_left_out_even_if_one_is_asked_for(tmp_path: Path) -> None:
    for asked in ((), ("dog",)):
        for pure in (True, False):
            found, labels = class_of(tmp_path, DOG, CAT, asked=asked, pure=pure)
            assert found is None
            assert labels.left_out["several classes"] == 1


def test_any_further_label_makes_a_clip_impure(tmp_path: Path) -> None:
    for ontology in (True, False):
        found, labels = class_of(tmp_path, DOG, MUSIC, ontology=ontology)
        assert found is None
        assert labels.left_out["further labels"] == 1
        assert labels.unknown == {MUSIC: 1}
        assert class_of(tmp_path, DOG, MUSIC, ontology=ontology, pure=False)[0] == "dog"


def test_what_includes_the_class_is_a_further_label_only_without_the_ontology(
    tmp_path: Path,
) -> None:
    assert class_of(tmp_path, ANIMAL, PETS, DOG, BARK)[0] == "dog"
    assert class_of(tmp_path, ANIMAL, PETS, DOG, BARK, ontology=False)[0] is None


def test_with_the_ontology_the_more_specific_class_is_heard(tmp_path: Path) -> None:
    assert class_of(tmp_path, BIRD, OWL)[0] == "owl"
    assert class_of(tmp_path, OWL, BIRD, asked=("bird",))[0] is None
    found, labels = class_of(tmp_path, BIRD, OWL, ontology=False)
    assert found is None
    assert labels.left_out["several classes"] == 1


def test_a_kind_of_a_class_counts_as_the_class_only_where_it_is_of_no_other(
    tmp_path: Path,
) -> None:
    found, labels = class_of(tmp_path, NICKER)
    assert found == "horse"
    assert labels.unknown == {}
    assert class_of(tmp_path, NICKER, ontology=False)[0] is None
    # Bees and flies buzz.
    found, labels = class_of(tmp_path, BUZZ)
    assert found is None
    assert labels.unknown == {BUZZ: 1}
    assert class_of(tmp_path, BEE, BUZZ)[0] == "bee"
    assert class_of(tmp_path, NICKER, BUZZ, asked=("horse",))[0] is None


def test_what_includes_a_class_alone_says_nothing(tmp_path: Path) -> None:
    found, labels = class_of(tmp_path, ANIMAL, PETS)
    assert found is None
    assert labels.unknown == {ANIMAL: 1, PETS: 1}


def test_a_label_of_two_classes_counts_for_the_one_that_is_asked_for(tmp_path: Path) -> None:
    assert class_of(tmp_path, ROARING_CATS)[0] is None
    assert class_of(tmp_path, ROARING_CATS, asked=("lion",))[0] == "lion"


def test_junk_rows_do_not_stop_audioset(tmp_path: Path) -> None:
    rows = (
        ("../../etc/x", "30.000", DOG),
        (VIDEO, "inf", DOG),
        (VIDEO, "30.000", ""),
        (VIDEO, "30.000", f" {DOG} , {DOG}"),
        (VIDEO, "30.000", DOG),
    )
    text = segments(*rows) + f"\n{VIDEO}\nYTID, start_seconds, end_seconds, positive_labels\n"
    write(tmp_path / "eval_segments.csv", text.replace("\n", "\r\n"))
    write(tmp_path / f"{VIDEO}.wav", b"")
    found, labels = audioset_of(tmp_path)
    assert [(c.path, c.refusal) for c in found] == [
        ("eval_segments.csv row 1", "row: '../../etc/x' is no YouTube id"),
        ("eval_segments.csv row 2", "row: 'inf' is no second of a video"),
        (f"{VIDEO}.wav", ""),
    ]
    assert labels.left_out["named twice"] == 1
    assert labels.unknown == {}


def test_a_file_of_which_tables_differ_is_not_taken_whichever_comes_first(tmp_path: Path) -> None:
    names = ("balanced_train_segments.csv", "eval_segments.csv")
    rows = [((VIDEO, "30.000", mids), ("_0PQM4-hqg1", "0.000", DOG)) for mids in (DOG, CAT)]
    for name in (f"{VIDEO}_30.wav", "_0PQM4-hqg1.wav"):
        write(tmp_path / name, b"")
    for order in (1, -1):
        for name, some in zip(names, rows[::order], strict=True):
            write(tmp_path / name, segments(*some))
        found, labels = audioset_of(tmp_path)
        assert accepted(found) == {"_0PQM4-hqg1.wav": "dog"}
        assert labels.left_out["named by rows that differ"] == 2
        assert labels.left_out["named twice"] == 1


def test_the_file_of_a_whole_video_is_not_taken_for_two_of_its_clips(tmp_path: Path) -> None:
    rows = ((VIDEO, "30.000", DOG), (VIDEO, "50.000", DOG))
    write(tmp_path / "eval_segments.csv", segments(*rows))
    write(tmp_path / f"{VIDEO}.wav", b"")
    found, labels = audioset_of(tmp_path)
    assert found == []
    assert labels.left_out["named by rows that differ"] == 2


def test_an_audioset_without_tables_or_ontology_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no balanced_train_segments\.csv or"):
        audioset_of(tmp_path)
    write(tmp_path / "eval_segments.csv", segments((VIDEO, "30.000", DOG)))
    # Nobody named one, so it is a thing to know of.
    found, labels = audioset_of(tmp_path)
    assert found == [] and labels.left_out["no file ontology.json"] == 1
    with pytest.raises(FileNotFoundError, match=r"ontology\.json does not exist"):
        audioset_of(tmp_path, ontology="ontology.json")
    for junk in ("", "[]", "[1]", '{"a": 1}', '[{"id": 1, "child_ids": ["a"]}]', "[" * 100_000):
        write(tmp_path / "ontology.json", junk)
        with pytest.raises(ValueError, match="is not AudioSet's ontology"):
            audioset_of(tmp_path)


def official_parents() -> dict[str, set[str]]:
    parents: dict[str, set[str]] = {}
    with (LISTS / "audioset_ontology.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for child in filter(None, row["child_ids"].split("|")):
                parents.setdefault(child, set()).add(row["mid"])
    return parents


@needs_lists
def test_no_kind_of_a_class_in_the_official_ontology_has_another_source(tmp_path: Path) -> None:
    parents = official_parents()
    rows: dict[str, list[str]] = {}
    for child, above in parents.items():
        for parent in above:
            rows.setdefault(parent, []).append(child)
    entries = [{"id": mid, "child_ids": below} for mid, below in rows.items()]
    write(tmp_path / "ontology.json", json.dumps(entries))
    stands_for = audioset.read_ontology(str(tmp_path / "ontology.json")).stands_for
    assert stands_for[NICKER] == HORSE
    # Growling, howl, bleat, buzz, hiss and cowbell.
    shared = {"/m/0ghcn6", "/m/07qf0zm", "/m/07q0h5t", BUZZ, "/m/07rjwbb", "/m/0239kh"}
    assert not shared & set(stands_for)
    assert not set(stands_for) & set(classes_by_label("audioset"))
