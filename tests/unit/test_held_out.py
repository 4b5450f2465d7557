"""The contamination guard against AVSBench's real tables and VGGSound's real list of videos."""

from __future__ import annotations

import csv
import gzip
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from synth import held_out
from synth.held_out import guard

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT.parent / "shared" / "labels"
S4, MS3, AVSS = (LISTS / f"{n}.csv" for n in ("s4_meta_data", "ms3_meta_data", "avss_metadata"))
TABLES = [str(S4), str(MS3), str(AVSS)]
COLUMN = {S4: "name", MS3: "video_id", AVSS: "vid"}

needs_lists = pytest.mark.skipif(
    not LISTS.is_dir(), reason="AVSBench's tables are not beside the repository"
)


def videos(table: Path, *splits: str) -> set[str]:
    with table.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] in splits]
    # A video of MS3 is an id, or an id and a number; one clip's name is no id at all.
    return {row[COLUMN[table]][:11] for row in rows} - {"baby_dog_2_"}


def val_and_test() -> set[str]:
    return set((LISTS / "avsbench_valtest_youtube_ids.txt").read_text().split())


def refused(level: str, given: set[str]) -> set[str]:
    guarded = guard(level)
    return {video for video in given if guarded.reason(video)}


@needs_lists
def test_the_whole_s4_test_set_is_refused_and_passes_when_off() -> None:
    test = videos(S4, "test")
    assert len(test) == 740
    assert refused("val_test", test) == test
    assert refused("zero_shot", test) == test
    assert refused("none", test) == set()


@needs_lists
def test_s4_train_passes_at_val_test_and_is_refused_at_zero_shot() -> None:
    train = videos(S4, "train")
    # Seven videos of S4's train split are in AVSS's val or test split too.
    assert len(train & val_and_test()) == 7
    assert refused("val_test", train) == train & val_and_test()
    assert refused("zero_shot", train) == train


@needs_lists
def test_every_val_and_test_video_is_refused_and_no_other() -> None:
    listed = val_and_test()
    assert len(listed) == 2164
    seen = videos(S4, "train", "val", "test") | videos(AVSS, "train", "val", "test")
    assert refused("val_test", seen | videos(MS3, "train", "val", "test")) == listed


def test_the_list_has_as_many_videos_of_each_split_as_avsbench() -> None:
    splits = guard("zero_shot").splits
    assert Counter(split for found in splits.values() for split in found) == {
        "s4_train": 3452,
        "s4_val": 740,
        "s4_test": 740,
        "ms3_val": 55,
        "ms3_test": 54,
        "avss_val": 1031,
        "avss_test": 1148,
    }
    assert len(splits) == 5609
    assert len(guard("val_test").splits) == 2164


@needs_lists
def test_the_list_is_made_from_the_tables_byte_for_byte() -> None:
    shipped = (ROOT / "synth" / "held_out.csv").read_bytes()
    assert held_out.list_of(TABLES) == shipped
    assert held_out.list_of(TABLES[::-1]) == shipped


@needs_lists
def test_the_guard_drops_the_known_part_of_vggsound() -> None:
    with gzip.open(LISTS / "vggsound_union.csv.gz", "rt", newline="") as lines:
        segments = [row["youtube_id"] for row in csv.DictReader(lines)]
    guarded = guard("val_test")
    dropped = [video for video in segments if guarded.reason(video)]
    assert (len(set(dropped)), len(dropped)) == (1525, 1809)
    # Exactly these: no digest of another of the 197,895 segments is the same by chance.
    assert set(dropped) == set(segments) & val_and_test()


@needs_lists
def test_no_plain_id_stands_in_the_repository() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know the repository's files")
    ids = set().union(*(videos(table, "train", "val", "test") for table in (S4, MS3, AVSS)))
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in names.split("\0") if name]
    assert ROOT / "synth" / "held_out.py" in files
    found = {path.name: ids_in(path.read_bytes(), ids) for path in files if path.is_file()}
    assert {name: some for name, some in found.items() if some} == {}
    # The search itself sees an id, whatever stands around it.
    assert ids_in(S4.read_bytes(), ids) == videos(S4, "train", "val", "test")
    video = min(ids)
    assert ids_in(f"s4-test-{video}_5".encode(), ids) == {video}


def ids_in(data: bytes, ids: set[str]) -> set[str]:
    words = re.findall(r"[A-Za-z0-9_-]{11,}", data.decode("latin-1"))
    return {word[k : k + 11] for word in words for k in range(len(word) - 10)} & ids


def test_a_video_in_no_split_and_a_sound_from_no_video_pass() -> None:
    for level in held_out.LEVELS:
        assert guard(level).reason("not_in_any1") == ""
        assert guard(level).reason("") == ""


def test_a_name_that_is_no_video_id_is_held_out() -> None:
    for name in ("not_in_any1_30", "short", "with space1", "not_in_any1\n", "é" * 11):
        assert guard("val_test").reason(name).startswith("held out: ")
        assert guard("none").reason(name) == ""


@needs_lists
def test_the_reason_names_every_split_with_s4_test_first() -> None:
    only_s4 = min(videos(S4, "test") - videos(MS3, "val", "test"))
    assert guard("val_test").reason(only_s4) == (
        "held out: the video is in AVSBench's s4_test, avss_test"
    )
    only_v2 = min(videos(AVSS, "val") - videos(S4, "val") - videos(MS3, "val"))
    assert "avss_val" in guard("val_test").reason(only_v2)


OWN_TABLES = {
    "s4": "name,start,category,split\r\n"
    "-made_up_s1,0,dog,test\r\n"
    "name,start,category,split\r\n"
    "\r\n"
    "--made_up_2,3,dog,val\r\n"
    "made_up_s_3,6,cat,train\r\n",
    "ms3": "video_id,split\n-made_up_m1_3,test\nmade_up_m_2,val\nbaby_cat_2_1,test\n",
    "avss": "vid,uid,s_min,s_sec,a_obj,split,label\n"
    "-made_up_a1,-made_up_a1_70000_80000,1,10,h orse,val,v2\n"
    "made_up_a_2_0,made_up_a_2_0,,,dog_off-the-screen,test,v1m\n",
}


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    for subset, text in OWN_TABLES.items():
        (tmp_path / f"{subset}.csv").write_text(text, encoding="utf-8-sig", newline="")
    return {subset: str(tmp_path / f"{subset}.csv") for subset in OWN_TABLES}


def test_videos_of_own_tables_are_held_out_too(own: dict[str, str]) -> None:
    guarded = guard("val_test", [own["s4"], own["ms3"], "file://" + own["avss"]])
    added = guarded.splits.keys() - guard("val_test").splits.keys()
    assert len(added) == 6
    for video, split in {
        "-made_up_s1": "s4_test",
        "--made_up_2": "s4_val",
        "-made_up_m1": "ms3_test",
        "made_up_m_2": "ms3_val",
        "-made_up_a1": "avss_val",
        "made_up_a_2": "avss_test",
    }.items():
        assert guarded.reason(video) == f"held out: the video is in AVSBench's {split}"
    assert guarded.reason("made_up_s_3") == ""


def test_the_fingerprint_tells_of_a_table_that_was_corrected_in_its_place(
    own: dict[str, str],
) -> None:
    before = guard("val_test", [own["s4"]]).fingerprint
    assert before == guard("val_test", [own["s4"]]).fingerprint
    assert before != guard("val_test").fingerprint
    table = Path(own["s4"])
    table.write_text(table.read_text("utf-8-sig").replace("-made_up_s1", "-made_up_s9"))
    assert guard("val_test", [own["s4"]]).fingerprint != before


def test_an_own_s4_table_holds_its_train_split_out_at_zero_shot_alone(own: dict[str, str]) -> None:
    assert guard("zero_shot", [own["s4"]]).reason("made_up_s_3").endswith("s4_train")
    assert guard("val_test", [own["s4"]]).reason("made_up_s_3") == ""
    assert guard("none", [own["s4"]]).reason("-made_up_s1") == ""


@needs_lists
def test_the_real_tables_add_nothing_to_the_list() -> None:
    for level in held_out.LEVELS:
        assert guard(level, TABLES) == guard(level)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"youtube_id,start\nnot_in_any1,3\n", "youtube_id, start.*name, category, split"),
        (b"", "needs those of one subset.*video_id, split.*vid, uid, split"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "no csv table"),
        (b"video_id,split\n" + b"a" * 200_000 + b",test\n", "no csv table"),
        (b"video_id,split\nnot_in_any1,valid\n", "row 2 .* split 'valid'.*train, val, test"),
        (b"video_id,split\nnot_in_any1\n", "row 2 .* split ''"),
        (b"name,start,category,split\n\n", "no clips"),
    ],
)
def test_a_table_that_is_none_of_avsbenchs_is_an_error(
    tmp_path: Path, data: bytes, message: str
) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        guard("val_test", [str(table)])
    assert str(table) in str(caught.value)


def test_a_missing_table_and_an_unknown_level_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        guard("val_test", [str(tmp_path / "none.csv")])
    with pytest.raises(ValueError, match="'test' is not known: use one of none, val_test"):
        guard("test")
