"""What a person sees while a stage trains: a bar on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import io
import logging

import pytest

from training import progress
from training.progress import SECONDS_LEFT, Started, _Bar, _Lines


def point(step: int) -> dict[str, float]:
    return {"step": float(step), "loss": 0.5, "samples_per_second": 12.0, SECONDS_LEFT: 3725.0}


def test_a_terminal_has_one_line_with_steps_loss_and_score(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    with _Bar("pretrain") as bar:
        bar.show(Started("starting", 0, 40))
        bar.show({"step": 10.0, "val_m_j": 0.25, "val_m_f": 0.5})
        bar.show(point(20))
    last = terminal.getvalue().split("\r")[-1]
    assert "pretrain" in last and "20/40" in last
    assert "loss 0.5000" in last and "M_J 0.2500" in last


def test_a_resumed_stage_has_its_bar_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    with _Bar("pretrain") as bar:
        bar.show(Started("starting", 0, 40))
        bar.show(point(30))
        bar.show(Started("resuming after step 10", 10, 40))
        bar.show(point(12))
    assert "12/40" in terminal.getvalue().split("\r")[-1]


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="training")
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with _Lines("pretrain") as lines:
        lines.show(Started("starting", 0, 40))
        for step in range(1, 41):
            now += 1.0
            lines.show(point(step))
        lines.show({"step": 40.0, "val_m_j": 0.25, "val_m_f": 0.5})
        lines.show("a word")
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "pretrain: starting"
    assert told[1] == "pretrain: step 1 of 40, loss 0.5000, 12.0 samples/s, 1:02:05 left"
    assert [line.split(",")[0] for line in told[2:-2]] == [
        f"pretrain: step {step} of 40" for step in (11, 21, 31, 40)
    ]
    assert told[-2:] == ["pretrain: step 40, val M_J 0.2500, M_F 0.5000", "pretrain: a word"]
