"""What steps cost: only what is training is counted, and only what is known is claimed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from training import accounts
from training.accounts import matrix_peak

CPU = torch.device("cpu")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(accounts, "time", clock)
    return clock


def test_waiting_for_data_and_pauses_are_told_apart_from_steps(clock: Clock) -> None:
    def slow() -> Iterator[int]:
        for item in range(3):
            clock.now += 1.0
            yield item

    kept = accounts.Accounts(CPU, batch=4, peak=None)
    for _ in kept.waiting_for(slow()):
        clock.now += 3.0
        with kept.paused():
            clock.now += 50.0
            kept.spent()  # asked in the middle, as a checkpoint does
            clock.now += 50.0
    told = kept.take(3)
    assert told["data_wait"] == pytest.approx(0.25)
    assert told["samples_per_second"] == pytest.approx(1.0)
    assert kept.spent() == pytest.approx(12.0)
    assert told["memory_gib"] > 0
    # Nothing is claimed of hardware that is not known.
    assert "matrix_peak" not in told


def test_each_point_is_of_the_steps_since_the_last_one(clock: Clock) -> None:
    kept = accounts.Accounts(CPU, batch=2, peak=None)
    clock.now += 10.0
    kept.take(1)
    clock.now += 4.0
    assert kept.take(2)["samples_per_second"] == pytest.approx(1.0)
    assert kept.spent() == pytest.approx(14.0)


def test_the_share_of_the_matrix_peak_is_that_of_the_products_of_a_step(clock: Clock) -> None:
    kept = accounts.Accounts(CPU, batch=1, peak=1e9)
    matrix = torch.ones(100, 100)
    for _ in range(2):
        with kept.counted():
            matrix @ matrix
    clock.now += 1.0
    assert kept.take(2)["matrix_peak"] == pytest.approx(2 * 2e6 / 1e9)


def test_what_is_compiled_is_compiled_although_its_first_step_was_counted() -> None:
    kept = accounts.Accounts(CPU, batch=1, peak=1e9)
    counter = CompileCounter()
    weight_NN = torch.ones(100, 100)
    step = torch.compile(lambda value_NN: value_NN @ weight_NN, backend=counter)
    for _ in range(2):
        with kept.counted():
            step(weight_NN)
    assert counter.frame_count == 1
    assert kept.take(1)["matrix_peak"] > 0


def test_there_is_no_peak_of_a_processor() -> None:
    assert matrix_peak(CPU, "bf16") is None
