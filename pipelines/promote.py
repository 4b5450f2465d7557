"""The gate between ``candidate`` and ``champion``.

A candidate becomes champion when its evaluation was saved with it, its score is at least the
champion's (less ``epsilon``) on the very same data, its files are the ones that were registered,
and it loads and answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from infra import registry
from infra.config import main
from infra.tracking import open_client
from model.vggish import EXAMPLE_FRAMES, MEL_BANDS
from training.models import load_model


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """What is promoted, and what it has to show."""

    name: str = "save"
    """The registered model."""
    evaluation: str = "ms3_test"
    """The saved evaluation that decides."""
    metric: str = "m_j"
    """Its score that decides; higher is better."""
    epsilon: float = 0.0
    """How far the candidate may stay below the champion."""
    tracking: str | None = None
    """sqlite:///path, http:// or https://; $MLFLOW_TRACKING_URI or sqlite:///runs/mlflow.db."""
    sam_checkpoint: str | None = None
    """SAM's published weights (path or URI), for a model that stands on them."""
    vggish_checkpoint: str | None = None
    """VGGish's published weights, likewise."""
    dry_run: bool = False
    """Ask the gate, but move no alias."""


def promote(config: PromoteConfig) -> dict[str, Any]:
    """Give the registered model's candidate the alias champion, if the gate holds.

    Raises:
        ValueError: the gate does not hold; the sentence names what failed.
    """
    if config.epsilon < 0:
        raise ValueError(f"epsilon must not be negative, got {config.epsilon}")
    client = open_client(config.tracking)
    candidate = registry.version_of(client, config.name, registry.CANDIDATE)
    if candidate is None:
        raise ValueError(
            f"{config.name!r} has no version with the alias 'candidate' at {client.tracking_uri}: "
            "register one first"
        )
    champion = registry.version_of(client, config.name, registry.CHAMPION)
    if champion is not None and champion.version == candidate.version:
        raise ValueError(
            f"version {candidate.version} of {config.name!r} is the champion already: "
            "nothing to promote"
        )
    gate = compare(config, candidate, champion)
    smoke_test(config, client, candidate)
    summary: dict[str, Any] = {
        "name": config.name,
        "version": int(candidate.version),
        "previous_champion": int(champion.version) if champion else None,
        "gate": gate,
        "promoted": False,
    }
    if not config.dry_run:
        registry.promote(client, config.name, candidate, gate=gate)
        summary["promoted"] = True
    return summary


def compare(
    config: PromoteConfig, candidate: ModelVersion, champion: ModelVersion | None
) -> dict[str, Any]:
    """What both scored on the same data; the first champion needs nothing but a score.

    Raises:
        ValueError: a score is missing, was measured on other data, or is too low.
    """
    score, evaluation = _score(config, candidate)
    gate: dict[str, Any] = {
        "evaluation": config.evaluation,
        "corpus_sha256": evaluation.corpus_sha256,
        "split": evaluation.split,
        "metric": config.metric,
        "epsilon": config.epsilon,
        "candidate": score,
        "champion": None,
    }
    if champion is None:
        return gate
    best, earlier = _score(config, champion)
    same = ("corpus_sha256", "split")
    if any(getattr(evaluation, part) != getattr(earlier, part) for part in same):
        raise ValueError(
            f"candidate {candidate.version} and champion {champion.version} were scored on "
            f"different data for {config.evaluation} ({_data(evaluation)} and {_data(earlier)}): "
            "evaluate both on one corpus"
        )
    if score < best - config.epsilon:
        raise ValueError(
            f"candidate {candidate.version} has {config.metric} {score:.4f} on "
            f"{config.evaluation}, below champion {champion.version} with {best:.4f} "
            f"less epsilon {config.epsilon:g}"
        )
    return {**gate, "champion": best}


def _score(config: PromoteConfig, version: ModelVersion) -> tuple[float, registry.Evaluation]:
    evaluation = registry.evaluation_of(version, config.evaluation)
    if evaluation is None:
        raise ValueError(
            f"version {version.version} of {config.name!r} was registered without the evaluation "
            f"{config.evaluation!r}: evaluate it before it is registered"
        )
    score = evaluation.scores.get(config.metric)
    if score is None or not math.isfinite(score):
        raise ValueError(
            f"the evaluation {config.evaluation!r} of version {version.version} has no finite "
            f"{config.metric!r}, only {', '.join(sorted(evaluation.scores)) or 'nothing'}"
        )
    return score, evaluation


def _data(evaluation: registry.Evaluation) -> str:
    return f"{evaluation.corpus_sha256[:12]} {evaluation.split}"


def smoke_test(config: PromoteConfig, client: MlflowClient, version: ModelVersion) -> None:
    """Load the version and answer two random frames.

    Raises:
        ValueError: its files are not the ones registered, it does not load, or its answer is of
            the wrong shape or not finite.
    """
    what = f"version {version.version} of {version.name!r}"
    try:
        folder = registry.folder_of(client, str(version.run_id), str(version.source))
        if registry.model_sha256(folder) != version.tags.get("model_sha256"):
            raise ValueError("its files changed since it was registered")
        model = load_model(
            folder,
            sam_checkpoint=config.sam_checkpoint,
            vggish_checkpoint=config.vggish_checkpoint,
        )
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{what} does not load: {error}") from None
    side = model.config.image_size
    random = torch.Generator().manual_seed(0)
    image_B3SS = torch.randn(2, 3, side, side, generator=random).clamp(-2, 2)
    log_mel_B1MF = torch.randn(2, 1, EXAMPLE_FRAMES, MEL_BANDS, generator=random)
    with torch.inference_mode():
        logits_B1SS = model(image_B3SS, log_mel_B1MF)
    if logits_B1SS.shape != (2, 1, side, side) or not bool(logits_B1SS.isfinite().all()):
        raise ValueError(f"{what} fails smoke inference: {_fault(logits_B1SS, side)}")


def _fault(logits: torch.Tensor, side: int) -> str:
    if logits.shape != (2, 1, side, side):
        return f"its answer has the shape {list(logits.shape)}, not {[2, 1, side, side]}"
    return "its answer holds NaN or infinite values"


if __name__ == "__main__":
    main(promote, PromoteConfig)
