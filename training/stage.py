"""A stage of training from the driver's side: check, start Ray Train, wait, sum up."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra import cluster, lease, storage
from infra.config import canonical_json, digest, to_dict
from infra.corpus import Corpus
from infra.errors import JobFailed
from model import saved
from model.save import SIZES
from training import checkpoint, checkpoint_store, models
from training.checkpoint import Progress
from training.checkpoint_store import CheckpointStore
from training.data import FrameSamples
from training.recipe import TrainConfig
from training.reporting import Report, reporting

logger = logging.getLogger("training")

Point = dict[str, float]

SUMMARY = "summary.json"
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


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
        ``stage``, ``corpus``, ``corpus_sha256``, ``parent``, ``steps``, ``seconds`` (of this call),
        ``training_seconds`` (spent in steps, over all attempts), ``samples_per_second``,
        ``val_m_j``, ``val_m_f`` and ``best_step`` (of the best checkpoint), ``checkpoint`` (its
        URI), ``run_id`` (in MLflow, or None), ``history``.

    Raises:
        FileNotFoundError, ValueError: the corpus, its splits, the parent or the configuration are
            not fit, or the folder holds another run or is written by another job.
        JobFailed: training stopped, and why.
    """
    started = time.monotonic()
    folder = storage.join(config.output, config.stage)
    begun = _begun(folder)
    parent, source = _parent(config, folder, begun)
    told, config = config, _absolute(config, parent)
    corpus = _check(config)
    if parent is not None and begun is None:
        models.check_model(source or parent, config.model.name, config.model.image_size)
    learned = digest({**config.what_is_learned(), "corpus_sha256": corpus.sha256})
    summary = _finished(config, folder, learned)
    if summary is None:
        with lease.hold(folder, owner=cluster.job_name("training")) as held:
            if source is not None:
                _bring(source, str(parent))
            document = {"digest": learned, "parent": told.parent, "config": to_dict(config)}
            storage.write_bytes(storage.join(folder, CONFIG), canonical_json(document))
            with reporting(told, corpus, folder, config.tracking) as report:
                summary = _fit(config, corpus, folder, learned, report, on_metrics, held)
                document = {"digest": learned, "summary": summary}
                held.check()
                storage.write_bytes(storage.join(folder, SUMMARY), canonical_json(document))
                report.finish(summary)
    else:
        logger.info("%s: already trained, see %s", config.stage, folder)
        with reporting(told, corpus, folder, config.tracking) as report:
            report.finish(summary)
    seconds = round(time.monotonic() - started, 2)
    return {**summary, "run_id": report.run_id, "seconds": seconds}


def train(config: TrainConfig) -> dict[str, Any]:
    """Train one stage on Ray: a recipe, a corpus, and perhaps a parent to start from."""
    tracking = config.tracking or os.environ.get("MLFLOW_TRACKING_URI")
    summary = run_stage(replace(config, tracking=tracking))
    del summary["history"]
    return summary


def _absolute(config: TrainConfig, parent: str | None) -> TrainConfig:
    """Workers run in other folders, and the registry is asked here once."""
    model = config.model
    return replace(
        config,
        corpus=storage.normalise(config.corpus),
        output=storage.normalise(config.output),
        parent=parent,
        model=replace(
            model,
            sam_checkpoint=model.sam_checkpoint and storage.normalise(model.sam_checkpoint),
            vggish_checkpoint=model.vggish_checkpoint
            and storage.normalise(model.vggish_checkpoint),
        ),
    )


def _begun(folder: str) -> dict[str, Any] | None:
    """What a stage said of itself when it was begun, or None for a new one."""
    path = storage.join(folder, CONFIG)
    if not storage.exists(path):
        return None
    document = json.loads(storage.read_bytes(path))
    assert isinstance(document, dict)
    return document


def _parent(
    config: TrainConfig, folder: str, begun: dict[str, Any] | None
) -> tuple[str | None, str | None]:
    """The parent's folder, and the one to copy it from where that is the driver's alone.

    An alias means what it meant when the stage was begun.
    """
    if config.parent is None:
        return None, None
    if begun is not None and begun["parent"] == config.parent:
        return str(begun["config"]["parent"]), None
    found = models.resolve(config.parent, config.tracking)
    if not models.is_cached(found):
        return found, None
    from infra import registry

    return storage.join(folder, f"parent-{registry.model_sha256(found)[:16]}"), found


def _bring(source: str, parent: str) -> None:
    """Copy a parent to where all workers see it; what names it a model comes last."""
    for name in (saved.WEIGHTS, saved.CONFIG):
        storage.upload(Path(source) / name, storage.join(parent, name))


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
    if config.precision == "fp16" and not config.workers.use_gpu:
        raise ValueError(
            "precision fp16 needs GPUs: set workers.use_gpu, or give precision fp32 or bf16"
        )
    return corpus


def _finished(config: TrainConfig, folder: str, learned: str) -> dict[str, Any] | None:
    """The summary of a stage that was trained before; refuses the folder of another one."""
    for name in (SUMMARY, CONFIG):
        path = storage.join(folder, name)
        if not storage.exists(path):
            continue
        document = json.loads(storage.read_bytes(path))
        if document["digest"] != learned:
            raise ValueError(
                f"{folder} holds a run of another configuration or corpus"
                f"{_difference(config, folder)}: give this one another stage or output, or remove "
                "that folder"
            )
        if name == SUMMARY:
            assert isinstance(document["summary"], dict)
            return document["summary"]
    return None


def _difference(config: TrainConfig, folder: str) -> str:
    """The first field in which the run of a folder differs; "" where it is none, or unknown."""
    begun = _begun(folder)
    if begun is None:
        return ""
    theirs = _dotted(begun["config"])
    for name, ours in _dotted(to_dict(config)).items():
        if name.split(".")[0] in config.what_is_learned() and theirs.get(name) != ours:
            return f" (its {name} is {theirs.get(name)!r}, not {ours!r})"
    return ""


def _dotted(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The fields of all depths by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _dotted(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def _fit(
    config: TrainConfig,
    corpus: Corpus,
    folder: str,
    learned: str,
    report: Report,
    on_metrics: Callable[[Point], None] | None,
    held: lease.Held,
) -> dict[str, Any]:
    """Train, and sum up what came out."""
    cluster.connect()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from training import progress
    from training.failures import Failures, what_failed

    def on_point(point: Point) -> None:
        report.point(point)
        if on_metrics is not None:
            on_metrics(point)

    workers = config.workers
    path, filesystem = storage.for_arrow(config.output)
    if not config.output.startswith("s3://"):
        filesystem = None
    fewest = workers.count if workers.min_count is None else workers.min_count
    each = {"CPU": workers.cpus, **({"GPU": 1} if workers.use_gpu else {})}
    scaling = ScalingConfig(
        num_workers=workers.count if fewest == workers.count else (fewest, workers.count),
        use_gpu=workers.use_gpu,
        resources_per_worker=each,
        elastic_resize_monitor_interval_s=workers.resize_seconds,
    )
    store = CheckpointStore(storage.join(folder, CHECKPOINTS), keep=config.keep)
    # Should the tracking server have missed some of an earlier attempt; it knows what it has.
    for point in _newest(store).history:
        report.point(point)
    logger.info("%s: starting %d workers", config.stage, workers.count)
    with (
        progress.follow(
            config.stage, on_point=on_point, on_file=report.file, must_stop=held.lost
        ) as board,
        progress.tell_of_room(config.stage, fewest, each),
    ):
        settings = {
            "config": config,
            "digest": learned,
            "checkpoints": store.uri,
            "mark": storage.join(folder, CONFIG),
            "board": board,
        }
        trainer = TorchTrainer(
            _work,
            train_loop_config=settings,
            torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
            scaling_config=scaling,
            run_config=RunConfig(
                name=config.stage,
                storage_path=path,
                storage_filesystem=filesystem,
                # They are counted elsewhere.
                failure_config=FailureConfig(max_failures=-1),
                logging_config=LoggingConfig(log_level="WARNING"),
                callbacks=[Failures(board, checkpoints=store.uri, most=workers.max_failures)],
            ),
        )
        try:
            _interruptible(trainer.fit)
        except TrainingFailedError as error:
            reason = board.given_up() or (
                f"{what_failed(error)}; run it again to go on at the newest checkpoint"
            )
            raise JobFailed(f"{config.stage} stopped: {reason}") from error
        if reason := board.given_up():
            raise JobFailed(f"{config.stage} stopped: {reason}")
    return _summary(config, corpus, store)


def _interruptible(wait: Callable[[], Any]) -> None:
    """Run it in a thread of its own, where Ray leaves ctrl-C alone.

    In the main thread Ray asks its controller to end, which does not hear it while it waits for
    room in the cluster. What the driver has started ends with the driver.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            wait()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="training", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        # It still waits inside Ray, which would end the process its own way while it shuts down.
        atexit.register(_leave)
        raise
    if raised:
        raise raised[0]


def _leave() -> None:
    """End the process as interrupted; the Ray that it started ends with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)


def _work(settings: dict[str, Any]) -> None:
    """What each worker runs: training, until the driver says that it must stop."""
    from training import loop

    # Decoders are forked after NCCL has begun; without this InfiniBand's memory is unsafe in that.
    os.environ.setdefault("RDMAV_FORK_SAFE", "1")
    with settings["board"].obeyed():
        loop.train(settings)


def _summary(config: TrainConfig, corpus: Corpus, store: CheckpointStore) -> dict[str, Any]:
    scored = [one for one in store.committed() if one.m_j is not None]
    if not scored:
        raise JobFailed(f"{store.uri} holds no checkpoint any more: run the stage again")
    found = checkpoint_store.best(scored)
    # The newest checkpoint knows the whole story; it need not be among the best.
    progress = _newest(store)
    validated = {int(p["step"]): p for p in progress.history if "val_m_j" in p}
    scores = validated[found.step]
    return {
        "stage": config.stage,
        "corpus": corpus.uri,
        "corpus_sha256": corpus.sha256,
        "parent": config.parent,
        "steps": progress.step,
        "training_seconds": round(progress.training_seconds, 2),
        "samples_per_second": round(progress.step * config.batch / progress.training_seconds, 2),
        "val_m_j": scores["val_m_j"],
        "val_m_f": scores["val_m_f"],
        "best_step": found.step,
        "checkpoint": store.folder(found.step),
        "history": progress.history,
    }


def _newest(store: CheckpointStore) -> Progress:
    for made in store.committed():
        with suppress(ValueError):  # a damaged one, which is told of when it is resumed from
            state = storage.join(store.folder(made.step), checkpoint.STATE)
            return checkpoint.parse_progress(storage.read_bytes(state))
    return Progress()
