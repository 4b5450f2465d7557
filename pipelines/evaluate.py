"""A model against a corpus: M_J, M_F, and whether it listens."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch

from infra import registry
from infra.config import main, to_dict
from infra.corpus import Corpus
from infra.scratch import scratch_folder
from infra.tracking import DEFAULT_EXPERIMENT, Tracker
from training.clips import SOUNDS, can_swap
from training.evaluation import score_sounds, sound_blind
from training.listening import listening
from training.models import copy_model, load_model

log = logging.getLogger("evaluate")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored, on what."""

    model: str
    """A model folder (path or s3://), models:/name@alias, or runs:/<run id>/model."""
    corpus: str
    """The corpus to score on: a path, file:// or s3:// URI."""
    split: str = "test"
    """The split of the corpus."""
    limit: int | None = None
    """Score this many clips, spread evenly over the split; all when not given."""
    track: bool = False
    """Write the scores to MLflow."""
    register: str | None = None
    """Also register the model there under this name, with its scores, as the candidate."""
    experiment: str = DEFAULT_EXPERIMENT
    """The experiment of MLflow that they are written to."""
    tracking: str | None = None
    """sqlite:///path, http:// or https://; $MLFLOW_TRACKING_URI or sqlite:///runs/mlflow.db."""
    sam_checkpoint: str | None = None
    """SAM's published weights (path or URI), for a model that stands on them."""
    vggish_checkpoint: str | None = None
    """VGGish's published weights, likewise."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a model on a split: with its own sound, a swapped sound and silence.

    Raises:
        ValueError: the corpus has no such split, or nothing in it can be scored.
        FileNotFoundError: the model or the corpus does not exist.
    """
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"limit must be at least 1, got {config.limit}")
    corpus = Corpus.open(config.corpus)
    # Real footage may be of one class only; then there is nothing to swap.
    sounds = SOUNDS if can_swap(corpus, config.split) else ("own", "silence")
    model = load_model(
        registry.resolve(config.model, config.tracking),
        sam_checkpoint=config.sam_checkpoint,
        vggish_checkpoint=config.vggish_checkpoint,
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    by_sound = score_sounds(model, corpus, config.split, sounds=sounds, limit=config.limit)
    own = by_sound["own"]
    log.info("%s %s: m_j %.4f, m_f %.4f", corpus.uri, config.split, own["m_j"], own["m_f"])
    summary: dict[str, Any] = {
        "model": config.model,
        "corpus": corpus.uri,
        "corpus_sha256": corpus.sha256,
        "split": config.split,
        **own,
        "sound_swapped": by_sound.get("swapped"),
        "silence": by_sound["silence"],
        "sound_blind": sound_blind(corpus, config.split, limit=config.limit),
        "listening": listening(model, corpus, config.split, limit=config.limit),
        "seconds": round(time.monotonic() - started, 2),
    }
    if config.track or config.register:
        summary |= _write(config, corpus, summary)
    return summary


def _write(config: EvaluateConfig, corpus: Corpus, summary: dict[str, Any]) -> dict[str, Any]:
    """Write the scores to a run of their own, and register the model if that is asked for."""
    tracker = Tracker(config.tracking, config.experiment)
    kind = corpus.manifest["kind"]
    written: dict[str, Any] = {}
    with tracker.run(f"evaluate {config.split}") as run:
        run.log_config(to_dict(config))
        run.log_corpus(corpus, name=kind, context=config.split)
        run.log_scores({config.split: summary})
        written["run_id"] = run.id
        if config.register:
            with scratch_folder("model") as temporary:
                folder = registry.resolve(config.model, config.tracking)
                copy_model(folder, temporary)
                run.log_model(temporary)
            evaluation = registry.Evaluation(
                corpus=corpus.uri,
                corpus_sha256=corpus.sha256,
                split=config.split,
                scores={key: summary[key] for key in ("m_j", "m_f")},
            )
            name = registry.evaluation_name(kind, config.split)
            written["evaluation"] = name
            written["version"] = registry.register(
                tracker.client, name=config.register, run_id=run.id, evaluations={name: evaluation}
            )
    return written


if __name__ == "__main__":
    main(evaluate, EvaluateConfig)
