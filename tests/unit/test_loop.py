"""What a worker's loop makes of steps that fail: what may pass, what is hopeless, what is told."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
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
    run.device = torch.device("cpu")
    run.accounts = Accounts(run.device, batch=4, peak=None)
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
    with pytest.raises(loop.Hopeless if is_hopeless else torch.OutOfMemoryError):
        loop.train({"config": config, "board": board})
    assert ("2 GiB more" in board.reason) == is_hopeless


def test_what_is_wrong_with_the_data_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: Any) -> None:
        raise ValueError("Caught ValueError in a process.\ntrain/7: its mask is damaged")

    board = Board()
    monkeypatch.setattr(loop, "_Run", damaged)
    with pytest.raises(loop.Hopeless):
        loop.train({"config": None, "board": board})
    assert board.reason == "train/7: its mask is damaged"


def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise ConnectionError("s3://bucket/shard.tar cannot be reached")

    def restarted(*_: Any) -> None:
        # What torch says in a step from which Ray has taken the group.
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
        raise ValueError("Default process group has not been initialized")

    board = Board()
    for failing, error in ((away, ConnectionError), (restarted, ValueError)):
        monkeypatch.setattr(loop, "_Run", failing)
        with pytest.raises(error) as raised:
            loop.train({"config": None, "board": board})
        assert not isinstance(raised.value, loop.Hopeless) and not board.reason


def test_a_worker_that_does_not_see_the_output_refuses_to_train(tmp_path: Path) -> None:
    mark = tmp_path / "config.json"
    with pytest.raises(loop.Hopeless, match=r"does not see .*config.json: give --output a place"):
        run_of("fp32", Board())._look_for(str(mark))
    mark.touch()
    run_of("fp32", Board())._look_for(str(mark))


def test_a_checkpoint_without_a_score_is_left_out_while_one_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board()
    run = run_of("fp32", board)
    run.noticed = set()
    run.store.stays_busy = lambda seconds: seconds > 0
    monkeypatch.delattr(loop.checkpoint, "gather")
    run._save(5)
    assert board.posted == ["no checkpoint at step 5: the one before is still being written"]


def fall_behind(rank: int, meeting: Path, told: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    run = run_of("fp32", Board())
    pace = {"samples_per_second": 1.0, "data_wait": rank * 0.5, "memory_gib": 3.0 - rank}
    told.put((rank, run._of_the_slowest(pace)))
    torch.distributed.destroy_process_group()


def test_the_longest_wait_and_the_largest_memory_of_all_workers_are_told(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    ranks = [
        context.Process(target=fall_behind, args=(rank, tmp_path / "meeting", told))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    found = dict(told.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert found[0] == {"samples_per_second": 1.0, "data_wait": 0.5, "memory_gib": 3.0}
    assert found[1] == found[0]


def test_fp16_that_overflows_for_ever_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*_: Any, **__: Any) -> None:
        # The words of deepspeed/runtime/fp16/loss_scaler.py.
        raise Exception("Current loss scale already at minimum - cannot decrease scale anymore.")

    monkeypatch.setattr(loop, "take_batch", overflow)
    with pytest.raises(loop.Hopeless, match="fp16 overflows at step 4 however little"):
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
    with pytest.raises(loop.Hopeless, match=f"the {what} is no finite number at step 1"):
        run._log(1, losses(loss))
