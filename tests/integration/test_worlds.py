"""Engines and checkpoints do not depend on the number of ranks, ZeRO's stage or accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import worlds

pytestmark = pytest.mark.integration

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, dict[str, Any]]]:
    """What two ranks did: undisturbed, and up to a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("worlds")
    scenarios: dict[Any, dict[str, Any]] = {"whole": {"steps": [0, 6]}}
    for stage in STAGES:
        scenarios[stage] = {"steps": [0, 3], "zero_stage": stage, "save": str(folder / str(stage))}
    scenarios["in parts"] = {"steps": [0, 3], "zero_stage": 1, "accumulate": 3}
    # Three samples in two parts.
    scenarios["in two"] = {"steps": [0, 3], "accumulate": 2}
    scenarios["again"] = {
        "steps": [0, 3],
        "zero_stage": 1,
        "workers": {"activation_checkpointing": True},
    }
    less_memory = {"precision": "bf16", "accumulate": 2, "steps": [0, 6]}
    scenarios["bf16"] = {**scenarios["again"], **less_memory}
    found = worlds.run(2, list(scenarios.values()))
    return folder, dict(zip(scenarios, found, strict=True))


def test_ranks_that_split_a_batch_have_the_gradients_of_one_with_all_of_it(
    pair: tuple[Path, dict[Any, dict[str, Any]]],
) -> None:
    alone, parted = worlds.run(1, [{"steps": [0, 3]}, {"steps": [0, 3], "accumulate": 2}])
    # AdamW and clipping hide a wrong scale of the gradient from the weights, not from its norm.
    compared = {name: pair[1][name] for name in (*STAGES, "in parts", "in two")}
    for name, found in {**compared, "alone in parts": parted}.items():
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5), name
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4), name
        assert found["direction"] == pytest.approx(alone["direction"], abs=1e-3), name
        assert found["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-5), name


def test_computing_activations_again_changes_nothing(
    pair: tuple[Path, dict[Any, dict[str, Any]]],
) -> None:
    again, kept = pair[1]["again"], pair[1][1]
    assert again["losses"] == pytest.approx(kept["losses"], rel=1e-5)
    assert again["weights"] == pytest.approx(kept["weights"], rel=1e-3, abs=1e-4)


def test_bf16_in_parts_with_activations_computed_again_learns_as_fp32_does(
    pair: tuple[Path, dict[Any, dict[str, Any]]],
) -> None:
    found, right = pair[1]["bf16"]["losses"], pair[1]["whole"]["losses"]
    # What the steps before it taught moves a loss by far more.
    assert found == pytest.approx(right, rel=0.01)


def test_a_compiled_encoder_has_the_losses_of_a_plain_one() -> None:
    plain, compiled = worlds.run(
        1, [{"steps": [0, 3]}, {"steps": [0, 3], "workers": {"compile": True}}]
    )
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert compiled["norms"] == pytest.approx(plain["norms"], rel=1e-4)


def test_what_is_taken_up_is_what_was_written_and_nothing_is_compiled(
    pair: tuple[Path, dict[Any, dict[str, Any]]], tmp_path: Path
) -> None:
    folder, found = pair
    ways = [(0, 1), (1, 0), (2, 3), (3, 2)]
    scenarios = [
        {"steps": [3, 3], "zero_stage": after, "restore": str(folder / str(before))}
        for before, after in ways
    ]
    taken_up = worlds.run(1, scenarios, TORCH_EXTENSIONS_DIR=str(tmp_path))
    for (before, after), state in zip(ways, taken_up, strict=True):
        for key in ("weights", "exp_avg", "exp_avg_sq", "optimizer_steps"):
            assert state[key] == found[before][key], (before, after, key)
        assert state["optimizer_steps"] == 3.0
    # A process killed while it compiles leaves a lock on which every later start waits.
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("world", [1, 3])
def test_a_checkpoint_of_two_ranks_goes_on_in_any_world_and_zero_stage(
    pair: tuple[Path, dict[Any, dict[str, Any]]], world: int
) -> None:
    folder, found = pair
    ways = [(0, 1), (1, 0), (2, 3), (3, 2), (3, 3)]
    resumed = worlds.run(
        world,
        [
            {"steps": [3, 6], "zero_stage": after, "restore": str(folder / str(before))}
            for before, after in ways
        ],
    )
    for way, gone_on in zip(ways, resumed, strict=True):
        assert gone_on["losses"] == pytest.approx(found["whole"]["losses"][3:], abs=1e-5), way


def test_two_then_one_then_three_ranks_have_the_losses_of_an_undisturbed_run(
    pair: tuple[Path, dict[Any, dict[str, Any]]], tmp_path: Path
) -> None:
    folder, found = pair
    middle = {"steps": [3, 4], "zero_stage": 2, "restore": str(folder / "3")}
    (one,) = worlds.run(1, [{**middle, "save": str(tmp_path / "one")}])
    last = {"steps": [4, 6], "zero_stage": 3, "restore": str(tmp_path / "one")}
    (three,) = worlds.run(3, [last])
    losses = found[3]["losses"] + one["losses"] + three["losses"]
    assert losses == pytest.approx(found["whole"]["losses"], abs=1e-5)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_bf16_run_goes_on_from_its_full_precision_weights(tmp_path: Path, stage: int) -> None:
    common = {"zero_stage": stage, "precision": "bf16"}
    whole, half = worlds.run(
        2,
        [
            {**common, "steps": [0, 4]},
            {**common, "steps": [0, 2], "save": str(tmp_path / "half")},
        ],
    )
    (rest,) = worlds.run(2, [{**common, "steps": [2, 4], "restore": str(tmp_path / "half")}])
    assert half["losses"] + rest["losses"] == whole["losses"]
    assert rest["weights"] == whole["weights"]
