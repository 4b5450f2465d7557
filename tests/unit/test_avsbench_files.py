"""The files of an AVSBench tree: members of zip files, and files that cannot be read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.corpus import Refused
from synth import avsbench
from synth.avsbench import files
from tests import made_avsbench as made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made.write_tree(tmp_path / "tree", made.small())
    return tmp_path / "tree"


@pytest.fixture
def packed(tree: Path, tmp_path: Path) -> Path:
    made.pack(tree, tmp_path / "AVSBench.zip", prefix="AVSBench/")
    return tmp_path / "AVSBench.zip"


def refusals(tree: Path) -> list[tuple[str, str]]:
    """Which clips of s4 are refused as they are read, and why."""
    rows, lacking = avsbench.clips(avsbench.find(str(tree), "s4"))
    assert len(rows) == 4 and not lacking
    return [(row.id, row.reason) for row in avsbench.read_clips(rows) if isinstance(row, Refused)]


def test_a_member_that_is_damaged_or_lies_about_its_size_refuses_the_clip(packed: Path) -> None:
    row = avsbench.clips(avsbench.find(str(packed), "s4"))[0][0]
    whole = row.frames[0]
    assert whole is not None and whole.packed is not None
    for lie in (
        whole._replace(size=whole.size - 1),
        whole._replace(size=whole.size + 1),
        whole._replace(packed=whole.packed._replace(crc=0)),
        whole._replace(packed=whole.packed._replace(method=zipfile.ZIP_DEFLATED)),
        whole._replace(packed=whole.packed._replace(offset=whole.packed.offset + 1)),
    ):
        with pytest.raises(ValueError, match=r"unreadable: .* is damaged in .*AVSBench\.zip"):
            files.read(lie)
    with pytest.raises(ValueError, match="larger than"):
        files.read(whole._replace(size=files.MAX_FILE_BYTES + 1))


@pytest.mark.parametrize("how", ["bzip2", "lzma", "encrypted"])
def test_a_member_that_is_packed_in_another_way_refuses_its_clip(
    tree: Path, tmp_path: Path, how: str
) -> None:
    frame = "s4_data/visual_frames/test/dog_barking/Def-ghi0123/Def-ghi0123_3.png"
    data = (tree / "Single-source" / frame).read_bytes()
    (tree / "Single-source" / frame).unlink()
    packed = tmp_path / "AVSBench.zip"
    made.pack(tree, packed)
    method = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(how, zipfile.ZIP_STORED)
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr(f"Single-source/{frame}", data, method)
        if how == "encrypted":
            file.getinfo(f"Single-source/{frame}").flag_bits |= 1
    reason = f"unreadable: {frame} is encrypted in {packed}, or packed by another method than "
    assert refusals(packed) == [("s4/test/Def-ghi0123", f"{reason}deflate: unpack it to a folder")]


def test_a_file_that_may_not_be_read_refuses_its_clip_by_name(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = "s4_data/audio_wav/test/dog_barking/Def-ghi0123.wav"
    reads = storage.read_bytes

    # Root, whom tests may run as, reads what rights forbid.
    def forbidden(uri: str, **how: Any) -> bytes:
        if uri.endswith(sound):
            raise PermissionError(uri)
        return reads(uri, **how)

    monkeypatch.setattr(storage, "read_bytes", forbidden)
    reason = f"unreadable: {sound} may not be read by this user"
    assert refusals(tree) == [("s4/test/Def-ghi0123", reason)]
    # On object storage it is the account that may not read, and would be refused every clip.
    with pytest.raises(PermissionError):
        files.read(files.File(f"s3://bucket/{sound}", sound, 1))


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked_further(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("s4_data/gt_masks/x.png", bytes(10_000_000))
    bomb = next(files.list_zip(str(path)))
    with pytest.raises(ValueError, match="is damaged"):
        files.read(bomb._replace(size=100))


def test_members_outside_the_zip_and_links_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tricks.zip"
    link = zipfile.ZipInfo("s4_data/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as file:
        for name in ("/etc/passwd", "../up.png", "a/../../up.png", "c\\..\\x.png", "fine/-x.png"):
            file.writestr(name, b"x")
        file.writestr(link, b"/etc/passwd")
    assert [member.path for member in files.list_zip(str(path))] == ["fine/-x.png"]


def test_a_zip_that_was_cut_short_is_named(packed: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"AVSBench\.zip is no zip file or cut short"):
        avsbench.find(str(packed), "s4")
