"""Stages whose workers are killed end as undisturbed ones do, bit for bit."""

from __future__ import annotations

import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra import cluster, storage
from infra.errors import JobFailed
from tests.integration.servers import KillSwitch, children_titled, session_of
from tests.small_stage import STEPS, small_stage, write_small_corpus
from training import stage as stages
from training.checkpoint_store import CheckpointStore
from training.recipe import TrainConfig, WorkersConfig
from training.stage import run_stage
from training.step import OptimizerConfig

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> KillSwitch:
    return KillSwitch.install(tmp_path_factory.mktemp("switch") / "on")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, switch: KillSwitch) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kills")
    write_small_corpus(folder)
    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers inherit it.
        patch.setenv("PYTHONPATH", str(switch.folder))
        yield folder
    cluster.disconnect()


def stage(folder: Path, name: str, **changes: Any) -> TrainConfig:
    """With a checkpoint every second step, and none thrown away."""
    kept = {"ema": 0.9, "validate_every": 6, "checkpoint_every": 2, "overlays": 0, "keep": 9}
    return small_stage(folder, name, **(kept | changes))


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, Any]:
    return run_stage(stage(folder, "undisturbed"))


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Model, running mean and optimizer of a stage at its end."""
    last = folder / "runs" / name / "checkpoints" / f"step-{STEPS:08d}"
    return load_file(last / "save.safetensors") | load_file(last / "optimizer.safetensors")


def curves(summary: dict[str, Any]) -> list[dict[str, float]]:
    """What was learned, without how fast."""
    timed = {"samples_per_second", "data_wait", "memory_gib"}
    return [{k: v for k, v in p.items() if k not in timed} for p in summary["history"]]


def assert_same(folder: Path, name: str) -> None:
    whole, resumed = (tensors(folder, run) for run in ("undisturbed", name))
    assert whole.keys() == resumed.keys()
    different = [key for key, value in whole.items() if not torch.equal(value, resumed[key])]
    assert not different


class Killer(threading.Thread):
    """Kills any worker of ours a random moment after a checkpoint's commit was held up."""

    def __init__(self, switch: KillSwitch, wait: float) -> None:
        super().__init__(daemon=True)
        self.switch, self.wait = switch, wait
        self.killed = 0

    def run(self) -> None:
        while not (self.switch.folder / "struck-0").exists():
            time.sleep(0.02)
        time.sleep(self.wait)
        try:
            random.choice(children_titled("RayTrainWorker")).kill()
            self.killed += 1
        finally:
            self.switch.release()


def test_workers_killed_at_random_moments_change_no_bit(
    folder: Path, switch: KillSwitch, undisturbed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="training")
    draw = random.Random(time.time_ns())
    held, struck = (
        rf"/killed/checkpoints/step-{step:08d}\.json$"
        for step in draw.sample(range(2, STEPS - 1, 2), 2)
    )
    # Training goes on meanwhile: at which step a worker is when it dies, nobody knows.
    plan = [("before", held, "hold"), (draw.choice(("before", "after")), struck, "worker")]
    switch.arm(*plan)
    killer = Killer(switch, draw.uniform(0.0, 0.5))
    killer.start()
    summary = run_stage(stage(folder, "killed"))
    assert (switch.struck, killer.killed) == (2, 1), plan
    assert caplog.text.count("starting, ") + caplog.text.count("resuming after step") == 3
    told = r"worker [01] failed \(its worker process has died\): starting workers again"
    assert len(re.findall(told, caplog.text)) == 2
    assert_same(folder, "killed")
    assert curves(summary) == curves(undisturbed)


def test_workers_that_die_whenever_they_start_end_the_stage_with_a_reason(folder: Path) -> None:
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.02):
            for worker in children_titled("RayTrainWorker"):
                worker.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    workers = WorkersConfig(count=2, max_failures=1)
    try:
        with pytest.raises(
            JobFailed, match="more than 1 times without a newer checkpoint, at last: Ray"
        ):
            run_stage(stage(folder, "stillborn", workers=workers))
    finally:
        ended.set()
        killer.join()


def test_a_killed_driver_is_run_again_and_changes_no_bit(
    folder: Path, undisturbed: dict[str, Any]
) -> None:
    config = stage(folder, "again")
    code = (
        "import sys, pickle; from training.stage import run_stage;"
        "run_stage(pickle.loads(bytes.fromhex(sys.argv[1])))"
    )
    import pickle

    command = [sys.executable, "-c", code, pickle.dumps(config).hex()]
    commit = folder / "runs/again/checkpoints/step-00000004.json"
    log = folder / "again.log"
    # Its Ray would end a minute later by itself; it ends with the session.
    with session_of(command, env=dict(os.environ), log=log, cwd=ROOT) as driver:
        while not commit.exists():
            assert driver.poll() is None, log.read_text()
            time.sleep(0.05)
        driver.kill()
    run_stage(config)
    assert_same(folder, "again")


def test_a_torn_newest_checkpoint_is_skipped_with_a_word(
    folder: Path, undisturbed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="training")
    run_stage(stage(folder, "torn"))
    run = folder / "runs" / "torn"
    (run / stages.SUMMARY).unlink()
    newest = run / "checkpoints" / f"step-{STEPS:08d}" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    run_stage(stage(folder, "torn"))
    assert f"step-{STEPS:08d} is torn" in caplog.text
    assert "resuming after step 6" in caplog.text
    assert_same(folder, "torn")


def test_a_loss_that_is_no_number_stops_the_stage_with_a_reason_and_is_not_tried_again(
    folder: Path,
) -> None:
    rate = OptimizerConfig(learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(JobFailed, match=r"is no finite number at step \d+: lower") as stopped:
        run_stage(stage(folder, "not_a_number", optimizer=rate))
    assert "Traceback" not in str(stopped.value)
    # What stands is from before.
    store = CheckpointStore(str(folder / "runs/not_a_number/checkpoints"), keep=1)
    for one in store.committed():
        weights = load_file(Path(store.folder(one.step)) / "save.safetensors")
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_a_stage_that_does_not_get_better_ends_early(folder: Path) -> None:
    still = OptimizerConfig(learning_rate=0.0, final_learning_rate=0.0)
    config = stage(folder, "patient", optimizer=still, validate_every=2, patience=2, ema=None)
    summary = run_stage(config)
    assert summary["steps"] == 6 and summary["best_step"] == 6
    # It has not forgotten that when it is resumed.
    (folder / "runs" / "patient" / stages.SUMMARY).unlink()
    assert run_stage(config)["steps"] == 6


def test_a_checkpoint_that_cannot_be_written_at_the_end_fails_the_stage(folder: Path) -> None:
    run = folder / "runs" / "unwritable"
    storage.write_bytes(str(run / "checkpoints"), b"a file where the folder should be")
    workers = WorkersConfig(count=1, max_failures=0)
    with pytest.raises(JobFailed, match="a file stands where a folder is needed"):
        run_stage(stage(folder, "unwritable", workers=workers, steps=2))
    assert not (run / stages.SUMMARY).exists()
