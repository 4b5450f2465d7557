"""A stage from the driver's side, without Ray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.config import parse
from tests.made_corpus import write_made_corpus
from training import stage
from training.recipe import ModelConfig, TrainConfig, WorkersConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.yaml"))


class FakeCheckpoint:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    @contextmanager
    def as_directory(self) -> Iterator[str]:
        yield self.path


@dataclasses.dataclass
class FakeResult:
    checkpoint: FakeCheckpoint
    best_checkpoints: list[tuple[FakeCheckpoint, dict[str, Any]]]


def fake_result(run: Path, scores: dict[int, float], kept: list[int]) -> FakeResult:
    made = {}
    for step in scores:
        folder = run / f"step-{step:08d}"
        folder.mkdir(parents=True)
        state = {"format_version": 1, "step": step, "training_seconds": 2.0 * step}
        state["history"] = [{"step": float(s), "val_m_j": scores[s]} for s in scores if s <= step]
        (folder / "state.json").write_text(json.dumps(state))
        made[step] = FakeCheckpoint(folder)
    best = [(made[step], {"step": step, "val_m_j": scores[step]}) for step in kept]
    return FakeResult(made[max(scores)], best)


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
    scores = {3: 0.5, 6: 0.7, 9: 0.6}
    run = Path(config.output) / "a"
    monkeypatch.setattr(stage, "_fit", lambda *_: fake_result(run, scores, kept=[6]))
    summary = stage.run_stage(config)
    assert (summary["steps"], summary["best_step"], summary["val_m_j"]) == (9, 6, 0.7)
    assert summary["checkpoint"] == str(run / "step-00000006")
    assert summary["samples_per_second"] == 2.0 and len(summary["history"]) == 3


def test_a_finished_stage_is_told_again_and_another_one_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(config.output) / "a"
    monkeypatch.setattr(stage, "_fit", lambda *_: fake_result(run, {9: 0.6}, kept=[9]))
    first = stage.run_stage(config)
    monkeypatch.delattr(stage, "_fit")
    again = stage.run_stage(dataclasses.replace(config, workers=WorkersConfig(count=1)))
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    with pytest.raises(ValueError, match="another configuration or corpus"):
        stage.run_stage(dataclasses.replace(config, seed=5))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"val_split": "nowhere"}, "no split 'nowhere'"),
        ({"model": ModelConfig(name="save_huge")}, "save_huge"),
        ({"model": ModelConfig(name="save_vit_b")}, "model.sam_checkpoint"),
        ({"corpus": "/nowhere"}, "no corpus stands"),
        ({"parent": "/nowhere"}, "holds no model"),
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
    "changes", [{"steps": None}, {"epochs": 2.0}, {"stage": "a/b"}, {"batch": 1}, {"keep": 0}]
)
def test_a_configuration_that_contradicts_itself_is_refused(
    config: TrainConfig, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("entry", ["pretrain_tiny", "finetune_s4_tiny"])
def test_every_recipe_is_read_by_both_entry_points(recipe: Path, entry: str) -> None:
    config = parse(
        TrainConfig,
        ["--config", str(recipe), "--corpus", "c", "--optimizer.learning_rate", "0.5"],
        recipe=ROOT / "training" / "recipes" / f"{entry}.yaml",
    )
    assert config.optimizer.learning_rate == 0.5
    assert config.total_steps(1000) > 0
