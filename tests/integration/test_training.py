"""Stages on a real Ray, with DeepSpeed on CPU workers over gloo."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from infra import cluster, lease, registry, storage
from infra.errors import JobFailed
from infra.tracking import Tracker
from model import build_save, saved
from tests.scripted_steps import ShortOfMemory
from tests.small_stage import STEPS, small_stage, write_small_corpus
from training import models, stage
from training.checkpoint_store import CheckpointStore
from training.recipe import ModelConfig, WorkersConfig
from training.stage import run_stage
from training.step import OptimizerConfig

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
    # How it is looked at is no part of what is learned.
    config = small_stage(folder, "undisturbed", profile=(2,))
    return run_stage(config, on_metrics=points.append), points


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


def test_a_stage_leaves_a_trace_of_a_step_and_pictures_of_each_validation(
    folder: Path, undisturbed: tuple[dict[str, Any], list[dict[str, float]]]
) -> None:
    run = folder / "runs" / "undisturbed"
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "step-00000002.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {"aten::conv2d", "Optimizer.step#AdamW.step"} <= {event["name"] for event in events}
    shown = {path.name: sorted(path.iterdir()) for path in (run / "overlays").iterdir()}
    assert set(shown) == {f"step-{step:08d}" for step in (4, 8, 12)}
    for pictures in shown.values():
        assert len(pictures) == 4
        for picture in pictures:
            with Image.open(picture) as image:
                image.load()


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


def test_a_stage_that_loses_its_lease_stops_its_workers_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "runs" / "lost"
    monkeypatch.setattr(lease, "hold", partial(lease.hold, seconds=1.0))

    def take_over(_: dict[str, float]) -> None:
        storage.write_bytes(str(run / lease.LEASE), b"another's")

    # A checkpoint is written at the last step alone.
    config = small_stage(folder, "lost", steps=300, validate_every=300)
    with pytest.raises(JobFailed, match=r"^lost stopped: the lease on .* was lost"):
        run_stage(config, on_metrics=take_over)
    assert not (run / stage.SUMMARY).exists()
    assert (run / lease.LEASE).read_bytes() == b"another's"
    assert not CheckpointStore(str(run / stage.CHECKPOINTS), keep=1).committed()


def test_a_worker_without_memory_ends_the_stage_at_once_and_what_needs_less_is_named(
    folder: Path, tmp_path: Path
) -> None:
    tries = tmp_path / "tries"
    short = ShortOfMemory(rank=1, step=2, tries=str(tries))
    # The other worker waits for it in the middle of a step.
    with pytest.raises(JobFailed, match=r"^short stopped: a worker ran out of memory") as stopped:
        run_stage(small_stage(folder, "short", optimizer=short))
    assert tries.read_text() == "2\n"
    for name in ("accumulate", "activation_checkpointing", "zero_stage", "workers.count"):
        assert name in str(stopped.value)
    assert "Traceback" not in str(stopped.value)
    assert not (folder / "runs" / "short" / stage.SUMMARY).exists()


def test_an_alias_as_parent_means_what_it_meant_when_the_stage_was_begun(
    folder: Path,
    tracker: Tracker,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def register(model: Path) -> str:
        with tracker.run("parent") as run:
            run.log_model(model)
        registry.register(tracker.client, name="save-parent", run_id=run.id, evaluations={})
        return run.id

    def cut_off(*_: Any) -> dict[str, Any]:
        raise JobFailed("cut off")

    config = small_stage(
        folder,
        "of_alias",
        parent="models:/save-parent@candidate",
        tracking=tracker.uri,
        steps=2,
        optimizer=OptimizerConfig(learning_rate=0.0, final_learning_rate=0.0),
        workers=WorkersConfig(count=1),
    )
    first = register(model_folder)
    with monkeypatch.context() as patch, pytest.raises(JobFailed, match="cut off"):
        patch.setattr(stage, "_fit", cut_off)
        run_stage(config)
    torch.manual_seed(1)
    saved.save(build_save("save_tiny", image_size=64), tmp_path)
    register(tmp_path)
    summary = run_stage(config)
    # Nothing was learned: what is written is the parent.
    learned, parent = weights(summary["checkpoint"]), weights(str(model_folder))
    assert all(torch.equal(learned[name], value) for name, value in parent.items())
    assert first in summary["parent"]
    tags = tracker.client.get_run(summary["run_id"]).data.tags
    assert tags["parent.run_id"] == first


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
