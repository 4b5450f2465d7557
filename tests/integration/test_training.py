"""Stages on a real Ray, with DeepSpeed on CPU workers over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra import cluster
from tests.small_stage import STEPS, small_stage, write_small_corpus
from training import models
from training.recipe import ModelConfig, WorkersConfig
from training.stage import run_stage

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("training")
    write_small_corpus(folder)
    yield folder
    cluster.disconnect()


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    points: list[dict[str, float]] = []
    return run_stage(small_stage(folder, "undisturbed"), on_metrics=points.append), points


def weights(uri: str) -> dict[str, torch.Tensor]:
    return load_file(Path(uri) / "save.safetensors")


def test_a_stage_learns_and_tells_what_it_did(
    folder: Path, undisturbed: tuple[dict[str, Any], list[dict[str, float]]]
) -> None:
    summary, points = undisturbed
    losses = {int(p["step"]): p["loss"] for p in summary["history"] if "loss" in p}
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    assert summary["steps"] == STEPS and summary["samples_per_second"] > 0
    best = max(p["val_m_j"] for p in summary["history"] if "val_m_j" in p)
    assert summary["val_m_j"] == best
    assert points == summary["history"]
    model = models.load_model(summary["checkpoint"])
    assert model.config.image_size == 64


def test_dense_adapters_learn_the_same_on_one_worker_and_on_two(folder: Path) -> None:
    """Their weights lie channels last in memory, which must survive what DeepSpeed does."""
    model = ModelConfig(image_size=64, spatial="dense", adapter_init="parent")
    found = []
    for name, count, zero_stage in (("dense-1", 1, 0), ("dense-2", 2, 1)):
        workers = WorkersConfig(count=count, zero_stage=zero_stage)
        made = small_stage(
            folder, name, model=model, workers=workers, batch=4, steps=4, validate_every=4
        )
        summary = run_stage(made)
        losses = [point["loss"] for point in summary["history"] if "loss" in point]
        found.append((losses, weights(summary["checkpoint"])))
    (losses, first), (others, second) = found
    assert len(losses) == 4 and losses == pytest.approx(others, rel=1e-4)
    name = "image_encoder.blocks.0.Adapter.spatial.2.weight"
    assert torch.allclose(first[name], second[name], atol=1e-4)
    assert not torch.equal(first[name], torch.zeros_like(first[name]))


def test_a_finished_stage_is_not_trained_again(
    folder: Path, undisturbed: tuple[dict[str, Any], list[dict[str, float]]]
) -> None:
    again = run_stage(small_stage(folder, "undisturbed"))
    assert again["checkpoint"] == undisturbed[0]["checkpoint"]
    assert again["seconds"] < 5
    with pytest.raises(ValueError, match="another configuration"):
        run_stage(small_stage(folder, "undisturbed", seed=1))


def test_the_entry_point_finetunes_from_a_parent_with_one_worker(
    folder: Path, undisturbed: tuple[dict[str, Any], list[dict[str, float]]]
) -> None:
    cluster.disconnect()
    told = {
        "corpus": folder / "corpus",
        "output": folder / "runs",
        "parent": undisturbed[0]["checkpoint"],
        "tracking": f"sqlite:///{folder}/mlflow.db",
        "model.image_size": 64,
        "steps": 2,
        "workers.count": 1,
        "workers.zero_stage": 2,
    }
    flags = [f"--{name}={value}" for name, value in told.items()]
    done = subprocess.run(
        [sys.executable, str(ROOT / "training/finetune.py"), *flags],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["steps"] == 2 and summary["parent"] == undisturbed[0]["checkpoint"]
    assert summary["run_id"]
    assert "step 2 of 2" in done.stderr


def test_a_parent_of_another_size_is_refused_before_anything_starts(
    folder: Path, undisturbed: tuple[dict[str, Any], list[dict[str, float]]]
) -> None:
    config = small_stage(
        folder,
        "other_size",
        parent=undisturbed[0]["checkpoint"],
        model=ModelConfig(image_size=96),
        workers=WorkersConfig(count=1),
    )
    with pytest.raises(ValueError, match="64 pixels"):
        run_stage(config)
    assert not (folder / "runs" / "other_size").exists()
