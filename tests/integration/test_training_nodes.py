"""A stage on a cluster whose nodes come and go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.conftest import BIN, ROOT
from tests.integration.servers import session_of
from tests.integration.two_nodes import running_nodes
from tests.made_corpus import write_made_corpus
from tests.small_sam import relative_error

pytestmark = pytest.mark.integration

PATIENCE = 300.0
PRETRAIN = (str(ROOT / "training/pretrain.py"),)
STEPS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes") / "corpus"
    write_made_corpus(str(folder), samples={"train": 12, "val": 2}, size=32, first_mask_only=True)
    return folder


@dataclass(frozen=True, kw_only=True)
class Job:
    """A driver of a stage."""

    process: subprocess.Popen[bytes]
    checkpoints: Path
    log: Path

    def wait_for(self, what: str, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < end, f"{what} did not come:\n{self.log.read_text()}"
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()}"
            time.sleep(0.1)

    def newest(self) -> int:
        """The step of the newest checkpoint, 0 for none."""
        names = [path.stem for path in self.checkpoints.glob("step-*.json")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def says(self, text: str) -> bool:
        return text in self.log.read_text()

    def summary(self) -> dict[str, Any]:
        """What it tells at its end."""
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        told: dict[str, Any] = json.loads(self.log.read_text().splitlines()[-1])
        return told

    def losses(self) -> dict[int, float]:
        state = self.checkpoints / f"step-{self.newest():08d}" / "state.json"
        points: list[dict[str, Any]] = json.loads(state.read_text())["history"]
        return {int(point["step"]): point["loss"] for point in points if "loss" in point}


@contextmanager
def job(
    corpus: Path,
    folder: Path,
    name: str,
    *options: str,
    program: Sequence[str] = PRETRAIN,
    **env: str,
) -> Iterator[Job]:
    log = folder / f"{name}.log"
    command = [
        *(sys.executable, *program, f"--stage={name}"),
        *(f"--corpus={corpus}", f"--output={folder / 'runs'}", "--model.image_size=32"),
        *("--batch=6", "--log_every=1", "--overlays=0", "--workers.zero_stage=1", *options),
    ]
    variables = {**env, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:/usr/bin:/bin"}
    with session_of(command, env=variables, log=log, cwd=folder) as process:
        yield Job(process=process, checkpoints=folder / "runs" / name / "checkpoints", log=log)


def flat_weights(checkpoint: str) -> torch.Tensor:
    """All of a checkpoint's model in one row."""
    weights = load_file(Path(checkpoint) / "save.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def test_nodes_may_die_and_come_while_losses_and_end_stay_those_of_a_calm_run(
    corpus: Path, tmp_path: Path
) -> None:
    options = (f"--steps={STEPS}", f"--validate_every={STEPS}", "--checkpoint_every=5")
    elastic = ("--workers.count=2", "--workers.min_count=1", "--workers.resize_seconds=10")
    gates = tmp_path / "gates"
    gates.mkdir()
    # Where the node is lost, and where another one comes; each some steps after a checkpoint.
    lost, found = (gates / str(step) for step in (7, 12))
    lost.touch()
    found.touch()
    gated = (str(ROOT / "tests/integration/gated_pretrain.py"), str(gates))
    with running_nodes(head_cpus=1) as nodes:
        second, env = nodes.start(cpus=1), nodes.driver_env
        with job(
            corpus, tmp_path, "changing", *options, *elastic, program=gated, **env
        ) as changing:
            changing.wait_for("a checkpoint of two workers", lambda: changing.newest() == 5)
            assert changing.says("starting, 20 steps") and changing.says("2 workers on cpu")
            second.kill()
            changing.wait_for("one worker", lambda: changing.says("1 workers on cpu"))
            lost.unlink()
            changing.wait_for("a checkpoint of one worker", lambda: changing.newest() == 10)
            nodes.start(cpus=1)
            changing.wait_for(
                "two workers again", lambda: changing.says("resuming after step 10, 20 steps")
            )
            found.unlink()
            summary = changing.summary()
        assert changing.log.read_text().count("2 workers on cpu") == 2
        with job(corpus, tmp_path, "calm", *options, "--workers.count=1", **env) as calm:
            expected = calm.summary()
    assert summary["steps"] == summary["best_step"] == STEPS
    # Rounding differs with the number of workers, and grows from step to step.
    ours, theirs = (flat_weights(told["checkpoint"]) for told in (summary, expected))
    assert relative_error(ours, theirs) < 1e-4
    assert changing.losses() == pytest.approx(calm.losses(), abs=1e-4)
    # No step is left out or taken twice, whoever took it.
    assert list(changing.losses()) == list(range(1, STEPS + 1))


def test_a_stage_that_lost_a_node_waits_for_another_and_heeds_the_notice_of_its_end(
    corpus: Path, tmp_path: Path
) -> None:
    # The first node is the failure that it may have without a checkpoint in between.
    endless = (
        *("--steps=100000", "--validate_every=100000"),
        *("--workers.count=2", "--workers.max_failures=1"),
    )
    with running_nodes(head_cpus=1) as nodes:
        second = nodes.start(cpus=1)
        with job(corpus, tmp_path, "noticed", *endless, **nodes.driver_env) as noticed:
            noticed.wait_for("steps", lambda: noticed.says("step "))
            second.kill()
            noticed.wait_for("a word", lambda: noticed.says("waits for room"))
            assert noticed.says("2 workers need 2 CPU, and the cluster has 1 CPU; add nodes")
            third = nodes.start(cpus=1)
            started = "2 workers on cpu"
            noticed.wait_for("a start", lambda: noticed.log.read_text().count(started) == 2)
            nodes.announce_end_of_second(seconds=120)
            noticed.wait_for("a word", lambda: noticed.says("will be taken away"))
            noticed.wait_for("a checkpoint", lambda: noticed.newest() > 0)
            at_notice = noticed.newest()
            nodes.start(cpus=1)
            third.kill()
            noticed.wait_for("a word", lambda: noticed.says("taken away: starting workers again"))
            resumed = f"resuming after step {at_notice}, "
            noticed.wait_for("a resume", lambda: noticed.says(resumed))


def test_a_stage_that_waits_for_room_ends_when_it_is_interrupted(
    corpus: Path, tmp_path: Path
) -> None:
    options = ("--steps=2", "--validate_every=2")
    with job(corpus, tmp_path, "interrupted", *options, "--workers.cpus=600") as waiting:
        waiting.wait_for("a word", lambda: waiting.says("waits for room"))
        waiting.process.send_signal(signal.SIGINT)
        assert waiting.process.wait(PATIENCE) == 128 + signal.SIGINT
        said = waiting.log.read_text()
        assert "error: interrupted: run the same command again to go on" in said
        assert "Traceback" not in said
    # Nobody holds the stage any more.
    with job(corpus, tmp_path, "interrupted", *options, "--workers.count=1") as again:
        assert again.summary()["steps"] == 2
