"""What a stage tells of itself, without a tracking server."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from infra.corpus import Corpus
from infra.tracking import Run
from infra.tracking_backlog import Backlog
from tests.made_corpus import write_made_corpus
from training import reporting as module
from training.recipe import TrainConfig
from training.reporting import reporting


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_made_corpus(str(tmp_path / "corpus"), samples={"train": 2, "val": 2})


@pytest.fixture
def config(corpus: Corpus) -> TrainConfig:
    return TrainConfig(stage="stage", corpus=corpus.uri, steps=1)


def entries(numbers: range) -> list[dict[str, object]]:
    return [{"op": "point", "n": n, "value": float("inf")} for n in numbers]


def test_a_backlog_gives_back_what_was_not_done_in_order(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path / "backlog.jsonl")
    for entry in entries(range(10)):
        backlog.append(entry)
    assert backlog.take() == entries(range(10))
    backlog.done(4)
    assert backlog.take() == entries(range(4, 10))
    # What a process that is killed here leaves.
    again = Backlog(tmp_path / "backlog.jsonl")
    assert again.take() == list(again) == entries(range(10))
    assert backlog.close() == 6
    assert Backlog(tmp_path / "backlog.jsonl").take() == entries(range(4, 10))


def test_a_backlog_that_is_done_leaves_no_file(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path / "backlog.jsonl")
    for entry in entries(range(3)):
        backlog.append(entry)
    assert len(backlog.take()) == 3
    backlog.done(3)
    assert (tmp_path / "backlog.jsonl").stat().st_size == 0 and backlog.take() == []
    assert backlog.close() == 0 and not (tmp_path / "backlog.jsonl").exists()
    assert backlog.take() == []


def test_a_line_that_a_killed_process_left_half_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "backlog.jsonl"
    path.write_text('{"op": "point", "n": 0, "value": Infinity}\n{"op": "po')
    backlog = Backlog(path)
    for entry in entries(range(1, 3)):
        backlog.append(entry)
    whole, damaged, *rest = backlog.take()
    assert [whole, *rest] == entries(range(3)) and damaged == {"op": "damaged"}


def test_what_is_kept_for_the_next_process_outlives_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "backlog.jsonl"
    backlog = Backlog(path)
    for entry in entries(range(3)):
        backlog.append(entry)
    assert len(backlog.take()) == 3
    backlog.keep_first()
    backlog.done(1)
    backlog.done(2)
    assert list(Backlog(path)) == entries(range(1))
    assert backlog.take() == []
    backlog.append(entries(range(3, 4))[0])
    assert backlog.take() == entries(range(3, 4))
    assert backlog.close() == 2
    assert list(Backlog(path)) == [*entries(range(1)), *entries(range(3, 4))]


def test_entries_appended_while_others_are_taken_are_all_given_once(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path / "backlog.jsonl")

    def append() -> None:
        for n in range(500):
            backlog.append({"n": n})

    thread = threading.Thread(target=append)
    thread.start()
    taken: list[dict[str, object]] = []
    while thread.is_alive() or backlog.take():
        taken += backlog.take()[:7]
        backlog.done(7)
    thread.join()
    assert taken == [{"n": n} for n in range(500)]


def test_without_tracking_files_are_written_and_nothing_else(
    config: TrainConfig, corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "stage"
    with reporting(config, corpus, str(folder), None) as report:
        report.point({"step": 1.0, "loss": 0.5})
        report.file("overlays/step-00000001.jpg", b"picture")
        report.finish({"steps": 1, "checkpoint": "nowhere"})
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert written == [folder / "overlays" / "step-00000001.jpg"]
    assert written[0].read_bytes() == b"picture" and report.run_id is None


def test_what_cannot_be_written_stops_nothing(
    config: TrainConfig,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "stage").write_text("a file where the folder is needed")
    monkeypatch.setattr(module, "MOST_WAITING_BYTES", 10)
    with reporting(config, corpus, str(tmp_path / "stage"), None) as report:
        report.file("profile/step-00000001.json.gz", b"profile")
        report.file("../outside", b"")
        report.file("profile/step-00000002.json.gz", b"too much to keep waiting")
    report.file("late", b"late")
    assert [name in caplog.text for name in ("step-00000001", "outside", "step-00000002")] == [
        True,
        True,
        True,
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "stage"]


def test_what_the_stage_raises_passes_through(
    config: TrainConfig, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="nan"), reporting(config, corpus, str(tmp_path), None):
        raise ValueError("the loss is nan")


def test_a_tracking_uri_of_another_kind_is_refused_before_anything_is_written(
    config: TrainConfig, corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "stage"
    with (
        pytest.raises(ValueError, match="is no tracking URI"),
        reporting(config, corpus, str(folder), "./mlruns"),
    ):
        pytest.fail("it was begun")
    assert not folder.exists()


def test_neither_a_server_that_is_not_there_nor_a_damaged_record_stops_anything(
    config: TrainConfig,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    (tmp_path / "tracking.json").write_text('{"uri"')
    before = dict(os.environ)
    with reporting(config, corpus, str(tmp_path), "http://127.0.0.1:1") as report:
        report.point({"step": 1.0, "loss": 0.5})
        report.file("overlays/step-00000001.jpg", b"picture")
    assert report.run_id is None and "tracking.json is damaged" in caplog.text
    kept = [json.loads(line) for line in (tmp_path / "tracking_backlog.jsonl").open()]
    assert [entry["op"] for entry in kept] == ["point", "file", "end"]
    assert kept[0]["step"] == 1 and kept[0]["values"] == {"loss": 0.5}
    assert os.environ == before


def test_a_file_may_take_longer_to_send_than_silence_is_waited_for(
    config: TrainConfig, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def slowly(run: Run, path: Path, folder: str | None) -> None:
        if path.name == "slow.txt":
            time.sleep(3.0)
            sent.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])

    monkeypatch.setattr(module, "PATIENCE", 1.0)
    monkeypatch.setattr(Run, "log_file", slowly)
    folder = tmp_path / "stage"
    with reporting(config, corpus, str(folder), f"sqlite:///{tmp_path}/mlflow.db") as report:
        while report.run_id is None:
            time.sleep(0.05)
        report.file("slow.txt", b"large")
    # With more time for the server's answer than all else has, and only then.
    assert sent == ["300"] and "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert not (folder / "tracking_backlog.jsonl").exists()
