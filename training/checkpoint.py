"""Checkpoints that do not depend on the number of workers, and models from wherever they lie.

::

    save.safetensors, save.json    the model, as ``model.saved`` writes it: a checkpoint folder is
                                   a model folder
    optimizer.safetensors          fp32 mean and mean square of each trained parameter's gradient,
                                   and the weights that are not part of the model (class heads)
    state.json                     steps done, what was learned from, scores and curves

DeepSpeed's own ZeRO checkpoints load only on as many workers as wrote them and are pickles. Here
every rank takes part in gathering each parameter's state by name, and one rank writes plain
tensors; any number of workers under any of ZeRO 0 to 2 takes them up again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra import storage
from model import SAVE, saved
from training.step import Learner, set_learning_rate

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
FORMAT_VERSION = 1

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage has come."""

    step: int = 0
    """Steps done, which is also the position in the data."""
    digest: str = ""
    """Of what is learned and from what; a checkpoint of another stage does not fit."""
    m_j: float | None = None
    """Score on the val split at this step."""
    training_seconds: float = 0.0
    """Spent in steps, over all attempts."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Points of the curves, each with its ``step``."""


def gather(engine: Any, learner: Learner) -> dict[str, dict[str, Tensor]]:
    """fp32 weights and moments of every trained parameter, by name; all ranks must call this.

    Returns:
        ``{"weights": {name: tensor}, "exp_avg": ..., "exp_avg_sq": ...}``.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    gathered: dict[str, dict[str, Tensor]] = {key: {} for key in (_WEIGHTS, *_MOMENTS)}
    for name, parameter in learner.trainable():
        if hasattr(parameter, "_hp_mapping"):
            gathered[_WEIGHTS][name] = safe_get_full_fp32_param(parameter).cpu()
            for key in _MOMENTS:
                moment = safe_get_full_optimizer_state(parameter, key)
                gathered[key][name] = moment.cpu()
        else:
            # Under ZeRO 0 in fp32 DeepSpeed leaves the optimizer as it is.
            gathered[_WEIGHTS][name] = parameter.detach().cpu()
            for key in _MOMENTS:
                gathered[key][name] = _plain(engine.optimizer).state[parameter][key].cpu()
    return gathered


def write(
    folder: Path,
    *,
    learner: Learner,
    gathered: Mapping[str, Mapping[str, Tensor]],
    progress: Progress,
) -> None:
    """Write a checkpoint into a local folder; one rank does."""
    weights = gathered[_WEIGHTS]
    own = {k.removeprefix("save."): v for k, v in weights.items() if k.startswith("save.")}
    saved.save(learner.save, folder, weights=own)
    tensors = {
        f"{_WEIGHTS}/{name}": value
        for name, value in weights.items()
        if not name.startswith("save.")
    }
    for key in _MOMENTS:
        tensors |= {f"{key}/{name}": value for name, value in gathered[key].items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / OPTIMIZER)
    state = {"format_version": FORMAT_VERSION, **vars(progress)}
    (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")


def read_progress(folder: Path) -> Progress:
    """How far the checkpoint in ``folder`` had come.

    Raises:
        ValueError: the folder holds no checkpoint that this can read.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        if state.pop("format_version") != FORMAT_VERSION:
            raise ValueError
        return Progress(**state)
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"{folder} holds no checkpoint to resume from: {STATE} is unfit") from None


def restore(folder: Path, engine: Any, learner: Learner) -> None:
    """Load weights and optimizer state into a fresh engine; all ranks must call this.

    Raises:
        ValueError: the checkpoint is damaged or of another model.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    try:
        tensors = load_file(folder / OPTIMIZER)
        weights = load_file(folder / saved.WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the checkpoint in {folder} is damaged: {error}") from None
    wanted = {f"{key}/{name}" for key in _MOMENTS for name, _ in learner.trainable()}
    missing = sorted(wanted - tensors.keys())
    if missing:
        raise ValueError(f"the checkpoint in {folder} lacks {missing[0]}: it is of another model")
    steps = read_progress(folder).step
    _make_optimizer_state(engine, learner)
    for name, parameter in learner.trainable():
        weight = (
            weights[name.removeprefix("save.")]
            if name.startswith("save.")
            else tensors[f"{_WEIGHTS}/{name}"]
        ).to(parameter.device)
        moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in _MOMENTS}
        # DeepSpeed sets the optimizer's copy; the module's own follows only at the next step.
        parameter.data.copy_(weight)
        if hasattr(parameter, "_hp_mapping"):
            safe_set_full_fp32_param(parameter, weight)
            for key, moment in moments.items():
                safe_set_full_optimizer_state(parameter, moment, key)
        else:
            for key, moment in moments.items():
                _plain(engine.optimizer).state[parameter][key].copy_(moment)
    for state in _plain(engine.optimizer).state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(steps))


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def _make_optimizer_state(engine: Any, learner: Learner) -> None:
    """One step that changes nothing: only then is there optimizer state to set."""
    set_learning_rate(engine.optimizer, 0.0)
    nothing = torch.stack([p.float().sum() * 0.0 for _, p in learner.trainable()]).sum()
    engine.backward(nothing)
    engine.step()


def load_model(
    uri: str, *, sam_checkpoint: str | None = None, vggish_checkpoint: str | None = None
) -> SAVE:
    """The model in a checkpoint or model folder, in evaluation mode on the CPU.

    Args:
        uri: a path, ``s3://``, or what the registry knows: ``models:/name@alias``,
            ``runs:/id/model``.
        sam_checkpoint: path or URI, for a model built on SAM's weights.
        vggish_checkpoint: likewise VGGish's.

    Raises:
        FileNotFoundError: no model is there.
        ValueError: it is damaged, or was trained on other published weights.
    """
    with tempfile.TemporaryDirectory(prefix="save-model-") as temporary:
        folder = fetch_model(uri, Path(temporary))
        model = saved.load(
            folder,
            sam_checkpoint=local_file(sam_checkpoint),
            vggish_checkpoint=local_file(vggish_checkpoint),
        )
    return model.eval()


def load_weights(model: SAVE, uri: str) -> None:
    """Start ``model`` from the weights of another of the same configuration, see ``load_model``."""
    with tempfile.TemporaryDirectory(prefix="save-model-") as temporary:
        saved.load_weights(model, fetch_model(uri, Path(temporary)))


def check_model(uri: str, name: str, image_size: int) -> None:
    """Refuse a model that ``load_weights`` could not take, without reading its weights."""
    with tempfile.TemporaryDirectory(prefix="save-model-") as temporary:
        found = saved.read_config(fetch_model(uri, Path(temporary)))["model"]
    if (found["name"], found["image_size"]) != (name, image_size):
        raise ValueError(
            f"the parent {uri} is a {found['name']} at {found['image_size']} pixels, this stage "
            f"trains a {name} at {image_size}: make them equal"
        )


def fetch_model(uri: str, temporary: Path) -> Path:
    """A local folder with the model at ``uri``, which is copied to ``temporary`` if it must be."""
    uri = resolve(uri)
    if not uri.startswith("s3://"):
        if not (Path(uri) / saved.CONFIG).is_file():
            raise FileNotFoundError(f"{uri} holds no model: {saved.CONFIG} is missing")
        return Path(uri)
    copy_model(uri, temporary)
    return temporary


def copy_model(uri: str, folder: Path) -> None:
    """Copy a model, without the optimizer's state that a checkpoint has beside it."""
    for name in (saved.CONFIG, saved.WEIGHTS):
        storage.download(storage.join(resolve(uri), name), folder / name)


def resolve(uri: str) -> str:
    """The folder of a model: a path or ``s3://`` URI, whatever form ``uri`` has."""
    if uri.startswith(("models:", "runs:")):
        # MLflow takes seconds to import, and most models lie in a plain folder.
        from infra import registry

        return registry.resolve(uri)
    return storage.normalise(uri)


def local_file(uri: str | None) -> Path | None:
    """A file of published weights on this machine, copied once if it lies on object storage."""
    if uri is None:
        return None
    uri = storage.normalise(uri)
    if not uri.startswith("s3://"):
        return Path(uri)
    local = storage.cache_folder() / "published" / uri.removeprefix("s3://").replace("/", "_")
    if not local.is_file() or local.stat().st_size != storage.size(uri):
        storage.download(uri, local)
    return local
