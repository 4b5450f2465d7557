"""What a worker's loop makes of steps that fail: what may pass, what is hopeless, what is told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed

from tests.worlds import made_batch
from training import loop
from training.accounts import Accounts
from training.checkpoint import Progress
from training.recipe import TrainConfig, WorkersConfig


class Board:
    """What was posted, and why it was given up."""

    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.reason = ""

    def post(self, item: Any) -> None:
        self.posted.append(item)

    def give_up(self, reason: str) -> None:
        self.reason = reason

    def given_up(self) -> str:
        return self.reason


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A world of this process."""
    meeting = tmp_path_factory.mktemp("world") / "meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def run_of(precision: str, board: Board) -> Any:
    """A run between two points of its curves, without an engine."""
    run: Any = object.__new__(loop._Run)
    run.config = TrainConfig(
        stage="a", corpus="", steps=9, batch=4, precision=precision, workers=WorkersConfig(count=1)
    )
    run.board, run.rank, run.world, run.steps = board, 0, 1, 9
    run.progress, run.history, run.norms, run.mean = Progress(), [], [], None
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    run.engine, run.learner = SimpleNamespace(optimizer=optimizer), None
    run.store = SimpleNamespace(uri="runs/a/checkpoints")
    run.accounts = Accounts(torch.device("cpu"), batch=4, peak=None)
    return run


def losses(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"loss": torch.tensor(value)} for value in values]


@pytest.mark.parametrize(("world", "is_hopeless"), [(4, True), (2, False)])
def test_a_memory_error_is_hopeless_only_with_all_the_workers_asked_for(
    world: int, is_hopeless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("2 GiB more")

    board = Board()
    config = TrainConfig(stage="a", corpus="", steps=1, batch=8, workers=WorkersConfig(count=4))
    context = SimpleNamespace(get_world_size=lambda: world)
    monkeypatch.setattr(loop, "_Run", full)
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: context)
    with pytest.raises(torch.OutOfMemoryError):
        loop.train({"config": config, "board": board})
    assert ("2 GiB more" in board.reason) == is_hopeless


def test_fp16_that_overflows_for_ever_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*_: Any, **__: Any) -> None:
        # The words of deepspeed/runtime/fp16/loss_scaler.py.
        raise Exception("Current loss scale already at minimum - cannot decrease scale anymore.")

    monkeypatch.setattr(loop, "take_batch", overflow)
    with pytest.raises(loop._Hopeless, match="fp16 overflows at step 4 however little"):
        run_of("fp16", Board())._step(3, made_batch(3, 32))


def test_steps_that_fp16_skipped_are_in_no_mean() -> None:
    board = Board()
    run = run_of("fp16", board)
    run.norms = [math.inf, 2.0, 4.0]
    run._log(3, losses(math.inf, 1.0, 3.0))
    (point,) = board.posted
    assert (point["loss"], point["grad_norm"]) == (2.0, 3.0)
    run.norms = [math.inf]
    run._log(4, losses(math.nan))
    assert "loss" not in board.posted[-1] and board.posted[-1]["step"] == 4.0
    assert all(math.isfinite(value) for value in board.posted[-1].values())


@pytest.mark.parametrize(
    ("precision", "norm", "loss", "what"),
    [
        ("fp32", math.inf, 1.0, "gradient"),
        ("bf16", math.nan, 1.0, "gradient"),
        ("fp32", 1.0, math.nan, "loss"),
        ("fp16", 1.0, math.inf, "loss"),
    ],
)
def test_what_is_no_finite_number_stops_the_stage(
    precision: str, norm: float, loss: float, what: str
) -> None:
    run = run_of(precision, Board())
    run.norms = [norm]
    with pytest.raises(loop._Hopeless, match=f"the {what} is no finite number at step 1"):
        run._log(1, losses(loss))
