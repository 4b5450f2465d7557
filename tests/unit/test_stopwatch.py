"""Time is booked on what ran, and taken once."""

from __future__ import annotations

import pytest

from infra import stopwatch


def test_inner_time_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(second) for second in (0, 1, 4, 9, 20, 22))
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: next(now))
    stopwatch.take()
    with stopwatch.time("compose"), stopwatch.time("decode"):
        pass
    with stopwatch.time("decode"):
        pass
    assert stopwatch.take() == {"compose": 1 + 5, "decode": 3 + 2}
    assert stopwatch.take() == {}


def test_a_block_that_fails_is_booked_too() -> None:
    stopwatch.take()
    with pytest.raises(ZeroDivisionError), stopwatch.time("encode"):
        _ = 1 // 0
    with stopwatch.time("write"):
        pass
    assert list(stopwatch.take()) == ["encode", "write"]
