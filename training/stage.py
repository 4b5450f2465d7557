"""A stage of training from the driver's side: check, start Ray Train, wait, sum up."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra import cluster, storage
from infra.config import canonical_json, digest, to_dict
from infra.corpus import Corpus
from training import checkpoint
from training.data import FrameSamples
from training.recipe import TrainConfig

logger = logging.getLogger("training")

SUMMARY = "summary.json"
CONFIG = "config.json"


def run_stage(
    config: TrainConfig, *, on_metrics: Callable[[dict[str, float]], None] | None = None
) -> dict[str, Any]:
    """Train one stage and return its summary.

    A stage lives in ``<output>/<stage>``. Run again, a finished one only returns its summary, and
    one that was interrupted goes on at its newest checkpoint.

    Args:
        on_metrics: called with every point of the curves, each with its ``step``.

    Returns:
        ``stage``, ``corpus``, ``corpus_sha256``, ``steps``, ``seconds`` (of this call),
        ``training_seconds`` (spent in steps, over all attempts), ``samples_per_second``,
        ``val_m_j``, ``best_step``, ``checkpoint`` (URI of the best one), ``history``.

    Raises:
        FileNotFoundError, ValueError: the corpus, its splits, the parent or the configuration are
            not fit, or the folder holds another run.
    """
    started = time.monotonic()
    corpus = _check(config)
    folder = storage.join(config.output, config.stage)
    learned = digest({**config.what_is_learned(), "corpus_sha256": corpus.sha256})
    summary = _finished(folder, learned)
    if summary is None:
        document = {"digest": learned, "config": to_dict(config)}
        storage.write_bytes(storage.join(folder, CONFIG), canonical_json(document))
        result = _fit(config, learned)
        summary = _summary(config, corpus, folder, result)
        document = {"digest": learned, "summary": summary}
        storage.write_bytes(storage.join(folder, SUMMARY), canonical_json(document))
    else:
        logger.info("%s: already trained, see %s", config.stage, folder)
    if on_metrics is not None:
        for point in summary["history"]:
            on_metrics(point)
    return {**summary, "seconds": round(time.monotonic() - started, 2)}


def _check(config: TrainConfig) -> Corpus:
    """What a person can mend is told before any worker starts."""
    corpus = Corpus.open(config.corpus)
    corpus.table(config.val_split)
    FrameSamples(
        corpus, config.train_split, image_size=config.model.image_size, seed=0, augmentation=None
    )
    if config.parent is not None:
        checkpoint.check_model(config.parent, config.model.name, config.model.image_size)
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


def _fit(config: TrainConfig, learned: str) -> Any:
    cluster.connect()
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from training import loop

    workers = config.workers
    path, filesystem = storage.for_arrow(config.output)
    if not storage.normalise(config.output).startswith("s3://"):
        filesystem = None
    trainer = TorchTrainer(
        loop.train,
        train_loop_config={"config": config, "digest": learned},
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=config.stage,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.keep, checkpoint_score_attribute="val_m_j"
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    return trainer.fit()


def _summary(config: TrainConfig, corpus: Corpus, folder: str, result: Any) -> dict[str, Any]:
    best, metrics = max(
        result.best_checkpoints, key=lambda pair: (pair[1]["val_m_j"], pair[1]["step"])
    )
    newest = max(result.best_checkpoints, key=lambda pair: pair[1]["step"])[0]
    with newest.as_directory() as local:
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
