"""The table of Debian media, upstream's naming rules, and folders that are not whole."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from synth.sources import debian_media

STAMPS = "usr/share/tuxpaint/stamps"


def test_the_table_is_complete_and_names_a_licence_for_every_file() -> None:
    rows = debian_media.read_table()
    assert len({row.path for row in rows}) == len(rows)
    assert all(row.licence and row.licence != "?" for row in rows)
    assert {row.source for row in rows} == set(debian_media.PACKAGES)
    assert Counter(row.role for row in rows) == {
        "object": 111, "sound": 194, "silent": 224, "background": 78, "photo": 57,
    }  # fmt: skip
    pictured = {row.class_name for row in rows if row.role == "object"}
    heard = {row.class_name for row in rows if row.role == "sound"}
    assert len(pictured & heard) == 78
    assert heard - pictured == {"nandou", "iguana", "giraffe", "wombat"}
    assert {r.collection for r in rows if r.role == "background"} == {"monuments", "renewable"}


def test_the_table_lists_the_files_that_measurement_must_refuse() -> None:
    heard = {Path(row.path).stem for row in debian_media.read_table() if row.role == "sound"}
    assert heard >= {"nandou", "iguana", "giraffe", "wombat"}  # silent
    assert heard >= {"beaver", "badger", "mountaingoat", "ram"}  # the same sound under two names


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("animals/birds/crow_desc.ogg", "speech"),
        ("animals/birds/crow_desc_fr.ogg", "speech"),
        ("animals/birds/crow_desc_pt_BR.wav", "speech"),
        ("symbols/math/7_en_GB.ogg", "speech"),
        ("seasonal/hanukkah/dreydl-nun.ogg", "speech"),
        ("space/apollo_lander.ogg", "speech"),
        ("household/vacuum_cleaner.svg", "drawing"),
        ("animals/birds/cartoon/owl.png", "drawing"),
        ("animals/insects/bee.png", "drawing"),
        ("animals/mammals/hedgehog.png", "drawing"),
        ("seasonal/halloween/ghost.png", "drawing"),
        ("animals/birds/crow.ogg", ""),
        ("animals/birds/crow.png", ""),
        ("animals/mammals/giraffe.ogg", ""),
        ("animals/birds/crow.txt", ""),
    ],
)
def test_speech_and_drawings_are_told_by_upstreams_names(path: str, kind: str) -> None:
    assert debian_media.naming_rule(f"{STAMPS}/{path}").split(":")[0] == kind


def made_folder(folder: Path, paths: list[str]) -> Path:
    folder.mkdir()
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"content")
    marker = {"packages": {}, "table": debian_media._table_digest()}
    (folder / debian_media.MARKER).write_text(json.dumps(marker))
    return folder


def test_a_folder_yields_what_it_has_and_says_what_is_missing(tmp_path: Path) -> None:
    crow = f"{STAMPS}/animals/birds/crow.png"
    grave = f"{STAMPS}/seasonal/halloween/grave-a.png"
    speech = f"{STAMPS}/animals/birds/crow_desc.ogg"
    assert crow in {row.path for row in debian_media.read_table()}
    folder = made_folder(tmp_path / "media", [crow, grave, speech])
    offered = {row.path: row for row in debian_media.candidates(folder)}
    assert offered[crow].refusal == "" and offered[crow].class_name == "crow"
    assert offered[grave].refusal == ""  # a photograph, which the table knows better than the rule
    assert offered[speech].refusal.startswith("speech:")
    missing = [row for row in offered.values() if row.refusal.startswith("missing:")]
    assert len(missing) == len(debian_media.read_table()) - 2


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    path = debian_media.read_table()[0].path
    folder = made_folder(tmp_path / "media", [])
    (tmp_path / "secret").write_text("secret")
    (folder / path).parent.mkdir(parents=True)
    (folder / path).symlink_to(tmp_path / "secret")
    offered = {row.path: row for row in debian_media.candidates(folder)}
    assert offered[path].refusal.startswith("missing:")


def test_a_half_made_folder_is_not_taken_for_whole(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "media", [debian_media.read_table()[0].path])
    assert debian_media.is_whole(folder)
    for damage in ("", "{", json.dumps({"table": "of another version"})):
        (folder / debian_media.MARKER).write_text(damage)
        with pytest.raises(ValueError, match="no whole folder"):
            list(debian_media.candidates(folder))
    (folder / debian_media.MARKER).unlink()
    assert not debian_media.is_whole(folder)


def test_without_apt_one_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(ValueError, match=r"apt-get is not on this machine.*--media\.folder"):
        debian_media.fetch(tmp_path)
    assert not (tmp_path / "media").exists()


def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "W: hm\nE: Could not resolve host\n")

    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(ValueError, match=r"Could not resolve host.*--media\.folder") as caught:
        debian_media.fetch(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "debs").mkdir()
    with pytest.raises(ValueError, match="package gcompris-qt-data is missing"):
        debian_media.unpack(tmp_path / "debs", tmp_path / "cache" / "media")
    assert list((tmp_path / "cache").iterdir()) == []
