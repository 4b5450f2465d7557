"""Temporary folders go with their block, and those of killed processes with the next one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from infra.scratch import scratch_folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def left(place: Path) -> list[Path]:
    return list(place.glob("*/*"))


def test_a_folder_is_there_for_its_block_alone(place: Path) -> None:
    with scratch_folder("a") as folder:
        (folder / "file").write_bytes(b"x")
        assert left(place) == [folder]
    assert left(place) == []


def fill_and_wait(told: Connection) -> None:
    with scratch_folder("killed") as folder:
        (folder / "file").write_bytes(b"x")
        told.send(folder)
        signal.pause()


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(place: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=fill_and_wait, args=(theirs,))
    process.start()
    folder = ours.recv()
    with scratch_folder("beside") as own:
        assert {own, folder} == set(left(place))
        assert (folder / "file").exists()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert left(place) == [folder]
    with scratch_folder("after") as own:
        assert left(place) == [own]


def test_the_place_of_another_user_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: user)
    refused = pytest.raises(PermissionError, match="belongs to another user: set TMPDIR")
    with refused, scratch_folder("a"):
        pass
