"""Why Ray Train starts workers again, told as it happens, and when it is not to."""

from __future__ import annotations

import re
from contextlib import suppress

from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    RestartingState,
    TrainControllerState,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError

from infra.errors import JobFailed
from training.checkpoint_store import CheckpointStore
from training.progress import Board


class Hopeless(ValueError):
    """What would only come again."""


class Failures(ControllerCallback):
    """Tells why workers are started again and how often that may be, in Ray's controller.

    Ray itself counts failures over the whole life of a run, and workers that die before they train
    not at all. A stage of weeks may lose many nodes; what it must not do is fail at one place for
    ever. So failures count from the newest checkpoint, and with a newer one from nothing again.
    Nodes that are taken away with notice, and waiting for room, are no failures.

    Args:
        checkpoints: URI of the stage's checkpoints.
        most: failures in a row without a newer checkpoint; one more ends the stage.
    """

    def __init__(self, board: Board, *, checkpoints: str, most: int) -> None:
        self._board = board
        self._checkpoints = checkpoints
        self._most = most
        self._failures = 0
        self._newest = -1

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Ray's hook: the controller is about to start workers again, or something else.

        Raises:
            JobFailed: it is not to. Whatever a hook raises ends the controller and is what the
                driver is told.
        """
        if not isinstance(current_state, RestartingState | ReschedulingState):
            return
        error = current_state.training_failed_error
        for failure in _of_workers(error):
            if isinstance(failure, Hopeless):
                raise JobFailed(str(failure))
        if isinstance(error, ControllerError) and isinstance(
            error.controller_failure, WorkerGroupStartupTimeoutError
        ):
            return  # They wait for room, which the driver tells of.
        if not _is_notice(error):
            self._count(error)
        self._board.post(f"{what_failed(error)}: starting workers again")

    def _count(self, error: BaseException) -> None:
        # Where storage does not answer, nobody can have written a newer one.
        with suppress(OSError):
            newest = CheckpointStore(self._checkpoints, keep=0).newest_step()
            if newest > self._newest:
                self._newest, self._failures = newest, 0
        self._failures += 1
        if self._failures > self._most:
            raise JobFailed(
                f"workers failed more than {self._most} times without a newer checkpoint, at last: "
                f"{what_failed(error)}"
            )


def what_failed(error: BaseException) -> str:
    """What led to a failure of Ray Train, in one line."""
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, JobFailed):
            return str(cause)
        return f"Ray Train could not start a worker ({_in_a_line(cause.__cause__ or cause)})"
    if isinstance(error, PreemptionError):
        return "a node was taken away"
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return _in_a_line(error)
    # When one is gone, the others fail as well, of its silence.
    found = error.worker_failures
    rank = min(found, key=lambda rank: (not _is_dead(found[rank]), rank))
    return f"worker {rank} failed ({_in_a_line(found[rank])})"


def _of_workers(error: BaseException) -> list[Exception]:
    return list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []


def _is_notice(error: BaseException) -> bool:
    """Whether it is what Ray counts as the end of a node that was announced."""
    below = [_below(failure) for failure in _of_workers(error)]
    return isinstance(error, PreemptionError) or any(
        isinstance(failure, RayActorError) and failure.preempted for failure in below
    )


def _is_dead(error: BaseException) -> bool:
    return isinstance(_below(error), RayActorError)


def _below(error: BaseException) -> BaseException:
    """What a check of a worker's health met."""
    if isinstance(error, WorkerHealthCheckFailedError):
        return error.health_check_failure
    return error


def _in_a_line(error: BaseException) -> str:
    below = _below(error)
    text = str(below).strip()
    if not isinstance(below, RayActorError):
        return f"{type(below).__name__}: {text.splitlines()[-1].strip()}" if text else repr(below)
    if "NODE_OUT_OF_MEMORY" in text:
        return "its host ran low on memory, and Ray ended it"
    if below.preempted:
        return "its node was taken away"
    found = re.search("(?:is dead|died) because its (.+?)[.\n]", text)
    return f"its {found[1]}" if found else text.splitlines()[0]
