"""A full disk ends a job with one sentence that says where, not with a traceback."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from infra import config, disk, storage
from infra.corpus import Sample, write_shard
from infra.errors import DiskFull
from synth.sources.database import temporary_database


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that writes."""

    uri: str
    """Where."""


def run(job: Job) -> dict[str, Any]:
    storage.write_bytes(job.uri, b"content")
    return {}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_that_names_the_uri(
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, data: bytes) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, "_write_through", full)
    with pytest.raises(SystemExit) as ended:
        config.main(run, Job, argv=["--uri", f"{tmp_path}/x"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and out == "" and err.count("\n") == 1
    assert err.startswith(f"error: no space left for {tmp_path}/x (")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_a_readers_database_is_one_sentence() -> None:
    with (
        pytest.raises(DiskFull, match=r"no space left for SQLite's temporary file .*SQLITE_TMPDIR"),
        temporary_database() as database,
    ):
        database.execute("PRAGMA max_page_count = 8")
        database.execute("CREATE TABLE rows (text TEXT)")
        for _ in range(1_000):
            database.execute("INSERT INTO rows VALUES (?)", ("x" * 1_000,))


def test_another_error_of_the_system_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, data: bytes) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "_write_through", broken)
    with pytest.raises(OSError, match="Input/output error") as told:
        config.main(run, Job, argv=["--uri", f"{tmp_path}/x"])
    assert not isinstance(told.value, DiskFull)


def test_a_full_disk_outside_the_storage_is_one_sentence_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(job: Job) -> dict[str, Any]:
        with open("/dev/full", "wb") as file:
            file.write(b"content")
        return {}

    with pytest.raises(SystemExit) as ended:
        config.main(job, Job, argv=["--uri", str(tmp_path)])
    err = capsys.readouterr().err
    assert ended.value.code == 1 and err.count("\n") == 1
    assert err.startswith("error: no space left for what this job writes (")


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_a_full_folder_for_temporary_files_is_named(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small, it is noticed when the buffer is written out, and once more when the file is closed.
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b"))  # noqa: SIM115
    meta = {"scene": "a", "classes": [], "frames": 1}
    sample = Sample(key="a", members={"frame0.png": bytes(size)}, meta=meta)
    says = rf"no space left for the tar of shards/train-00000 in {tempfile.gettempdir()} \("
    with pytest.raises(DiskFull, match=says):
        write_shard(str(tmp_path), "train", 0, [sample], plan="p")
    assert not list(tmp_path.rglob("*.tar"))
