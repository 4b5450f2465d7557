"""The whole story, told with so few steps that nothing is learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.corpus import Corpus
from infra.tracking import Tracker

CHECKOUT = Path(__file__).parents[2]
ANSWERS = (
    "untrained", "finetune_only", "zero_shot", "pretrained", "sound_swapped", "silence",
    "sound_blind",
)  # fmt: skip

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict:
    command = [
        sys.executable,
        "pipelines/quickstart.py",
        "--config=pipelines/recipes/quickstart_short.yaml",
        f"--folder={folder}",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1200, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == json.loads((folder / "summary.json").read_text())
    return summary


def test_every_answer_is_scored_on_the_test_splits(summary: dict) -> None:
    for subset in ("s4_test", "ms3_test"):
        for answer in ANSWERS:
            scores = summary["scores"][subset][answer]
            assert 0 <= scores["m_j"] <= 1 and 0 <= scores["m_f"] <= 1, (subset, answer)
    assert 0.3 < summary["scores"]["s4_test"]["sound_blind"]["m_j"] < 0.7
    for split in ("synthetic_test", "synthetic_unseen"):
        heard = summary["scores"][split]
        assert {"m_j", "picked_right", "flips", "silence_empty"} <= heard.keys()


def test_corpora_are_the_ones_that_stand(summary: dict) -> None:
    assert summary["corpora"].keys() == {"synthetic", "s4_miniature", "ms3_miniature"}
    for name, told in summary["corpora"].items():
        corpus = Corpus.open(told["uri"])
        assert corpus.sha256 == told["manifest_sha256"]
        assert sum(len(corpus.table(split)) for split in corpus.splits) == told["samples"]
        assert ("miniature" in corpus.manifest["kind"]) == (name != "synthetic")


def test_stages_took_the_steps_they_were_given(summary: dict) -> None:
    steps = {name: stage["steps"] for name, stage in summary["stages"].items()}
    assert steps == {
        "pretrain": 20, "finetune_s4": 6, "finetune_ms3": 6, "scratch_s4": 6, "scratch_ms3": 6,
    }  # fmt: skip


def test_stages_lie_under_the_run_of_the_story_with_their_curves_and_models(
    folder: Path, summary: dict
) -> None:
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db")
    runs = {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id])}
    story = runs.pop("quickstart")
    assert runs.keys() == summary["stages"].keys()
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == story.info.run_id
        assert {"loss", "val_m_j", "summary.val_m_j"} <= run.data.metrics.keys()
        assert (Path(run.info.artifact_uri) / "model" / "save.safetensors").is_file()


def test_the_model_is_registered_and_past_the_gate(summary: dict) -> None:
    assert summary["registry"]["version"] == 1
    assert summary["registry"]["aliases"] == ["candidate", "champion"]


def test_pictures_are_left_behind(summary: dict) -> None:
    for name in ("contact_sheet", "overlay", "prediction"):
        assert Path(summary["files"][name]).stat().st_size > 1000
