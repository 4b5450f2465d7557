"""AVS-Synthetic's table, folders and pickle, as published."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra import media
from synth.held_out import guard
from synth.looking import build_catalog
from synth.pools import select
from synth.recipe import Recipe
from synth.sources import Offer
from synth.sources.avs_synthetic import AvsSyntheticConfig, candidates
from synth.tables import Annotation, Candidate
from synth.taxonomy import Labels
from tests.made_sources import check_masks, write_avs_synthetic

HEADER = "inst_id,img_id,width,height,cls_name,cls_id,dataset,split,audio_name"
# Seven objects in five photographs; rows of the train split state no sound.
ROWS = [
    "lvis_7001,000000123456,640,480,dog,3,lvis,train,",
    "lvis_7002,000000123456,640,480,computer_keyboard,9,lvis,train,",
    "0a1b_m01yrx_9a04,677c122b0eaa5d16,1024,768,Cat,4,openimages,validate,aaaaaaaaaaa_000030",
    "lvis_7003,000000000042,640,480,bus_(vehicle),5,lvis,test,-b_bbbbbbbb_30",
    "lvis_7004,000000000042,640,480,Computer Keyboard,9,lvis,test,-b_bbbbbbbb_30",
    "lvis_7005,000000000043,640,480,train,6,lvis,train,",
    "lvis_7006,000000000044,640,480,waffle_iron,8,lvis,train,",
]
LISTS = {
    3: ["aaaaaaaaaab_000010", "ccccccccccc_000020"],
    4: ["aaaaaaaaaaa_000030"],
    8: ["ddddddddddd_000040"],
    77: ["eeeeeeeeeee_000050"],
}


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_tree(folder: Path, rows: list[str], *, header: str = HEADER, lists: Any = LISTS) -> None:
    write(folder / "annotations.csv", "\n".join([header] * bool(header) + rows) + "\n")
    for line in ROWS:
        inst_id, img_id, *_ = line.split(",")
        write(folder / "masks" / f"{inst_id}.png", media.encode_png(np.eye(24, dtype=np.bool_)))
        image = media.encode_jpeg(np.full((48, 64, 3), 90, np.uint8))
        write(folder / "images" / f"{img_id}.jpg", image)
    names = {name for names in LISTS.values() for name in names} | {"-b_bbbbbbbb_30"}
    for name in names:
        write(folder / "audios" / f"{name}.wav", media.encode_wav(np.full(1600, 0.1, np.float32)))
    if lists is not None:
        data = lists if isinstance(lists, bytes) else pickle.dumps(lists)
        write(folder / "category_for_vggsound_audios.pkl", data)


def read(folder: Path, labels: Labels | None = None, **options: Any) -> list[Candidate]:
    source = AvsSyntheticConfig(folder=str(folder), **options)
    return list(candidates(source, labels or Labels("vggsound")))


def objects(found: list[Candidate]) -> dict[str, str]:
    return {a.id: a.class_name for c in found for a in c.annotations}


def sounds(found: list[Candidate]) -> dict[str, str]:
    return {c.path: c.class_name for c in found if c.role == "sound" and not c.refusal}


def test_objects_are_gathered_by_photograph_and_sounds_know_their_video(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    labels = Labels("vggsound")
    found = read(tmp_path, labels)
    assert (
        Candidate(
            role="annotated",
            source="avs_synthetic",
            root="avs_synthetic",
            path="images/000000123456.jpg",
            licence="not stated",
            origin="lvis 000000123456",
            annotations=(
                Annotation(id="lvis_7001", class_name="dog", mask_path="masks/lvis_7001.png"),
                Annotation(
                    id="lvis_7002", class_name="computer_keyboard", mask_path="masks/lvis_7002.png"
                ),
            ),
            partial=("computer_keyboard", "dog"),
        )
        in found
    )
    assert (
        Candidate(
            role="sound",
            source="avs_synthetic",
            root="avs_synthetic",
            path="audios/ccccccccccc_000020.wav",
            class_name="dog",
            licence="YouTube uploaders' terms; annotations CC BY 4.0",
            origin="https://www.youtube.com/watch?v=ccccccccccc",
            video="ccccccccccc",
        )
        in found
    )
    assert {c.licence for c in found if "677c122b0eaa5d16" in c.path} == {"CC BY 2.0"}
    assert labels.unknown == {"waffle_iron": 1}
    assert labels.left_out == {"sound of an unknown class number": 1}


def test_names_are_found_whatever_their_case_underscores_or_source(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    assert objects(read(tmp_path)) == {
        "lvis_7001": "dog",
        "lvis_7002": "computer_keyboard",
        "0a1b_m01yrx_9a04": "cat",
        "lvis_7003": "bus",
        "lvis_7004": "computer_keyboard",
        "lvis_7005": "train",
    }


def test_only_classes_and_splits_asked_for_are_read(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    found = read(tmp_path, Labels("lvis", classes=["dog", "cat"]))
    assert objects(found) == {"lvis_7001": "dog", "0a1b_m01yrx_9a04": "cat"}
    found = read(tmp_path, splits=("validate",))
    assert objects(found) == {"0a1b_m01yrx_9a04": "cat"}
    assert sounds(found) == {"audios/aaaaaaaaaaa_000030.wav": "cat"}
    with pytest.raises(ValueError, match="'val' is no split"):
        read(tmp_path, splits=("val",))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "inst_id,img_id,a,b,cls_name,cls_id,dataset,subset,audio_name",
        "instance,img_id,a,b,category,id,from,split,sound",
    ],
)
def test_columns_are_found_by_position_where_no_header_names_them(
    tmp_path: Path, header: str
) -> None:
    write_tree(tmp_path / "as_published", ROWS)
    write_tree(tmp_path / "other", ROWS, header=header)
    assert read(tmp_path / "other") == read(tmp_path / "as_published")


def test_columns_in_another_order_are_found_by_name(tmp_path: Path) -> None:
    write_tree(tmp_path / "as_published", ROWS)
    swapped = [",".join(reversed(line.split(","))) for line in (HEADER, *ROWS)]
    write_tree(tmp_path / "other", swapped[1:], header=swapped[0])
    assert read(tmp_path / "other") == read(tmp_path / "as_published")


def test_the_split_is_found_in_any_unnamed_column(tmp_path: Path) -> None:
    rows = [line.split(",") for line in ROWS]
    moved = [",".join([*r[:2], r[7], r[3], *r[4:7], "0.5", r[8]]) for r in rows]
    write_tree(tmp_path, moved, header="")
    assert set(objects(read(tmp_path, splits=("train",)))) == {
        *("lvis_7001", "lvis_7002", "lvis_7005"),
    }


def test_rows_that_cannot_be_used_are_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    bad = [
        HEADER,
        "",
        "../../secret,000000123456,1,1,dog,3,lvis,train,",
        "lvis_1,../annotations,1,1,dog,3,lvis,train,",
        "lvis_2,000000123456,1,1,,3,lvis,train,",
        "lvis_3,000000123456",
        'lvis_4,000000123456,1,1,"waffle, hot",x,lvis,train,',
        "lvis_7001,000000123456,1,1,dog,3,lvis,test,../../secret",
    ]
    write_tree(tmp_path, [*bad, *ROWS])
    labels = Labels("vggsound")
    found = read(tmp_path, labels)
    refused = [c for c in found if c.refusal]
    assert [c.path for c in refused if c.role == "annotated"] == [
        f"annotations.csv:{line}" for line in (4, 5, 6, 7)
    ]
    kinds = [c.refusal.split(":")[0] for c in refused]
    assert kinds == ["path", "path", "row", "row", "class", "path"]
    assert "'../../secret'" in refused[5].refusal and refused[5].role == "sound"
    assert all(c.licence for c in refused)
    assert len(objects(found)) == 6
    assert labels.unknown == {"waffle_iron": 1, "waffle, hot": 1}


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS, lists=None)
    (tmp_path / "images" / "677c122b0eaa5d16.jpg").unlink()
    (tmp_path / "masks" / "lvis_7002.png").unlink()
    (tmp_path / "masks" / "lvis_7005.png").unlink()
    (tmp_path / "audios" / "aaaaaaaaaaa_000030.wav").unlink()
    labels = Labels("vggsound")
    found = read(tmp_path, labels)
    assert set(objects(found)) == {"lvis_7001", "lvis_7003", "lvis_7004"}
    assert labels.left_out == {
        "no file category_for_vggsound_audios.pkl": 1,
        "no image file": 1,
        "no mask file": 2,
        "no sound file": 1,
    }


def test_a_sound_given_for_two_classes_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    (refused,) = [c for c in read(tmp_path) if c.refusal]
    assert refused.path == "audios/-b_bbbbbbbb_30.wav" and refused.video == "-b_bbbbbbbb"
    assert refused.refusal == "class: it is given for bus and computer_keyboard"


def sound_named(folder: Path, name: str) -> Candidate:
    write_tree(folder, ROWS, lists={3: [name]})
    write(folder / "audios" / f"{name}.wav", media.encode_wav(np.full(800, 0.1, np.float32)))
    (found,) = [c for c in read(folder) if c.path == f"audios/{name}.wav"]
    assert (found.class_name, found.refusal) == ("dog", "")
    return found


@pytest.mark.parametrize(
    "rest", ["", "_30", "-30", "_000030", "_30000_40000", "_30.5", "_000030_seg", "-30-40", "_seg"]
)
def test_a_sound_knows_its_video_however_the_clip_is_named(tmp_path: Path, rest: str) -> None:
    found = sound_named(tmp_path, f"-_0aaaaaaab{rest}")
    assert found.video == "-_0aaaaaaab"
    assert found.origin == "https://www.youtube.com/watch?v=-_0aaaaaaab"
    # As AVSBench's own table has it: the guard is not blind to any of these names.
    table = tmp_path / "s4_meta_data.csv"
    write(table, "name,start,category,split\n-_0aaaaaaab,0,dog_barking,test\n")
    assert guard("val_test", [str(table)]).reason(found.video).endswith("s4_test")


@pytest.mark.parametrize("name", ["bark_07", "Y-_0aaaaaaab", "-_0aaaaaaab_x", "dog_-_0aaaaaaab_30"])
def test_a_sound_whose_name_tells_no_video_is_held_out(tmp_path: Path, name: str) -> None:
    found = sound_named(tmp_path, name)
    assert found.origin == f"VGGSound {name}"
    assert guard("val_test").reason(found.video).startswith("held out: ")
    assert guard("none").reason(found.video) == ""


def test_rows_that_differ_are_none_of_them_taken_whichever_comes_first(tmp_path: Path) -> None:
    differing = [
        "lvis_7001,000000123456,640,480,cat,4,lvis,train,",  # another class
        "lvis_7005,000000000044,640,480,train,6,lvis,train,",  # another photograph
        "lvis_7003,000000000042,640,480,bus,5,lvis,test,",  # the same
        "lvis_7004,000000000042,640,480,Computer Keyboard,9,openimages,test,",  # another dataset
    ]
    found = []
    for number, rows in enumerate(([*ROWS, *differing], [*differing, *ROWS][::-1])):
        write_tree(tmp_path / str(number), rows)
        labels = Labels("vggsound")
        found.append(read(tmp_path / str(number), labels))
        assert set(objects(found[-1])) == {
            "lvis_7002",
            "0a1b_m01yrx_9a04",
            "lvis_7003",
            "lvis_7004",
        }
        assert labels.left_out["object of which rows differ"] == 4
        assert labels.left_out["dataset of which rows differ"] == 1
        (street,) = [c for c in found[-1] if c.path == "images/000000000042.jpg"]
        assert (street.licence, street.origin) == ("not stated", "000000000042")
    assert found[0] == found[1]


def test_masks_of_a_catalog_are_those_that_were_drawn_and_lvis_states_no_licence(
    tmp_path: Path,
) -> None:
    source, drawn = write_avs_synthetic(tmp_path)
    offer = Offer(None, {"avs_synthetic": source})
    catalog = build_catalog(offer.roots, offer)
    assert list(catalog.refused) == []
    check_masks(catalog, drawn)
    assert len(select(catalog, Recipe()).catalog.objects) == len(drawn)
    stated = select(catalog, Recipe(allow_unstated=False)).catalog.objects
    assert set(stated.texts("id")) == {ident for ident in drawn if "openimages" in ident}


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_asks_for_code_runs_nothing_and_is_refused(
    tmp_path: Path, protocol: int
) -> None:
    mark = tmp_path / "owned"
    exploit = pickle.dumps({3: ["a"], 4: Exploit(mark)}, protocol=protocol)
    write_tree(tmp_path, ROWS, lists=exploit)
    refused, *rest = read(tmp_path)
    assert refused.uri == "avs_synthetic:category_for_vggsound_audios.pkl"
    assert refused.refusal == "unreadable: it asks for code (posix.system)"
    assert rest == read(tmp_path, sound_lists="")
    assert not mark.exists()
    pickle.loads(exploit)  # it does work where it is let
    assert mark.exists()


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        (pickle.dumps({np.int64(3): ["a"]}), "asks for code"),
        (pickle.dumps({3: [b"a"]}), "something else than lists"),
        (pickle.dumps({"dog": ["a"]}), "something else than lists"),
        (pickle.dumps({3: "dog"}), "something else than lists"),
        (pickle.dumps([["a"]]), "something else than lists"),
        (b"cos\x1b\nsystem\n.", r"it asks for code (os\x1b.system)"),
        (pickle.dumps(LISTS)[:40], "exhausted"),
        (b"", ""),
        (b"no pickle at all", ""),
        # A memo of four thousand million slots, and a bytearray of as many gigabytes.
        (b"\x80\x04}r" + struct.pack("<I", 0xFFFFFFFE) + b".", "it is damaged (LONG_BINPUT"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".", "bytes in a bytearray8"),
        # One list under many numbers: a few bytes each, and all of its names.
        (pickle.dumps(dict.fromkeys(range(1_000), ["a"] * 1_000)), "over and over"),
    ],
)
def test_a_pickle_that_is_no_list_of_sounds_is_refused_and_the_rest_is_read(
    tmp_path: Path, lists: bytes, words: str
) -> None:
    write_tree(tmp_path, ROWS, lists=lists)
    refused, *rest = read(tmp_path)
    assert refused.path == "category_for_vggsound_audios.pkl"
    assert refused.refusal.startswith("unreadable: ") and words in refused.refusal
    assert refused.refusal.isprintable() and str(tmp_path) not in refused.refusal
    assert sounds(rest) == {"audios/aaaaaaaaaaa_000030.wav": "cat"}
    assert rest == read(tmp_path, sound_lists="")


def test_another_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_tree(tmp_path, ["a,b,c,d,e,f,g,h,i"])
    with pytest.raises(ValueError, match=r"annotations\.csv is no table of AVS-Synthetic"):
        read(tmp_path)
    (tmp_path / "annotations.csv").write_bytes(b"\x89PNG\0")
    with pytest.raises(ValueError, match=r"annotations\.csv line 1"):
        read(tmp_path)
