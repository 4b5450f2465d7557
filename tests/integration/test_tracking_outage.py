"""A stage's accounts in a real MLflow server that goes away, comes back, or forgets."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from infra import storage, tracking_account
from infra.config import parse
from infra.corpus import Corpus
from infra.tracking_account import BACKLOG, RECORD
from tests.integration.conftest import ROOT, ObjectStore
from tests.integration.fault_proxy import fault_proxy
from tests.integration.servers import free_ports
from tests.integration.tracking_server import Server
from tests.made_corpus import write_made_corpus
from training import reporting as module
from training.recipe import TrainConfig
from training.reporting import Report, reporting

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stopped_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not running before the first test that needs it to."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def server(stopped_server: Server) -> Server:
    stopped_server.start()
    return stopped_server


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_made_corpus(str(tmp_path_factory.mktemp("corpus")), samples={"train": 2, "val": 2})


@pytest.fixture
def config(corpus: Corpus, tmp_path: Path) -> TrainConfig:
    return TrainConfig(stage="stage", corpus=corpus.uri, output=str(tmp_path), steps=150)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stage"


def tell(report: Report, first: int, last: int) -> None:
    """The points of steps ``first`` to ``last``, every tenth one of them with a validation."""
    for step in range(first, last + 1):
        report.point({"step": float(step), "loss": 1 / step, "rate": 0.1})
        if step % 10 == 0:
            report.point({"step": float(step), "val_m_j": step / 1000})


def summary(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of a stage that has left this model."""
    checkpoint = folder / "checkpoints" / "step-00000150"
    checkpoint.mkdir(parents=True, exist_ok=True)
    for name in ("save.json", "save.safetensors"):
        (checkpoint / name).write_bytes(name.encode())
    return {"steps": 150, "val_m_j": 0.15, "checkpoint": str(checkpoint), **changes}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def until(ready: Callable[[], bool]) -> None:
    """Wait for what the account's thread does."""
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def losses(first: int, last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(first, last + 1)]


def test_what_a_server_that_never_came_has_missed_is_written_when_the_stage_is_run_again(
    stopped_server: Server,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = stopped_server
    with driver(config, server, last=30) as process:
        process.kill()
    with monkeypatch.context() as patch:
        patch.setattr(module, "PATIENCE", 0.5)
        with reporting(config, corpus, str(folder), server.uri) as report:
            tell(report, 21, 40)
            report.finish(summary(folder))
        assert report.run_id is None
    told = warnings(caplog)
    assert ["stops nothing" in line for line in told] == [True, False]
    assert ["run this again" in line for line in told] == [False, True]
    kept = [json.loads(line) for line in (folder / BACKLOG).read_text().splitlines()]
    server.start()
    with reporting(config, corpus, str(folder), server.uri) as report:
        report.finish(summary(folder))
    run = server.run(folder)
    assert run.info.run_id == report.run_id
    assert server.curve(folder, "loss") == losses(1, 40)
    assert server.times(folder, "loss")[0] == kept[0]["time"]
    assert run.info.status == "FINISHED" and run.info.end_time == kept[-1]["time"]
    assert not (folder / BACKLOG).exists()


def test_a_finished_stage_that_is_run_again_writes_nothing(
    server: Server, config: TrainConfig, corpus: Corpus, folder: Path
) -> None:
    def run_it() -> Run:
        with reporting(config, corpus, str(folder), server.uri) as report:
            tell(report, 1, 20)
            report.finish(summary(folder))
        return server.run(folder)

    before, after = run_it(), run_it()
    assert before.info.end_time == after.info.end_time
    assert server.curve(folder, "loss") == losses(1, 20)


def test_a_killed_driver_goes_on_in_the_same_run_and_doubles_nothing(
    server: Server, config: TrainConfig, corpus: Corpus, folder: Path
) -> None:
    with driver(config, server, last=30, once_reached=True) as process:
        process.kill()
    with reporting(config, corpus, str(folder), server.uri) as report:
        before = json.loads((folder / RECORD).read_text())["run_id"]
        tell(report, 21, 40)
        report.finish(summary(folder, history=[{"step": 5.0, "loss": 0.2}, {"step": 41.0, "x": 1}]))
    assert report.run_id == before and before is not None
    assert server.curve(folder, "loss") == losses(1, 40)
    assert server.curve(folder, "val_m_j") == [(s, s / 1000) for s in range(10, 41, 10)]
    assert server.curve(folder, "x") == [(41, 1.0)]
    assert server.run(folder).info.status == "FINISHED"


def test_a_stage_that_fails_says_why_until_it_goes_on(
    server: Server, config: TrainConfig, corpus: Corpus, folder: Path
) -> None:
    with (
        pytest.raises(ValueError, match="lower the rate"),
        reporting(config, corpus, str(folder), server.uri) as report,
    ):
        tell(report, 1, 5)
        raise ValueError("the loss is nan: lower the rate")
    run = server.run(folder)
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"] == "ValueError: the loss is nan: lower the rate"
    with pytest.raises(KeyboardInterrupt), reporting(config, corpus, str(folder), server.uri):
        raise KeyboardInterrupt
    run = server.run(folder)
    assert (run.info.status, run.data.tags["reason"]) == ("KILLED", "KeyboardInterrupt")
    # A Ray that was used in this process before has left its handler, but not what calls it.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit), reporting(config, corpus, str(folder), server.uri):
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            until(lambda: server.run(folder).info.status == "RUNNING")
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    run = server.run(folder)
    assert run.info.status == "KILLED" and run.data.tags["reason"].startswith("SystemExit")
    with reporting(config, corpus, str(folder), server.uri) as report:
        tell(report, 6, 10)
    run = server.run(folder)
    assert run.info.status == "FINISHED" and "reason" not in run.data.tags
    assert len(run.inputs.dataset_inputs) == 1
    assert server.curve(folder, "loss") == losses(1, 10)


def test_a_run_that_the_server_forgot_is_begun_anew_with_one_word(
    server: Server,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        pytest.raises(RuntimeError),
        reporting(config, corpus, str(folder), server.uri) as report,
    ):
        tell(report, 1, 5)
        raise RuntimeError
    forgotten = report.run_id
    assert forgotten is not None
    server.client.delete_run(forgotten)
    caplog.clear()
    with reporting(config, corpus, str(folder), server.uri) as report:
        tell(report, 1, 10)
        until(lambda: report.run_id not in (None, forgotten))
        until(lambda: len(server.curve(folder, "loss")) == 10)
        assert server.curve(folder, "loss") == losses(1, 10)
        (word,) = warnings(caplog)
        assert f"does not have the run {forgotten} any more" in word
        server.client.delete_run(report.run_id)
        tell(report, 11, 20)
    assert server.curve(folder, "loss") == losses(11, 20)
    assert server.run(folder).data.tags["stage"] == "stage"
    assert len(warnings(caplog)) == 2


def test_what_the_server_refuses_does_not_hold_up_the_rest(
    server: Server,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with reporting(config, corpus, str(folder), server.uri) as report:
        tell(report, 1, 5)
        report.point({"step": 6.0, "": 1.0})
        report.file("gone.txt", b"soon")
        report._files.submit((folder / "gone.txt").unlink).result()
        report.point({"step": 7.0, "loss": float("nan"), "rate": float("inf")})
        tell(report, 8, 9)
    curve = server.curve(folder, "loss")
    assert [step for step, _ in curve] == [1, 2, 3, 4, 5, 7, 8, 9]
    assert server.run(folder).info.status == "FINISHED"
    assert "refuses" in caplog.text


def test_a_file_that_the_servers_store_does_not_take_holds_up_no_point_and_is_kept(
    server: Server,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracking_account, "FIRST_WAIT", 0.01)
    with reporting(config, corpus, str(folder), server.uri) as report:
        until(lambda: report.run_id is not None)
        until(lambda: (server.artifacts(folder) / "config.yaml").exists())
        # A file where the store needs a folder.
        (server.artifacts(folder) / "overlays").touch()
        report.file("overlays/step-00000001.jpg", b"picture")
        until(lambda: (folder / "overlays" / "step-00000001.jpg").exists())
        tell(report, 1, 20)
    assert "is not taken as artifact" in caplog.text
    assert server.curve(folder, "loss") == losses(1, 20)
    assert server.run(folder).info.status == "FINISHED"
    (server.artifacts(folder) / "overlays").unlink()
    (kept,) = (folder / BACKLOG).read_text().splitlines()
    assert json.loads(kept)["name"] == "overlays/step-00000001.jpg"
    with reporting(config, corpus, str(folder), server.uri):
        pass
    assert (server.artifacts(folder) / "overlays/step-00000001.jpg").read_bytes() == b"picture"
    assert server.run(folder).info.status == "FINISHED" and not (folder / BACKLOG).exists()


def test_a_server_that_stumbles_gets_one_run_and_every_point_once(
    server: Server,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking_account, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(tracking_account, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(tracking_account, "POINTS_AT_ONCE", 3)
    before = server.client.search_runs(["1"])
    with fault_proxy(server.uri, seed=0, rate=0.3, pause=0.01) as proxy:
        with reporting(config, corpus, str(folder), proxy.endpoint) as report:
            tell(report, 1, 60)
        assert proxy.faults.total() > 10
    assert len(server.client.search_runs(["1"])) == len(before) + 1
    assert server.curve(folder, "loss") == losses(1, 60)
    assert server.run(folder).info.status == "FINISHED"


def test_a_server_that_is_away_for_a_while_gets_every_point_once_and_in_order(
    server: Server, config: TrainConfig, corpus: Corpus, folder: Path
) -> None:
    with reporting(config, corpus, str(folder), server.uri) as report:
        tell(report, 1, 50)
        server.stop()
        tell(report, 51, 90)
        report.file("overlays/step-00000090.jpg", b"picture")
        tell(report, 91, 100)
        server.start()
        tell(report, 101, 150)
        report.finish(summary(folder))
    run = server.run(folder)
    assert server.curve(folder, "loss") == losses(1, 150)
    assert server.curve(folder, "val_m_j") == [(s, s / 1000) for s in range(10, 151, 10)]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["summary.val_m_j"] == 0.15
    assert run.data.params["steps"] == "150"
    assert run.inputs.dataset_inputs[0].dataset.digest == corpus.sha256[:32]
    for name, data in {
        "overlays/step-00000090.jpg": b"picture",
        "model/save.json": b"save.json",
        "model/save.safetensors": b"save.safetensors",
    }.items():
        assert (server.artifacts(folder) / name).read_bytes() == data
    assert parse(TrainConfig, [f"--config={server.artifacts(folder)}/config.yaml"]) == config
    assert (folder / "overlays/step-00000090.jpg").read_bytes() == b"picture"
    assert not (folder / BACKLOG).exists()


def test_on_object_storage_what_is_left_is_written_from_another_machine(
    server: Server,
    seaweedfs: ObjectStore,
    config: TrainConfig,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = f"{seaweedfs.uri}/runs/stage"
    for machine in ("one", "other", "third"):
        monkeypatch.setenv("SAVE_CACHE", str(tmp_path / machine))
        reached = machine != "one"
        uri = server.uri if reached else f"http://127.0.0.1:{free_ports(1)[0]}"
        monkeypatch.setattr(module, "PATIENCE", 60 if reached else 0.5)
        with reporting(config, corpus, folder, uri) as report:
            tell(report, 1, 10)
            report.file("overlays/step-00000010.jpg", b"picture")
            report.finish(summary(tmp_path))
        assert storage.exists(f"{folder}/{BACKLOG}") != reached
        assert storage.read_bytes(f"{folder}/overlays/step-00000010.jpg") == b"picture"
        assert not list((tmp_path / machine).rglob("*.jsonl"))
    assert report.run_id is not None
    history = server.client.get_metric_history(report.run_id, "loss")
    assert [(m.step, m.value) for m in history] == losses(1, 10)
    names = [file.path for file in server.client.list_artifacts(report.run_id, "overlays")]
    assert names == ["overlays/step-00000010.jpg"]


@contextlib.contextmanager
def driver(
    config: TrainConfig, server: Server, *, last: int, once_reached: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Another process that reports on steps 1 to ``last`` and then trains on in silence.

    Args:
        once_reached: report on the second half when there is a run.
    """
    script = f"""
import sys, time
from infra.corpus import Corpus
from tests.integration.test_tracking_outage import tell
from training.recipe import TrainConfig
from training.reporting import reporting

config = TrainConfig(stage="stage", corpus={config.corpus!r}, output={config.output!r}, steps=150)
with reporting(config, Corpus.open(config.corpus), config.output + "/stage", {server.uri!r}) as r:
    tell(r, 1, {last // 2})
    while {once_reached} and r.run_id is None:
        time.sleep(0.05)
    tell(r, {last // 2 + 1}, {last})
    print("told", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "told\n"
        yield process
        process.wait()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
