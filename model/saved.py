"""A SAVE on disk: a folder with weights only, nothing that could be executed.

::

    save.safetensors    every tensor that cannot be rebuilt: what is trained, and whatever was not
                        loaded from a published checkpoint (all of a model trained from scratch,
                        its random positional matrix included)
    save.json           the model's configuration, and the sha256 of the published checkpoints

Published weights are not copied: who loads the model names the same SAM and VGGish files again,
and their sha256 tells whether they are the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints import ADAPTER, SAM_PARTS, mismatch
from model.save import SAVE, build_save

WEIGHTS = "save.safetensors"
CONFIG = "save.json"
FORMAT_VERSION = 1

# What a published checkpoint fills, by its key in ``SAVE.base``.
BASE_PARTS = {"sam": SAM_PARTS, "vggish": ("audio_encoder",)}
BASE_NAMES = {"sam": "SAM", "vggish": "VGGish"}


def save(model: SAVE, folder: Path, *, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write a model into ``folder``.

    Args:
        tensors: those of ``kept``, as they were at another time or as an optimizer holds them in
            full precision; None takes the model's own of now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        name: value.detach().to("cpu", torch.float32).contiguous()
        for name, value in (kept(model) if tensors is None else tensors).items()
    }
    description = {
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(model.config),
        "base_sha256": model.base,
    }
    save_file(written, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")


def load(
    folder: Path,
    *,
    sam_checkpoint: str | Path | None = None,
    vggish_checkpoint: str | Path | None = None,
) -> SAVE:
    """Build the model that ``save`` wrote into ``folder``.

    Args:
        sam_checkpoint: for a model on published weights, the SAM file it was trained on.
        vggish_checkpoint: likewise VGGish's.

    Raises:
        FileNotFoundError: there is no model in the folder, or no checkpoint at a path.
        ValueError: the folder is damaged, or a checkpoint is not the one it was trained on.
    """
    config = read_config(folder)["model"]
    try:
        model = build_save(
            **config, sam_checkpoint=sam_checkpoint, vggish_checkpoint=vggish_checkpoint
        )
    except TypeError:
        raise ValueError(
            f"{folder / CONFIG} is damaged: it does not describe a SAVE, got {config}"
        ) from None
    load_weights(model, folder)
    return model


def load_weights(model: SAVE, folder: Path) -> None:
    """Load the weights in ``folder`` into a model of the same configuration.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: it is damaged, of another configuration, or was trained on other published
            checkpoints than ``model`` stands on.
    """
    description = read_config(folder)
    ours, theirs = dataclasses.asdict(model.config), description["model"]
    different = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    # How adapters start says nothing about what they have learned.
    different = [name for name in different if name != "adapter_init"]
    if different:
        told = ", ".join(f"{k} {theirs.get(k)} instead of {ours.get(k)}" for k in different)
        raise ValueError(f"{folder} holds a model of another configuration: {told}")
    _check_base(model, description["base_sha256"], folder)
    weights = _read_weights(folder / WEIGHTS)
    if problems := mismatch(weights, kept(model)):
        raise ValueError(f"{folder / WEIGHTS} does not fit {model.config.name}; {problems}")
    model.load_state_dict(weights, strict=False)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``save.json``: ``model``, and ``base_sha256`` by ``sam`` and ``vggish``."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no model: {CONFIG} is missing")
    try:
        description = json.loads((folder / CONFIG).read_text())
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"{folder} has model format {version}, this reads {FORMAT_VERSION}")
        base = description.setdefault("base_sha256", {})
        if not isinstance(description["model"], dict) or not base.keys() <= BASE_NAMES.keys():
            raise KeyError
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise ValueError(f"{folder / CONFIG} is damaged") from None
    assert isinstance(description, dict)
    return description


def kept(model: SAVE) -> dict[str, Tensor]:
    """The tensors that cannot be rebuilt from the configuration and the published checkpoints."""
    trained = {name for name, _ in model.trainable_parameters()}
    published = {part for key in model.base for part in BASE_PARTS[key]}
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in trained or ADAPTER in name or name.partition(".")[0] not in published
    }


def _check_base(model: SAVE, trained_on: Mapping[str, str], folder: Path) -> None:
    """Refuse a model that stands on other published checkpoints than the saved one did."""
    for key, name in BASE_NAMES.items():
        expected, given = trained_on.get(key), model.base.get(key)
        if expected == given:
            continue
        if expected is None:
            raise ValueError(
                f"{folder} was trained without a published {name} checkpoint and holds its own "
                f"weights: leave {key}_checkpoint out, got one with sha256 {given}"
            )
        raise ValueError(
            f"{folder} was trained on the {name} checkpoint with sha256 {expected}, got "
            f"{given or 'none'}: name that file as {key}_checkpoint"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: the folder holds a part of a model only")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged (truncated, or no safetensors file): {error}"
        ) from None
