"""Paths, ``file://`` and ``s3://`` mean one thing each, and writes are whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import botocore.exceptions
import pytest

from infra import storage


def test_a_path_and_its_file_uri_are_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a/b") == f"{tmp_path}/a/b"
    assert storage.normalise(f"file://{tmp_path}/a") == storage.normalise(tmp_path / "a")
    assert storage.normalise("s3://bucket/a/") == "s3://bucket/a"
    storage.write_bytes(f"file://{tmp_path}/x", b"1")
    assert storage.read_bytes("x") == b"1"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/x", "'gs://bucket/x' is no URI this can read"),
        ("https://host/x", "'https://host/x' is no URI this can read"),
        ("s3://", "'s3://' names no bucket"),
        ("", "an empty path"),
    ],
)
def test_a_wrong_uri_is_refused_by_name(uri: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        storage.read_bytes(uri)


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_no_name_leads_out_of_its_folder(tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        storage.join(tmp_path, part)
    assert storage.join(tmp_path, "a", "b..c/d") == f"{tmp_path}/a/b..c/d"


def test_what_is_written_is_read_back_whole_or_in_part(tmp_path: Path) -> None:
    uri = f"{tmp_path}/deep/in/file"
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_range(uri, 3, 4) == b"3456"
    assert storage.size(uri) == 10
    storage.download(uri, tmp_path / "copy" / "file")
    storage.upload(tmp_path / "copy" / "file", f"{tmp_path}/again")
    assert storage.read_bytes(f"{tmp_path}/again") == b"0123456789"
    storage.remove(uri)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_reading_is_bounded_and_a_short_file_is_told(tmp_path: Path) -> None:
    uri = f"{tmp_path}/file"
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri, limit=10)
    with pytest.raises(ValueError, match="larger than the 9 bytes"):
        storage.read_bytes(uri, limit=9)
    with pytest.raises(ValueError, match="ends after 10 bytes where 12 are needed"):
        storage.read_range(uri, 8, 4)


def test_a_write_that_dies_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{tmp_path}/file"
    storage.write_bytes(uri, b"old")

    def die(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(tmp_path) == [uri]
    assert len(list(tmp_path.iterdir())) == 1


def test_listing_is_sorted_deep_and_leaves_files_being_written_out(tmp_path: Path) -> None:
    for name in ("b.tar", "a/c.tar", "a/d.json", ".half.tar"):
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    assert storage.list_files(tmp_path, ".tar") == [f"{tmp_path}/a/c.tar", f"{tmp_path}/b.tar"]
    assert storage.list_files(tmp_path / "nowhere") == []


def test_what_is_missing_or_not_a_file_is_one_sentence_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    reads: list[Callable[[str], object]] = [storage.read_bytes, storage.size]
    for read in reads:
        with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
            read(f"{tmp_path}/nowhere")
    with pytest.raises(ValueError, match="cannot be used"):
        storage.read_bytes(tmp_path)
    with pytest.raises(ValueError, match="file/below cannot be used"):
        storage.write_bytes(f"{tmp_path}/file/below", b"1")


def test_a_store_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        protocol = ("s3",)

        def exists(self, path: str) -> bool:
            raise botocore.exceptions.EndpointConnectionError(endpoint_url="http://gone")

    monkeypatch.setattr(storage.fsspec, "filesystem", lambda *a, **k: Gone())
    with pytest.raises(ConnectionError, match=r"s3://bucket/x cannot be reached.*AWS_ENDPOINT_URL"):
        storage.exists("s3://bucket/x")
