"""DeepSpeed, told what a recipe wants and nothing of what it does not.

What differs between its optimizers lies here and in ``training.checkpoint``: the loop sees an
engine that goes forward, backward and a step.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from training.batch import Batch
from training.recipe import TrainConfig
from training.step import Learner, split_batch


def start_engine(config: TrainConfig, learner: Learner, device: torch.device) -> Any:
    """A DeepSpeed engine around the learner, which it moves to the device and to the precision.

    Args:
        learner: only what it trains gets an optimizer.
    """
    deepspeed = _import_deepspeed(device)
    learner.to(device)
    # cuDNN's attention has no gradient for the bias of relative positions; whether torch sees that
    # in time differs between its releases, and training and validation are to use the same one.
    torch.backends.cuda.enable_cudnn_sdp(False)
    workers, world = config.workers, torch.distributed.get_world_size()
    learner.save.image_encoder.recompute = workers.activation_checkpointing
    if workers.compile:
        # Nearly all of the work. What surrounds it changes shape with the batch, and is small.
        learner.save.image_encoder.compile()
    settings = {
        # DeepSpeed only multiplies this by the ranks, for its own log: shares may be unequal.
        "train_micro_batch_size_per_gpu": max(config.batch // world // config.parts(world), 1),
        "gradient_accumulation_steps": config.parts(world),
        # In bf16 a sum over ranks would lose what fp32 keeps, more with every rank.
        "communication_data_type": "fp32",
        "zero_optimization": {
            # Its plain optimizer of fp16 and bf16 begins with a step of its own, and in fp16
            # divides by a scale that the loss never had.
            "stage": workers.zero_stage or int(config.precision != "fp32"),
            # Elements, not bytes; the default would reserve 2 GB a buffer.
            "reduce_bucket_size": 50_000_000,
            # Gloo has no reduce-scatter: DeepSpeed would make one of many small reductions.
            "reduce_scatter": device.type != "cpu",
        },
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
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


def take_batch(
    engine: Any, learner: Learner, batch: Batch, *, total: int, accumulate: int
) -> tuple[dict[str, Tensor], Tensor | float]:
    """An optimisation step on this rank's share of a batch.

    Args:
        total: samples of the batch, over all ranks.
        accumulate: parts in which the share is computed, one after the other; the engine's own.

    Returns:
        of each part of the loss this rank's share of the mean; and the norm of the whole batch's
        gradient before it was clipped, not finite where the gradient was not.
    """
    told: dict[str, Tensor] = {}
    norm: Tensor | float = 0.0
    world, parts = torch.distributed.get_world_size(), split_batch(batch, accumulate)
    for part in parts:
        loss, values = engine(part)
        share = len(part) / total
        # DeepSpeed takes the mean over ranks and parts, which may differ by one sample.
        engine.backward(loss * (share * world * len(parts)))
        norm = _take_step(engine, learner)
        for name, value in values.items():
            told[name] = told.get(name, 0.0) + value.float() * share
    return told, norm


def _take_step(engine: Any, learner: Learner) -> Tensor | float:
    """The engine's step; while there are parts to come, it changes nothing and has no norm."""
    norm: Tensor | float | None = None
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        # Without ZeRO, DeepSpeed clips an fp32 gradient and forgets its norm.
        gradients = [p.grad for _, p in learner.trainable() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    skipped = engine.skipped_steps
    engine.step()
    if engine.skipped_steps > skipped:
        return math.inf  # DeepSpeed would tell the norm of a step before
    return engine.get_global_grad_norm() or 0.0 if norm is None else norm


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
    if device.type == "cpu":
        # Its shared-memory all-reduce serves inference alone, yet is compiled when training starts;
        # a process killed meanwhile leaves a lock on which every later start waits.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
