"""A stage of training from the driver's side: check, start Ray Train, wait, sum up."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra import cluster, storage
from infra.config import canonical_json, digest, to_dict
from infra.corpus import Corpus
from model.save import SIZES
from training import checkpoint
from training.data import FrameSamples
from training.recipe import TrainConfig

logger = logging.getLogger("training")

Point = dict[str, float]

SUMMARY = "summary.json"
CONFIG = "config.json"


def run_stage(
    config: TrainConfig, *, on_metrics: Callable[[Point], None] | None = None
) -> dict[str, Any]:
    """Train one stage and return its summary.

    A stage lives in ``<output>/<stage>``. Run again, a finished one only returns its summary, and
    one that was interrupted goes on at its newest checkpoint.

    Args:
        on_metrics: called with each point of the curves while training runs, each with its
            ``step``. A stage that was finished before has none to give but those in ``history``.

    Returns:
        ``stage``, ``corpus``, ``corpus_sha256``, ``steps``, ``seconds`` (of this call),
        ``training_seconds`` (spent in steps, over all attempts), ``samples_per_second``,
        ``val_m_j``, ``best_step``, ``checkpoint`` (URI of the best one), ``history``.

    Raises:
        FileNotFoundError, ValueError: the corpus, its splits, the parent or the configuration are
            not fit, or the folder holds another run.
    """
    started = time.monotonic()
    config = _absolute(config)
    corpus = _check(config)
    folder = storage.join(config.output, config.stage)
    learned = digest({**config.what_is_learned(), "corpus_sha256": corpus.sha256})
    summary = _finished(folder, learned)
    if summary is None:
        document = {"digest": learned, "config": to_dict(config)}
        storage.write_bytes(storage.join(folder, CONFIG), canonical_json(document))
        result = _fit(config, learned, on_metrics or (lambda point: None))
        summary = _summary(config, corpus, folder, result)
        document = {"digest": learned, "summary": summary}
        storage.write_bytes(storage.join(folder, SUMMARY), canonical_json(document))
    else:
        logger.info("%s: already trained, see %s", config.stage, folder)
    return {**summary, "seconds": round(time.monotonic() - started, 2)}


def train(config: TrainConfig) -> dict[str, Any]:
    """Train one stage on Ray: a recipe, a corpus, and perhaps a parent to start from."""
    tracking = config.tracking or os.environ.get("MLFLOW_TRACKING_URI")
    summary = _tracked(config, tracking) if tracking else run_stage(config)
    del summary["history"]
    return summary


def _tracked(config: TrainConfig, tracking: str) -> dict[str, Any]:
    """``run_stage`` with a run in MLflow, which is written here in the driver alone."""
    from infra.tracking import Tracker

    with Tracker(tracking).run(config.stage) as run:
        run.log_config(to_dict(config))
        run.log_corpus(Corpus.open(config.corpus), name=config.stage, context="train")
        summary = run_stage(
            config,
            on_metrics=lambda point: run.log_curves([(int(point["step"]), point)]),
        )
        run.log_scores({"best": {"val_m_j": summary["val_m_j"], "step": summary["best_step"]}})
        with tempfile.TemporaryDirectory(prefix="save-model-") as folder:
            checkpoint.copy_model(summary["checkpoint"], Path(folder))
            run.log_model(Path(folder))
        return {**summary, "run_id": run.id}


def _absolute(config: TrainConfig) -> TrainConfig:
    """Workers run in other folders, and the registry is asked here once."""
    model = config.model
    return replace(
        config,
        corpus=storage.normalise(config.corpus),
        output=storage.normalise(config.output),
        parent=None if config.parent is None else checkpoint.resolve(config.parent),
        model=replace(
            model,
            sam_checkpoint=model.sam_checkpoint and storage.normalise(model.sam_checkpoint),
            vggish_checkpoint=model.vggish_checkpoint
            and storage.normalise(model.vggish_checkpoint),
        ),
    )


def _check(config: TrainConfig) -> Corpus:
    """What a person can mend is told before any worker starts."""
    corpus = Corpus.open(config.corpus)
    corpus.table(config.val_split)
    if config.model.name not in SIZES:
        raise ValueError(f"unknown model.name {config.model.name!r}: one of {', '.join(SIZES)}")
    FrameSamples(
        corpus, config.train_split, image_size=config.model.image_size, seed=0, augmentation=None
    )
    model = config.model
    for name in ("sam_checkpoint", "vggish_checkpoint"):
        if SIZES[model.name].pretrained and getattr(model, name) is None:
            raise ValueError(f"{model.name} is built on published weights: give model.{name}")
    if config.parent is not None:
        checkpoint.check_model(config.parent, model.name, model.image_size)
    return corpus


def _finished(folder: str, learned: str) -> dict[str, Any] | None:
    """The summary of a stage that was trained before; refuses the folder of another one."""
    for name in (SUMMARY, CONFIG):
        path = storage.join(folder, name)
        if not storage.exists(path):
            continue
        document = json.loads(storage.read_bytes(path))
        if document["digest"] != learned:
            raise ValueError(
                f"{folder} holds a run of another configuration or corpus: give this one another "
                "stage or output, or remove that folder"
            )
        if name == SUMMARY:
            assert isinstance(document["summary"], dict)
            return document["summary"]
    return None


def _fit(config: TrainConfig, learned: str, on_point: Callable[[Point], None]) -> Any:
    cluster.connect()
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from training import loop, progress

    workers = config.workers
    path, filesystem = storage.for_arrow(config.output)
    if not storage.normalise(config.output).startswith("s3://"):
        filesystem = None
    run = RunConfig(
        name=config.stage,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=workers.max_failures),
        checkpoint_config=CheckpointConfig(
            num_to_keep=config.keep, checkpoint_score_attribute="val_m_j"
        ),
        logging_config=LoggingConfig(log_level="WARNING"),
    )
    scaling = ScalingConfig(
        num_workers=workers.count,
        use_gpu=workers.use_gpu,
        resources_per_worker={"CPU": workers.cpus, **({"GPU": 1} if workers.use_gpu else {})},
    )
    logger.info("%s: starting %d workers", config.stage, workers.count)
    with progress.follow(on_point) as board:
        return TorchTrainer(
            loop.train,
            train_loop_config={"config": config, "digest": learned, "board": board},
            torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
            scaling_config=scaling,
            run_config=run,
        ).fit()


def _summary(config: TrainConfig, corpus: Corpus, folder: str, result: Any) -> dict[str, Any]:
    best, metrics = max(
        result.best_checkpoints, key=lambda pair: (pair[1]["val_m_j"], pair[1]["step"])
    )
    # The newest checkpoint knows the whole story; it need not be among the best.
    with result.checkpoint.as_directory() as local:
        progress = checkpoint.read_progress(Path(local))
    return {
        "stage": config.stage,
        "corpus": corpus.uri,
        "corpus_sha256": corpus.sha256,
        "parent": config.parent,
        "steps": progress.step,
        "training_seconds": round(progress.training_seconds, 2),
        "samples_per_second": round(progress.step * config.batch / progress.training_seconds, 2),
        "val_m_j": metrics["val_m_j"],
        "best_step": metrics["step"],
        "checkpoint": storage.join(folder, best.path.rstrip("/").rsplit("/", 1)[-1]),
        "history": progress.history,
    }
