"""Pretrain SAVE on a synthetic corpus: ``python training/pretrain.py --corpus URI``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Run as a file: the rooms lie beside this one.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import main
from training.recipe import TrainConfig
from training.stage import train

RECIPE = Path(__file__).with_name("recipes") / "pretrain_tiny.yaml"

if __name__ == "__main__":
    main(train, TrainConfig, recipe=RECIPE)
