"""A chain of stages as people run it: killed in its second stage, then submitted to a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import BIN, ROOT, RayHead, process_group
from tests.made_corpus import write_made_corpus

pytestmark = pytest.mark.integration

STEPS, EVERY = 60, 2
# A first checkpoint of the second stage, on a machine that is busy with other things.
PATIENCE = 300


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("chain")
    for name, seed in (("synthetic", 0), ("s4", 1)):
        write_made_corpus(
            str(folder / name), samples={"train": 12, "val": 2}, seed=seed, first_mask_only=True
        )
    small = {
        "model.image_size": 64,
        "batch": 4,
        "optimizer.warmup_steps": 2,
        "validate_every": EVERY,
        "workers.count": 1,
    }
    chain = {
        "stages": [
            {
                "recipe": "pretrain_tiny.yaml",
                "corpus": "synthetic",
                "changes": small | {"steps": 4},
            },
            {
                "recipe": "finetune_s4_tiny.yaml",
                "corpus": "s4",
                "changes": small | {"steps": STEPS},
            },
        ]
    }
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    corpora = [f"--corpora.{name}={folder / name}" for name in ("synthetic", "s4")]
    return [f"--config={folder / 'chain.yaml'}", *corpora, f"--output={folder / 'runs'}"]


def output(flags: list[str]) -> Path:
    return Path(flags[-1].removeprefix("--output="))


def checkpoints(stage: Path) -> dict[str, int]:
    """When the files that say how far each checkpoint had come were written."""
    return {str(path): path.stat().st_mtime_ns for path in stage.rglob("state.json")}


@pytest.fixture(scope="module")
def killed(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The checkpoints of the first stage, after the driver was killed in the second one."""
    log = tmp_path_factory.mktemp("log") / "chain.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "training/chain.py", *flags]
    with process_group(command, env=env, log=log, cwd=ROOT) as alive:
        deadline = time.monotonic() + PATIENCE
        while not list(output(flags).glob("finetune_s4/checkpoints/step-*.json")):
            assert alive() and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.02)
    assert not (output(flags) / "finetune_s4" / "summary.json").exists()
    return checkpoints(output(flags) / "pretrain")


def test_a_chain_that_was_killed_goes_on_where_it_was(
    flags: list[str], killed: dict[str, int], ray_head: RayHead
) -> None:
    assert killed
    submit = [str(BIN / "ray"), "job", "submit", f"--address={ray_head.jobs}", "--working-dir=."]
    ended = subprocess.run(
        [*submit, "--", sys.executable, "training/chain.py", *flags],
        cwd=ROOT,
        env={**ray_head.env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    summary: dict[str, Any] = json.loads(
        [line for line in ended.stdout.splitlines() if line.startswith("{")][-1]
    )
    first, second = summary["stages"]
    assert (first["stage"], first["steps"], first["parent"]) == ("pretrain", 4, None)
    assert checkpoints(output(flags) / "pretrain") == killed
    assert (second["stage"], second["steps"]) == ("finetune_s4", STEPS)
    assert second["parent"] == first["checkpoint"]
    assert summary["checkpoint"] == second["checkpoint"]
    assert Path(summary["checkpoint"]).is_dir()
    assert "resuming after step" in ended.stdout + ended.stderr
