"""What a test has a worker do before a step: each asks its recipe for the rate of every step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed

from training.step import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Gated(OptimizerConfig):
    """Workers wait before a step while there is a file of its number."""

    gates: str
    """Folder of those files."""

    def rate(self, step: int, steps: int) -> float:
        """The recipe's, once the gate is open."""
        while (Path(self.gates) / str(step)).exists():
            time.sleep(0.05)
        return super().rate(step, steps)


@dataclass(frozen=True, kw_only=True)
class ShortOfMemory(OptimizerConfig):
    """A worker has no memory for a step."""

    rank: int
    step: int
    tries: str
    """File that gets a line of each time that it was tried."""

    def rate(self, step: int, steps: int) -> float:
        """The recipe's, unless there is no memory."""
        if (torch.distributed.get_rank(), step) == (self.rank, self.step):
            with Path(self.tries).open("a") as file:
                file.write(f"{step}\n")
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return super().rate(step, steps)
