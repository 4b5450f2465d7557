"""Stages one after the other, each from the best checkpoint of the one before.

::

    python training/chain.py --config training/recipes/chain_synthetic_s4_ms3.yaml \\
      --corpora.synthetic URI --corpora.s4 URI --corpora.ms3 URI --output URI

Run again, a chain goes on where it was: a finished stage only returns its summary, and the one that
was interrupted resumes at its newest checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the rooms lie beside this one.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import main, parse
from infra.corpus import Corpus
from training.recipe import TrainConfig
from training.stage import train

RECIPES = Path(__file__).with_name("recipes")
RECIPE = RECIPES / "chain_tiny.yaml"


@dataclass(frozen=True, kw_only=True)
class Link:
    """One stage of a chain: a recipe and a corpus."""

    recipe: str
    """File of the stage's recipe in training/recipes, or an absolute path."""
    corpus: str
    """Name of its corpus in ``corpora``."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields that differ from the recipe, by their dotted names, ``stage`` among them."""


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """A chain of stages; what is None or not said stands in their recipes."""

    stages: tuple[Link, ...]
    """The stages, in their order."""
    corpora: dict[str, str] = field(default_factory=dict)
    """Path or URI of each corpus that the stages name: ``--corpora.s4 s3://bucket/s4``."""
    parent: str | None = None
    """Model that the first stage starts from; see ``parent`` of a stage."""
    output: str = "runs/training"
    """Folder or URI under which all stages keep their checkpoints."""
    seed: int | None = None
    """Of every stage."""
    workers: int | None = None
    """Workers of every stage."""
    sam_checkpoint: str | None = None
    """Path or URI of the official SAM checkpoint, for every stage."""
    vggish_checkpoint: str | None = None
    """Path or URI of the VGGish checkpoint, for every stage."""
    tracking: str | None = None
    """MLflow server that gets a run of each stage; MLFLOW_TRACKING_URI by default."""


def chain(config: ChainConfig) -> dict[str, Any]:
    """Train stages one after the other, each from the best checkpoint of the one before.

    Returns:
        ``stages``: the summaries of ``training.stage.train``, in order; ``checkpoint``: the best
        one of the last stage.

    Raises:
        FileNotFoundError, ValueError: a stage cannot be run; told before the first one starts
            wherever it can be known by then.
    """
    stages = read_stages(config)
    _check(stages)
    summaries: list[dict[str, Any]] = []
    for stage in stages:
        parent = summaries[-1]["checkpoint"] if summaries else config.parent
        summaries.append(train(replace(stage, parent=parent)))
    return {"stages": summaries, "checkpoint": summaries[-1]["checkpoint"]}


def read_stages(config: ChainConfig) -> list[TrainConfig]:
    """The stages of a chain, each as its recipe and the chain have it, without their parents."""
    told = {
        "output": config.output,
        "seed": config.seed,
        "workers.count": config.workers,
        "model.sam_checkpoint": config.sam_checkpoint,
        "model.vggish_checkpoint": config.vggish_checkpoint,
        "tracking": config.tracking,
    }
    shared = {name: value for name, value in told.items() if value is not None}
    named = {link.corpus for link in config.stages}
    unknown, missing = sorted(config.corpora.keys() - named), sorted(named - config.corpora.keys())
    if unknown:
        raise ValueError(f"no stage uses corpora.{unknown[0]}: they use {', '.join(sorted(named))}")
    if missing:
        flags = ", ".join(f"--corpora.{name}" for name in missing)
        raise ValueError(f"the stages need corpora: give {flags}, each with a path or URI")
    return [
        read_stage(link.recipe, {"corpus": config.corpora[link.corpus], **shared, **link.changes})
        for link in config.stages
    ]


def read_stage(recipe: str, changes: Mapping[str, Any]) -> TrainConfig:
    """A stage as a recipe has it, but for some fields.

    Args:
        recipe: its file in training/recipes, or an absolute path.
        changes: values by dotted names of fields.
    """
    flags = [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in changes.items()
    ]
    return parse(TrainConfig, [f"--config={RECIPES / recipe}", *flags])


def _check(stages: list[TrainConfig]) -> None:
    """What would end the chain after days is told at once."""
    if not stages:
        raise ValueError("the chain has no stages: give it a recipe with at least one")
    first = stages[0]
    names = [stage.stage for stage in stages]
    for number, stage in enumerate(stages):
        if stage.stage in names[:number]:
            raise ValueError(
                f"two stages are called {stage.stage}: give one changes: {{stage: another_name}}"
            )
        if stage.model != first.model:
            raise ValueError(
                f"{stage.stage} has another model than {first.stage}, from which it descends: "
                f"{stage.model}, not {first.model}"
            )
        corpus = Corpus.open(stage.corpus)
        for split in (stage.train_split, stage.val_split):
            corpus.table(split)


if __name__ == "__main__":
    main(chain, ChainConfig, recipe=RECIPE)
