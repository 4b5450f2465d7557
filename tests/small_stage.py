"""A small corpus and a small stage on it, which trains in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tests.made_corpus import write_made_corpus
from training.recipe import ModelConfig, TrainConfig
from training.step import OptimizerConfig

STEPS = 12


def write_small_corpus(folder: Path) -> None:
    """``<folder>/corpus``."""
    write_made_corpus(
        str(folder / "corpus"), samples={"train": 12, "val": 4}, size=64, first_mask_only=True
    )


def small_stage(folder: Path, name: str, **changes: Any) -> TrainConfig:
    """A stage of ``STEPS`` steps, kept in ``<folder>/runs``."""
    config = TrainConfig(
        stage=name,
        corpus=str(folder / "corpus"),
        output=str(folder / "runs"),
        model=ModelConfig(image_size=64),
        batch=5,
        steps=STEPS,
        class_weight=0.5,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=3),
        validate_every=4,
        log_every=1,
    )
    return dataclasses.replace(config, **changes)
