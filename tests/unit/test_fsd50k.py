"""FSD50K, laid out as published: classes, licences and authors of its clips."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from infra import media
from synth.sources import fsd50k
from synth.tables import Candidate
from synth.taxonomy import Labels, classes
from tests.made_media import tone

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT.parent / "shared" / "labels"
needs_lists = pytest.mark.skipif(
    not LISTS.is_dir(), reason="the publishers' lists are not beside the repository"
)

CC = "http://creativecommons.org"
BY_NC = f"{CC}/licenses/by-nc/3.0/"


def write(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def fsd50k_of(
    folder: Path,
    rows: dict[str, str],
    info: dict[str, object] | None = None,
    asked: tuple[str, ...] = (),
) -> tuple[list[Candidate], Labels]:
    """The dev split with ``rows`` of fname -> labels, each with its file; eval is empty."""
    about = {
        "title": "a.wav",
        "description": "b",
        "tags": ["c"],
        "license": BY_NC,
        "uploader": "someone",
    }
    for split, named in (("dev", rows), ("eval", {})):
        lines = [f'{name},"{labels}","/m/x","train"' for name, labels in named.items()]
        head = "fname,labels,mids,split" if split == "dev" else "fname,labels,mids"
        write(folder / f"FSD50K.ground_truth/{split}.csv", "\n".join([head, *lines]) + "\n")
        clips = {"1": about, **dict.fromkeys(named, about), **(info or {})}
        write(folder / f"FSD50K.metadata/{split}_clips_info_FSD50K.json", json.dumps(clips))
        for name in named:
            if name.isdigit():
                write(folder / f"FSD50K.{split}_audio/{name}.wav", b"")
    labels = Labels("fsd50k", classes=asked)
    return list(fsd50k.candidates(fsd50k.Fsd50kConfig(folder=str(folder)), labels)), labels


def test_an_fsd50k_clip_has_its_own_licence_and_author(tmp_path: Path) -> None:
    write(
        tmp_path / "FSD50K.ground_truth/dev.csv",
        'fname,labels,mids,split\n64760,"Electric_guitar,Guitar,Plucked_string_instrument,'
        'Musical_instrument,Music","/m/02sgy,/m/0342h,/m/0fx80y,/m/04szw,/m/04rlf",train\n'
        "16399,Dishes_and_pots_and_pans,/m/04brg2,val\n",
    )
    write(
        tmp_path / "FSD50K.ground_truth/eval.csv",
        'fname,labels,mids\n37199,"Bark,Dog,Domestic_animals_and_pets,Animal","/m/05tny_"\n'
        '37200,"Bark,Dog","/m/05tny_"\n',
    )
    sound = media.encode_wav(tone(440.0, seconds=0.1))
    for split, clip, url in (("dev", "64760", BY_NC), ("eval", "37199", f"{CC}/licenses/by/4.0/")):
        about = {"title": "", "description": "", "tags": [], "license": url, "uploader": split}
        write(
            tmp_path / f"FSD50K.metadata/{split}_clips_info_FSD50K.json", json.dumps({clip: about})
        )
        write(tmp_path / f"FSD50K.{split}_audio/{clip}.wav", sound)
    labels = Labels("fsd50k")
    found = list(fsd50k.candidates(fsd50k.Fsd50kConfig(folder=str(tmp_path)), labels))
    assert found == [
        Candidate(
            role="sound",
            source="fsd50k",
            root="fsd50k",
            path=f"FSD50K.{split}_audio/{clip}.wav",
            class_name=class_name,
            licence=licence,
            author=split,
            origin=f"freesound.org clip {clip}",
            recording=f"freesound.org clip {clip}",
        )
        for split, clip, class_name, licence in (
            ("dev", "64760", "guitar", "CC BY-NC 3.0"),
            ("eval", "37199", "dog", "CC BY 4.0"),
        )
    ]
    assert labels.left_out == {"no file": 1}
    assert labels.unknown["Dishes_and_pots_and_pans"] == 1
    assert labels.unknown["Animal"] == 1


def test_an_fsd50k_clip_is_of_its_most_specific_class(tmp_path: Path) -> None:
    rows = {
        "1": "Crow,Bird,Wild_animals,Animal",
        "2": "Male_speech_and_man_speaking,Speech,Human_voice",
        "3": "Crow,Gull_and_seagull,Bird,Wild_animals,Animal",
        "4": "Bird,Dog,Domestic_animals_and_pets,Wild_animals,Animal",
        "5": "Wild_animals,Animal",
    }
    found, labels = fsd50k_of(tmp_path, rows)
    assert [c.class_name for c in found] == ["crow", "man"]
    assert labels.left_out == {"several classes": 2}
    assert fsd50k_of(tmp_path, rows, asked=("bird",))[0] == []


@needs_lists
def test_fsd50k_knows_every_label_that_includes_one_of_another_class() -> None:
    with (LISTS / "fsd50k_vocabulary.csv").open(newline="", encoding="utf-8") as lines:
        mids = {row["name"]: row["mid"] for row in csv.DictReader(lines)}
    parents: dict[str, set[str]] = {}
    with (LISTS / "audioset_ontology.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for child in filter(None, row["child_ids"].split("|")):
                parents.setdefault(child, set()).add(row["mid"])
    of_label = {label: row.name for row in classes() for label in row.labels["fsd50k"]}

    def above(mid: str) -> set[str]:
        return {mid}.union(*(above(parent) for parent in parents.get(mid, ())))

    broader = {
        label: tuple(
            sorted(
                other
                for other in of_label
                if mids[other] in above(mids[label]) and of_label[other] != of_label[label]
            )
        )
        for label in of_label
    }
    assert {label: names for label, names in broader.items() if names} == fsd50k.BROADER


def test_a_clip_without_a_number_or_a_licence_is_refused(tmp_path: Path) -> None:
    rows = dict.fromkeys(("7", "8", "9", "../../x"), "Bark,Dog")
    info: dict[str, object] = {"7": {"title": "no more"}, "8": {"license": 5, "uploader": None}}
    found, labels = fsd50k_of(tmp_path, rows, info)
    assert [(c.path, c.refusal, c.licence) for c in found if c.refusal] == [
        (
            f"FSD50K.dev_audio/{clip}.wav",
            "licence: FSD50K.metadata/dev_clips_info_FSD50K.json states none",
            "not stated",
        )
        for clip in (7, 8)
    ] + [
        (
            "FSD50K.ground_truth/dev.csv row 4",
            "row: '../../x' is no number of a Freesound clip",
            "CC BY-NC 3.0",
        )
    ]
    assert [c.path for c in found if not c.refusal] == ["FSD50K.dev_audio/9.wav"]
    assert labels.left_out == {}


def test_clips_info_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    fsd50k_of(tmp_path, {"9": "Bark,Dog"})
    source = fsd50k.Fsd50kConfig(folder=str(tmp_path))
    for junk in ("", "[]", "{}", '{"9": 1}', "[" * 100_000):
        write(tmp_path / "FSD50K.metadata/dev_clips_info_FSD50K.json", junk)
        with pytest.raises(ValueError, match="states no licence of a clip"):
            list(fsd50k.candidates(source, Labels("fsd50k")))
    (tmp_path / "FSD50K.metadata/dev_clips_info_FSD50K.json").unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(fsd50k.candidates(source, Labels("fsd50k")))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0"),
        ("http://creativecommons.org/licenses/by/3.0/", "CC BY 3.0"),
        ("https://creativecommons.org/licenses/by/4.0/", "CC BY 4.0"),
        ("http://creativecommons.org/licenses/by-nc/3.0/", "CC BY-NC 3.0"),
        ("http://creativecommons.org/licenses/sampling+/1.0/", "CC Sampling+ 1.0"),
        ("http://example.org/licence", "http://example.org/licence"),
    ],
)
def test_a_licence_is_named_in_short_where_it_is_known(url: str, name: str) -> None:
    assert fsd50k.licence_name(url) == name
