"""``training/pretrain.py``, whose steps a test holds up, and which soon sees that a node has come.

Run with the folder of the gates (``tests.scripted_steps.Gated``), and then as the job itself.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import ray.train

from infra.config import main
from tests.scripted_steps import Gated
from training.pretrain import RECIPE
from training.recipe import TrainConfig
from training.stage import train

GATES = sys.argv.pop(1)


def gated(config: TrainConfig) -> dict[str, Any]:
    """Train one stage, held up at its gates."""
    return train(replace(config, optimizer=Gated(**vars(config.optimizer), gates=GATES)))


if __name__ == "__main__":
    # By default Ray looks once a minute.
    ray.train.ScalingConfig = partial(
        ray.train.ScalingConfig, elastic_resize_monitor_interval_s=1.0
    )
    main(gated, TrainConfig, recipe=RECIPE)
