"""A stage from the driver's side, without Ray."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra import lease, storage
from infra.corpus import Corpus
from model import build_save, saved
from tests.made_corpus import write_made_corpus
from training import checkpoint, stage
from training.checkpoint_store import CheckpointStore
from training.recipe import ModelConfig, TrainConfig, WorkersConfig


def _write_state(text: str, folder: Path) -> None:
    (folder / checkpoint.STATE).write_text(text)


def write_checkpoints(run: Path, scores: dict[int, float], keep: int = 1) -> None:
    """As workers do, but of a model that is not there."""
    store = CheckpointStore(str(run / stage.CHECKPOINTS), keep=keep)
    for step in scores:
        points = [
            {"step": float(s), "val_m_j": scores[s], "val_m_f": 0.9} for s in scores if s <= step
        ]
        state = {"format_version": checkpoint.FORMAT_VERSION, "step": step, "history": points}
        state["training_seconds"] = 2.0 * step
        store.save(partial(_write_state, json.dumps(state)), step, scores[step])
    store.wait()


def trained(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig, scores: dict[int, float]
) -> dict[str, Any]:
    """What a stage tells whose workers have found these scores."""

    def fit(config: TrainConfig, corpus: Corpus, folder: str, *_: Any) -> dict[str, Any]:
        write_checkpoints(Path(folder), scores)
        store = CheckpointStore(f"{folder}/{stage.CHECKPOINTS}", keep=1)
        return stage._summary(config, corpus, store)

    monkeypatch.setattr(stage, "_fit", fit)
    return stage.run_stage(config)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_made_corpus(str(tmp_path / "corpus"), samples={"train": 4, "val": 2}, size=32)
    return TrainConfig(
        stage="a",
        corpus=str(tmp_path / "corpus"),
        output=str(tmp_path / "runs"),
        steps=9,
        batch=4,
        model=ModelConfig(image_size=32),
    )


def test_the_best_checkpoint_is_named_and_the_whole_run_is_told(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = trained(monkeypatch, config, {3: 0.5, 6: 0.7, 9: 0.6})
    run = Path(config.output) / "a"
    assert (summary["steps"], summary["best_step"], summary["val_m_j"]) == (9, 6, 0.7)
    assert summary["checkpoint"] == str(run / "checkpoints" / "step-00000006")
    assert summary["samples_per_second"] == 2.0 and len(summary["history"]) == 3


def test_a_parent_that_only_this_machine_has_is_brought_to_where_all_workers_see_it(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVE_CACHE", str(tmp_path / "cache"))
    fetched = tmp_path / "cache" / "models" / "one"
    saved.save(build_save("save_tiny", image_size=32), fetched)
    monkeypatch.setattr(stage.models, "resolve", lambda *_: str(fetched))
    config = dataclasses.replace(config, parent="models:/save@champion")
    summary = trained(monkeypatch, config, {9: 0.6})
    parent = Path(summary["parent"])
    assert parent.parent == Path(config.output) / "a"
    for name in (saved.CONFIG, saved.WEIGHTS):
        assert (parent / name).read_bytes() == (fetched / name).read_bytes()
    # Another machine has neither that cache nor, by now, that champion.
    shutil.rmtree(fetched)
    (Path(config.output) / "a" / stage.SUMMARY).unlink()
    again = trained(monkeypatch, config, {9: 0.6})
    assert again["parent"] == summary["parent"]


def test_a_finished_stage_is_told_again_and_another_one_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(monkeypatch, config, {9: 0.6})
    monkeypatch.delattr(stage, "_fit")
    again = stage.run_stage(dataclasses.replace(config, workers=WorkersConfig(count=1)))
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    with pytest.raises(
        ValueError, match=r"another configuration or corpus \(its seed is 0, not 5\)"
    ):
        stage.run_stage(dataclasses.replace(config, seed=5))
    other = dataclasses.replace(config.model, image_size=64)
    with pytest.raises(ValueError, match=r"\(its model.image_size is 32, not 64\)"):
        stage.run_stage(dataclasses.replace(config, model=other))


def test_a_second_job_on_a_stage_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(stage, "_fit")
    run = Path(config.output) / "a"
    with lease.hold(str(run), owner="first"):
        with pytest.raises(ValueError, match=r"another job \(first on"):
            stage.run_stage(config)
        assert [path.name for path in run.iterdir()] == [lease.LEASE]


def test_a_stage_whose_lease_was_lost_at_the_end_writes_no_summary(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(config.output) / "a"

    def fit(*_: Any) -> dict[str, Any]:
        storage.write_bytes(str(run / lease.LEASE), b"another's")
        return {}

    monkeypatch.setattr(stage, "_fit", fit)
    with pytest.raises(ValueError, match=r"the lease on .* was lost"):
        stage.run_stage(config)
    assert not (run / stage.SUMMARY).exists()
    assert (run / lease.LEASE).read_bytes() == b"another's"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"val_split": "nowhere"}, "no split 'nowhere'"),
        ({"model": ModelConfig(name="save_huge")}, "save_huge"),
        ({"model": ModelConfig(name="save_vit_b")}, "model.sam_checkpoint"),
        ({"corpus": "/nowhere"}, "no corpus stands"),
        ({"parent": "/nowhere"}, "holds no model"),
        ({"precision": "fp16"}, "workers.use_gpu"),
    ],
)
def test_what_a_person_can_mend_is_told_before_any_worker_starts(
    config: TrainConfig, changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(stage, "_fit")
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        stage.run_stage(dataclasses.replace(config, **changes))
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": None},
        {"epochs": 2.0},
        {"stage": "a/b"},
        {"batch": 1},
        {"keep": 0},
        {"accumulate": 3},  # two workers have two samples each
        {"validate_every": 0},
        {"few_shot": 1.5},
        {"ema": 1.0},
        {"ema": 0.9, "workers": WorkersConfig(zero_stage=3)},
        {"workers": WorkersConfig(compile=True, zero_stage=3)},
        {"profile": (0,)},
        {"workers": WorkersConfig(count=2, min_count=3)},
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    config: TrainConfig, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
def test_fewer_workers_take_more_parts_and_none_is_larger(
    config: TrainConfig, accumulate: int
) -> None:
    planned = dataclasses.replace(
        config, batch=16, accumulate=accumulate, workers=WorkersConfig(count=4)
    )
    assert planned.parts(4) == accumulate
    largest = math.ceil(4 / accumulate)
    for world in (1, 2, 3):
        for share in {16 // world, math.ceil(16 / world)}:
            assert planned.parts(world) <= share
            # Three workers have a share of six where another has five: then one part more is full.
            assert math.ceil(share / planned.parts(world)) <= largest + (world == 3)
