"""What workers post reaches the driver through a real actor."""

from __future__ import annotations

import time

import pytest

from training import progress
from training.progress import Item, Point

pytestmark = pytest.mark.integration


def test_no_point_is_lost_when_an_answer_comes_late(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LateOnce(progress._Actor):
        """Its first answer with something in it takes long."""

        late = False

        def take(self) -> list[Item]:
            taken = super().take()
            if taken and not self.late:
                self.late = True
                time.sleep(1.5)
            return taken

    monkeypatch.setattr(progress, "_Actor", LateOnce)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.2)
    points: list[Point] = []
    with progress.follow(
        "slow", on_point=points.append, on_file=lambda *_: None, must_stop=str
    ) as board:
        board.given_up()  # the actor runs
        board.post({"step": 1.0, "val_m_j": 0.5, "val_m_f": 0.5})
        time.sleep(0.6)
        # While the answer with the first one is late; nobody asks anew before the end.
        board.post({"step": 2.0, "val_m_j": 0.6, "val_m_f": 0.6})
        monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 30.0)
    assert [point["step"] for point in points] == [1.0, 2.0]
