"""What a checkpoint holds, whatever number of workers and whichever ZeRO stage wrote it.

::

    save.safetensors, save.json    the model, as ``model.saved`` writes it: a checkpoint folder is
                                   a model folder
    optimizer.safetensors          fp32: mean and mean square of each trained parameter's gradient,
                                   and the weights that are not in the model's file (class heads;
                                   with a running mean, which is the model then, all of them)
    state.json                     steps done, what was learned from, scores, the loss scale, curves

DeepSpeed's own ZeRO checkpoints load only on as many workers as wrote them and are pickles. Here
every rank takes part in gathering each parameter's state by name, and one rank writes plain
tensors; any number of workers under any ZeRO stage takes them up again. Where checkpoints lie is
in ``training.checkpoint_store``.

Random numbers need no state: the loop seeds each step by its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model import SAVE, saved
from training.step import Learner, set_learning_rate

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
FORMAT_VERSION = 2

MASTER = "weights"
"""fp32 weights, by the optimizer."""
MOMENTS = ("exp_avg", "exp_avg_sq")
MEAN = "mean"
"""The running mean of the weights, where there is one."""

# Of DeepSpeed's dynamic loss scale.
_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage has come."""

    step: int = 0
    """Steps done, which is also the position in the data and in the schedule."""
    digest: str = ""
    """Of what is learned and from what; a checkpoint of another stage does not fit."""
    training_seconds: float = 0.0
    """Spent in steps, over all attempts."""
    optimizer_steps: float = 0.0
    """Steps that the optimizer took: fewer than ``step`` where fp16 had to skip some."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """State of fp16's dynamic loss scale."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Points of the curves, each with its ``step``."""


def gather(engine: Any, learner: Learner) -> dict[str, Tensors]:
    """fp32 weights and moments of every trained parameter, by name; all ranks must call this.

    Returns:
        ``{"weights": {name: tensor}, "exp_avg": ..., "exp_avg_sq": ...}``, on the CPU of rank 0;
        what the others get is empty.
    """
    gathered: dict[str, Tensors] = {key: {} for key in (MASTER, *MOMENTS)}
    # There are none before the first step that fp16 did not skip.
    has_moments = any(MOMENTS[0] in state for state in _plain(engine.optimizer).state.values())
    for key, tensors in gathered.items():
        for name, parameter in learner.trainable():
            if key == MASTER or has_moments:
                value = _read(engine, parameter, key)
            else:
                value = torch.zeros(getattr(parameter, "ds_shape", parameter.shape))
            if torch.distributed.get_rank() == 0:
                # Where it is a copy already, of an optimizer that goes on meanwhile.
                tensors[name] = value.cpu()
    return gathered


def optimizer_state(engine: Any) -> tuple[float, dict[str, float]]:
    """``Progress.optimizer_steps`` and ``Progress.loss_scale`` as they are now."""
    steps = [float(state["step"]) for state in _plain(engine.optimizer).state.values()]
    scale = _loss_scale(engine)
    told = {name: float(getattr(scale, name)) for name in _SCALE if hasattr(scale, name)}
    return max(steps, default=0.0), told


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A checkpoint in memory, which training no longer changes."""

    save: SAVE
    model: Tensors
    """Every tensor of the model's file."""
    optimizer: Tensors
    """Every tensor of the optimizer's."""
    progress: Progress

    def write(self, folder: Path) -> None:
        """Write its files into a local folder.

        Raises:
            OSError: they cannot be written.
        """
        state = {"format_version": FORMAT_VERSION, **vars(self.progress)}
        try:
            saved.save(self.save, folder, tensors=self.model)
            save_file(self.optimizer, folder / OPTIMIZER)
        except SafetensorError as error:
            raise OSError(f"{folder}: {error}") from None
        (folder / STATE).write_text(json.dumps(state) + "\n")


def snapshot(
    learner: Learner,
    *,
    gathered: Mapping[str, Tensors],
    mean: Tensors | None,
    progress: Progress,
) -> Snapshot:
    """A checkpoint of now; one rank takes it, see ``whole``.

    Args:
        gathered: what ``gather`` returned.
        mean: the running mean of the weights by name, which then is the model.
    """
    weights = gathered[MASTER] if mean is None else mean
    own = {k.removeprefix("save."): v for k, v in weights.items() if k.startswith("save.")}
    # What is not trained is copied: under ZeRO 3 it is whole only now.
    model = {
        name: own[name] if name in own else value.detach().to("cpu", torch.float32, copy=True)
        for name, value in saved.kept(learner.save).items()
    }
    tensors = {f"{key}/{name}": v for key in MOMENTS for name, v in gathered[key].items()}
    for name, value in gathered[MASTER].items():
        if mean is not None or not name.startswith("save."):
            tensors[f"{MASTER}/{name}"] = value
    for name, value in (mean or {}).items():
        if not name.startswith("save."):
            tensors[f"{MEAN}/{name}"] = value
    optimizer = {name: value.contiguous() for name, value in tensors.items()}
    # The curves grow on while it is written.
    progress = replace(progress, history=list(progress.history))
    return Snapshot(save=learner.save, model=model, optimizer=optimizer, progress=progress)


def read_progress(folder: Path) -> Progress:
    """How far the checkpoint in ``folder`` had come.

    Raises:
        ValueError: the folder holds no checkpoint that this can read.
    """
    try:
        return parse_progress((folder / STATE).read_bytes())
    except (OSError, ValueError):
        raise ValueError(f"{folder} holds no checkpoint to resume from: {STATE} is unfit") from None


def parse_progress(document: bytes) -> Progress:
    """The content of ``state.json``.

    Raises:
        ValueError: it is not that.
    """
    try:
        state = json.loads(document)
        if state.pop("format_version") != FORMAT_VERSION:
            raise ValueError
        return Progress(**state)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"this is no {STATE} of a checkpoint") from None


def restore(folder: Path, engine: Any, learner: Learner) -> Tensors | None:
    """Load weights and optimizer state into a fresh engine; all ranks must call this.

    Returns:
        the running mean of the weights, on the CPU, where the checkpoint has one.

    Raises:
        ValueError: the checkpoint is damaged or of another model.
    """
    try:
        tensors = load_file(folder / OPTIMIZER)
        weights = load_file(folder / saved.WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the checkpoint in {folder} is damaged: {error}") from None
    own = {f"save.{name}": value for name, value in weights.items()}
    mean = {k.removeprefix(f"{MEAN}/"): v for k, v in tensors.items() if k.startswith(f"{MEAN}/")}
    # With a running mean the model's file holds that, and the weights themselves lie here.
    if has_mean := any(name.startswith(f"{MASTER}/save.") for name in tensors):
        mean |= {name: own[name] for name, _ in learner.trainable() if name in own}
    tensors = {f"{MASTER}/{name}": value for name, value in own.items()} | tensors
    wanted = {f"{key}/{name}" for key in (MASTER, *MOMENTS) for name, _ in learner.trainable()}
    if missing := sorted(wanted - tensors.keys()):
        raise ValueError(f"the checkpoint in {folder} lacks {missing[0]}: it is of another model")
    progress = read_progress(folder)
    _make_optimizer_state(engine, learner)
    for name, parameter in learner.trainable():
        for key in (MASTER, *MOMENTS):
            _set(engine, parameter, key, tensors[f"{key}/{name}"].to(parameter.device))
    for state in _plain(engine.optimizer).state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"]), progress.optimizer_steps)
    scale = _loss_scale(engine)
    for name, value in progress.loss_scale.items():
        if hasattr(scale, name):
            setattr(scale, name, type(getattr(scale, name))(value))
    return mean if has_mean else None


@contextmanager
def whole(learner: Learner) -> Iterator[None]:
    """Under ZeRO 3 every parameter is whole inside the block; all ranks must enter it."""
    split = [parameter for parameter in learner.parameters() if _is_split(parameter)]
    if not split:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(split):
        yield


def _read(engine: Any, parameter: nn.Parameter, key: str) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not (_is_split(parameter) or hasattr(parameter, "_hp_mapping")):
        return _slot(engine, parameter, key).detach().float().clone()
    if key == MASTER:
        found = safe_get_full_fp32_param(parameter)
    else:
        found = safe_get_full_optimizer_state(parameter, key)
    return found


def _set(engine: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if _is_split(parameter):
        _set_split(parameter, key, value)
        return
    if key == MASTER:
        # DeepSpeed sets the optimizer's copy; the module's own follows only at the next step.
        parameter.data.copy_(value)
    if not hasattr(parameter, "_hp_mapping"):
        _slot(engine, parameter, key).data.copy_(value)
    elif key == MASTER:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _set_split(parameter: Any, key: str, value: Tensor) -> None:
    """Under ZeRO 3 each rank holds an equal part, the last ones padded."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    size = parameter.ds_tensor.numel()
    padded = F.pad(value.flatten(), (0, world * size - value.numel()))
    part = padded[rank * size : (rank + 1) * size]
    if key != MASTER:
        safe_set_local_optimizer_state(parameter, part, key)
        return
    safe_set_local_fp32_param(parameter, part)
    parameter.ds_tensor.data.copy_(part)
    if parameter.data.numel() == value.numel():  # a small one, which every rank keeps whole
        parameter.data.copy_(value.view_as(parameter.data))


def _is_split(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _slot(engine: Any, parameter: nn.Parameter, key: str) -> Tensor:
    """Where an optimizer that is not split keeps it: that of fp32 under ZeRO 0."""
    if key == MASTER:
        return parameter
    slot: Tensor = _plain(engine.optimizer).state[parameter][key]
    return slot


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def _loss_scale(engine: Any) -> Any:
    """DeepSpeed's dynamic loss scale, or None."""
    optimizer = engine.optimizer
    scale = getattr(optimizer, "loss_scaler", None)
    return scale if getattr(scale, "dynamic", False) else None


def _make_optimizer_state(engine: Any, learner: Learner) -> None:
    """There is none to set before the first step."""
    if any(_is_split(parameter) for _, parameter in learner.trainable()):
        # No parameter is whole here, so no step can be taken without a batch.
        for flat in engine.optimizer.fp32_partitioned_groups_flat:
            empty = {key: torch.zeros_like(flat) for key in MOMENTS}
            _plain(engine.optimizer).state[flat] = {"step": torch.tensor(0.0), **empty}
        return
    # A step that changes nothing: it is also when DeepSpeed links its parts to the parameters.
    set_learning_rate(engine.optimizer, 0.0)
    for _ in range(engine.gradient_accumulation_steps()):
        parts = [p.float().sum() * 0.0 for _, p in learner.trainable()]
        engine.backward(torch.stack(parts).sum())
        engine.step()
