"""Why workers are started again is told, and a start that always fails ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    ReschedulingState,
    RestartingState,
    RunningState,
    TrainControllerState,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from infra.errors import JobFailed
from training.checkpoint_store import CheckpointStore
from training.failures import Failures, Hopeless, what_failed

START_FAILED = ReschedulingState(ControllerError(WorkerGroupStartupFailedError("it died")))
WAITING = ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
LOST = RestartingState(WorkerGroupError("all", {0: OSError("the bucket is gone")}))


class Heard:
    """A board that keeps what is posted."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def post(self, item: Any) -> None:
        self.said.append(item)


def hear(*states: TrainControllerState, checkpoints: str = "/nowhere", most: int = 2) -> list[Any]:
    board = Heard()
    failures = Failures(board, checkpoints=checkpoints, most=most)  # type: ignore[arg-type]
    for state in states:
        failures.after_controller_state_update(RunningState(), state)
    return board.said


def dead(text: str) -> WorkerHealthCheckFailedError:
    died = ActorDiedError()
    died.error_msg = f"The actor died unexpectedly before finishing this task.\n{text}"
    return WorkerHealthCheckFailedError("a worker is unhealthy", died)


@pytest.mark.parametrize("failure", [START_FAILED, LOST])
def test_failures_in_a_row_end_the_stage(failure: TrainControllerState) -> None:
    assert len(hear(*[failure] * 2)) == 2
    with pytest.raises(JobFailed, match="failed more than 2 times without a newer checkpoint, at"):
        hear(*[failure] * 3)


def test_each_newer_checkpoint_makes_room_for_as_many_failures(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=1)
    board = Heard()
    failures = Failures(board, checkpoints=store.uri, most=2)  # type: ignore[arg-type]
    for step in range(10):
        store.save(lambda folder: (folder / "state.json").write_text("{}"), step, None)
        store.wait()
        for _ in range(2):
            failures.after_controller_state_update(RunningState(), LOST)
    assert len(board.said) == 20
    with pytest.raises(JobFailed):
        failures.after_controller_state_update(RunningState(), LOST)


def test_nodes_that_are_taken_away_with_notice_do_not_count() -> None:
    notice = PreemptionInfo(deadline_ms=0, preempted_node_to_ranks={"a": [1]})
    said = hear(*[RestartingState(PreemptionError(notice))] * 9)
    assert said == ["a node was taken away: starting workers again"] * 9


def test_a_failure_that_would_only_come_again_ends_the_stage_at_once() -> None:
    error = WorkerGroupError("all", {0: OSError("lost"), 1: Hopeless("the loss is no number")})
    with pytest.raises(JobFailed, match=r"^the loss is no number$"):
        hear(RestartingState(error))


def test_waiting_for_room_is_no_failure() -> None:
    assert hear(*[WAITING] * 50) == []


def test_the_end_is_told_by_the_driver_alone() -> None:
    assert hear(ErroredState(WorkerGroupError("all", {0: OSError("gone")}))) == []


def test_the_worker_that_died_is_named_before_those_that_missed_it() -> None:
    gone = dead("The actor is dead because its worker process has died. Worker exit type: ...")
    error = WorkerGroupError("all", {0: RuntimeError("Connection closed by peer"), 1: gone})
    (said,) = hear(RestartingState(error))
    assert said == "worker 1 failed (its worker process has died): starting workers again"


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OSError("Traceback ...\nthe bucket is gone\n"), "OSError: the bucket is gone"),
        (ValueError(), "ValueError()"),
        (
            dead(
                "The actor is dead because its worker process has died. Worker exit type: "
                "NODE_OUT_OF_MEMORY Worker exit detail: ..."
            ),
            "its host ran low on memory",
        ),
        (dead("The actor died because its node has died. Node Id: 0a"), "(its node has died)"),
        (dead("something of Ray's"), "died unexpectedly"),
    ],
)
def test_a_failure_is_told_in_one_line(failure: Exception, told: str) -> None:
    text = what_failed(WorkerGroupError("all", {0: failure}))
    assert told in text and "\n" not in text
