"""What each Ray Train worker runs: the steps of a stage inside DeepSpeed.

Every worker holds the whole model and takes its share of each batch; DeepSpeed averages gradients
and splits the optimizer over the workers (ZeRO). Whatever a worker does is decided by the recipe
and the step, so after a failure the newest checkpoint leads to the weights that the undisturbed run
would have had.

Shapes: T frames of a clip, S side of the input, H x W pixels of the true masks.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from infra.corpus import Corpus
from model import SAVE, build_save, saved
from training import checkpoint
from training.checkpoint import Progress
from training.data import FrameSamples, batches
from training.metrics import jaccard
from training.progress import Point, post
from training.recipe import TrainConfig
from training.samples import Clip, load_clip
from training.step import Learner, set_learning_rate

# Frames that validation sends through the model at once.
_VALIDATION_FRAMES = 16


def train(settings: dict[str, Any]) -> None:
    """Train one stage.

    Args:
        settings: its ``config``, the ``digest`` of what is learned, and the ``board`` to post to.

    Raises:
        ValueError: the loss is no longer a number.
    """
    config: TrainConfig = settings["config"]
    board = settings["board"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    corpus = Corpus.open(config.corpus)
    samples = FrameSamples(
        corpus,
        config.train_split,
        image_size=config.model.image_size,
        seed=config.seed,
        augmentation=config.augmentation,
    )
    steps = config.total_steps(len(samples))
    learner = build_learner(config, classes=len(samples.classes))
    with _newest_checkpoint() as folder:
        progress = Progress(digest=settings["digest"])
        if folder is not None:
            progress = checkpoint.read_progress(folder)
            saved.load_weights(learner.save, folder)
        elif config.parent is not None:
            checkpoint.load_weights(learner.save, config.parent)
        engine = _start_engine(config, learner, device)
        if folder is not None:
            checkpoint.restore(folder, engine, learner)
    if rank == 0:
        post(board, _start_line(config, learner, len(samples), steps, progress, world, device))

    history = list(progress.history)
    done_before, seconds_before = progress.step, progress.training_seconds
    pending: list[Tensor] = []
    names: list[str] = []
    started = time.monotonic()
    validating = 0.0
    loader = batches(
        samples, batch=config.batch, first=done_before, last=steps, rank=rank, world=world
    )
    for step, batch in enumerate(loader, start=done_before):
        rate = config.optimizer.rate(step, steps)
        set_learning_rate(engine.optimizer, rate)
        loss, parts = engine(batch.to(device))
        # DeepSpeed averages over ranks; shares of a batch may differ by one sample.
        engine.backward(loss * (len(batch) * world / config.batch))
        engine.step()
        names = list(parts)
        pending.append(torch.stack([part.float() for part in parts.values()]))
        done = step + 1
        if done % config.log_every == 0 or done == steps:
            means = _mean_over_ranks(torch.stack(pending).mean(0))
            pending.clear()
            seconds = seconds_before + time.monotonic() - started - validating
            point = {"step": float(done), **dict(zip(names, means, strict=True))}
            point |= {
                "learning_rate": rate,
                "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                "samples_per_second": done * config.batch / seconds,
            }
            if not np.isfinite(point["loss"]):
                raise ValueError(
                    f"the loss is {point['loss']} at step {done}: lower optimizer.learning_rate "
                    "or raise optimizer.warmup_steps"
                )
            history.append(point)
            if rank == 0:
                pace = (seconds - seconds_before) / (done - done_before)
                post(board, _step_line(config, point, steps, (steps - done) * pace))
                post(board, point)
        if done % config.validate_every == 0 or done == steps:
            before = time.monotonic()
            m_j = validate(learner.save, corpus, config, rank=rank, world=world, device=device)
            point = {"step": float(done), "val_m_j": m_j}
            history.append(point)
            progress = Progress(
                step=done,
                digest=settings["digest"],
                m_j=m_j,
                training_seconds=seconds_before + before - started - validating,
                history=history,
            )
            if rank == 0:
                post(board, f"{config.stage}: step {done} of {steps}, val M_J {m_j:.4f}")
                post(board, point)
            _report(engine, learner, progress, rank=rank)
            validating += time.monotonic() - before


def build_learner(config: TrainConfig, *, classes: int) -> Learner:
    """The model and losses of a stage; the same seed gives the same weights on every rank."""
    torch.manual_seed(config.seed)
    model = config.model
    save = build_save(
        model.name,
        image_size=model.image_size,
        sam_checkpoint=checkpoint.local_file(model.sam_checkpoint),
        vggish_checkpoint=checkpoint.local_file(model.vggish_checkpoint),
        adapter_init=model.adapter_init,
        spatial=model.spatial,
        audio_adapter=model.audio_adapter,
    )
    return Learner(save, classes=classes, class_weight=config.class_weight)


@contextmanager
def _newest_checkpoint() -> Iterator[Path | None]:
    newest = ray.train.get_checkpoint()
    if newest is None:
        yield None
    else:
        with newest.as_directory() as folder:
            yield Path(folder)


def _start_engine(config: TrainConfig, learner: Learner, device: torch.device) -> Any:
    deepspeed = _import_deepspeed(device)
    learner.to(device)
    settings = {
        # DeepSpeed only multiplies this by the ranks, for its own log: shares may be unequal.
        "train_micro_batch_size_per_gpu": max(
            config.batch // torch.distributed.get_world_size(), 1
        ),
        "zero_optimization": {
            "stage": config.workers.zero_stage,
            # Elements, not bytes; the default would reserve 2 GB a buffer.
            "reduce_bucket_size": 50_000_000,
            # Gloo has no reduce-scatter: DeepSpeed would make one of many small reductions.
            "reduce_scatter": device.type != "cpu",
        },
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": sys.maxsize,
    }
    parameters = [parameter for _, parameter in learner.trainable()]
    engine, *_ = deepspeed.initialize(
        model=learner,
        model_parameters=parameters,
        optimizer=config.optimizer.build(parameters),
        config=settings,
        dist_init_required=False,
    )
    engine.train()
    return engine


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, without what it would import and compile for purposes that are not ours."""
    if device.type == "cpu":
        # A machine may have a GPU that this stage was not given.
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Its autotuner imports MLflow if it can, which takes seconds in every worker.
    hidden = {} if "mlflow" in sys.modules else {"mlflow": None}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        import deepspeed
        import deepspeed.ops
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
    # Its shared-memory all-reduce serves inference alone, yet is compiled when training starts; a
    # process killed meanwhile leaves a lock on which every later start waits.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _mean_over_ranks(values: Tensor) -> list[float]:
    total = values.detach().clone()
    torch.distributed.all_reduce(total)
    return [float(v) for v in total / torch.distributed.get_world_size()]


@torch.no_grad()
def validate(
    save: SAVE, corpus: Corpus, config: TrainConfig, *, rank: int, world: int, device: torch.device
) -> float:
    """M_J over the whole val split, each rank scoring its share; all ranks must call this.

    The score is taken at the size of the true masks, to which the logits are resized bilinearly.
    """
    was_training = save.training
    save.eval()
    total = torch.zeros(2, dtype=torch.float64)
    waiting: list[Clip] = []
    rows = range(rank, len(corpus.table(config.val_split)), world)
    for row in rows:
        waiting.append(load_clip(corpus, config.val_split, row, config.model.image_size))
        if sum(len(clip.masks) for clip in waiting) >= _VALIDATION_FRAMES or row == rows[-1]:
            total += _score(save, waiting, device)
            waiting = []
    save.train(was_training)
    total = total.to(device)
    torch.distributed.all_reduce(total)
    score, frames = (float(value) for value in total)
    return score / frames if frames else 0.0


def _score(save: SAVE, clips: list[Clip], device: torch.device) -> Tensor:
    """Sum of the Jaccard index and number of annotated frames."""
    images_B3SS = torch.cat([clip.images_T3SS for clip in clips]).to(device)
    log_mel_B1MF = torch.cat([clip.log_mel_T1MF for clip in clips]).to(device)
    logits_B1SS = save(images_B3SS, log_mel_B1MF).float().cpu()
    masks = [mask for clip in clips for mask in clip.masks]
    scores = []
    for logits_1SS, mask_HW in zip(logits_B1SS, masks, strict=True):
        if mask_HW is not None:
            logits_11HW = F.interpolate(
                logits_1SS[None], mask_HW.shape, mode="bilinear", align_corners=False
            )
            scores.append(float(jaccard(logits_11HW[0], torch.from_numpy(mask_HW)[None])[0]))
    return torch.tensor([sum(scores), len(scores)], dtype=torch.float64)


def _report(engine: Any, learner: Learner, progress: Progress, *, rank: int) -> None:
    gathered = checkpoint.gather(engine, learner)
    metrics = {"step": progress.step, "val_m_j": progress.m_j}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="save-checkpoint-") as folder:
        checkpoint.write(
            Path(folder),
            learner=learner,
            gathered=gathered,
            progress=progress,
        )
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{progress.step:08d}",
        )


def _start_line(
    config: TrainConfig,
    learner: Learner,
    samples: int,
    steps: int,
    progress: Progress,
    world: int,
    device: torch.device,
) -> str:
    trained = sum(parameter.numel() for _, parameter in learner.trainable()) / 1e6
    done = f"resuming after step {progress.step}" if progress.step else "starting"
    return (
        f"{config.stage}: {done}, {steps} steps of {config.batch} of {samples} samples; "
        f"{config.model.name}, {trained:.2f} M parameters trained, {world} workers on {device.type}"
    )


def _step_line(config: TrainConfig, point: Point, steps: int, left: float) -> str:
    return (
        f"{config.stage}: step {point['step']:.0f} of {steps}, loss {point['loss']:.4f}, "
        f"{point['samples_per_second']:.1f} samples/s, {left // 60:.0f}:{left % 60:02.0f} left"
    )
