"""A SAVE on disk: a folder with weights only, nothing that could be executed.

::

    save.safetensors    what was learned here: every tensor of a model trained from scratch, and
                        of one built on published weights those that are trained
    save.json           the model's configuration, and a fingerprint of the published weights

Published weights are not copied: who loads the model names the same SAM and VGGish files again,
and the fingerprint tells whether they are the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.save import SAVE, SIZES, build_save

WEIGHTS = "save.safetensors"
CONFIG = "save.json"
FORMAT_VERSION = 1

# Values per tensor that enter the fingerprint.
_PROBED_VALUES = 64


def save(
    model: SAVE,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    published: str | None = None,
) -> None:
    """Write a model into ``folder``.

    Args:
        weights: taken in place of the model's own tensors of these names, for instance the full
            precision copies that an optimizer holds.
        published: ``fingerprint`` of the model before it was cast to another precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: (weights or {}).get(name, value).detach().to("cpu", torch.float32).contiguous()
        for name, value in _learned(model).items()
    }
    description = {
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(model.config),
        "published_weights": published or fingerprint(model),
    }
    save_file(kept, folder / WEIGHTS)
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
        FileNotFoundError: there is no model in the folder.
        ValueError: the folder is damaged, or the published weights are not those it was trained on.
    """
    config = read_config(folder)["model"]
    model = build_save(**config, sam_checkpoint=sam_checkpoint, vggish_checkpoint=vggish_checkpoint)
    load_weights(model, folder)
    return model


def load_weights(model: SAVE, folder: Path) -> None:
    """Load the weights in ``folder`` into a model of the same configuration.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: it is damaged, of another configuration, or was trained on other published
            weights than those of ``model``.
    """
    description = read_config(folder)
    ours, theirs = dataclasses.asdict(model.config), description["model"]
    different = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    # How adapters start says nothing about what they have learned.
    different = [name for name in different if name != "adapter_init"]
    if different:
        told = ", ".join(f"{k} {theirs.get(k)} instead of {ours.get(k)}" for k in different)
        raise ValueError(f"{folder} holds a model of another configuration: {told}")
    if description["published_weights"] != fingerprint(model):
        raise ValueError(
            f"{folder} was trained on other SAM or VGGish weights than those given: name the "
            "sam_checkpoint and vggish_checkpoint that it was trained with"
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or missing: {error}") from None
    wanted = _learned(model)
    wrong = sorted(weights.keys() ^ wanted.keys()) + sorted(
        name for name in weights.keys() & wanted.keys() if weights[name].shape != wanted[name].shape
    )
    if wrong:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {model.config.name}: {', '.join(wrong[:5])} missing, "
            "left over or of another shape"
        )
    model.load_state_dict(weights, strict=False)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``save.json``: ``model`` and ``published_weights``."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no model: {CONFIG} is missing")
    try:
        description = json.loads((folder / CONFIG).read_text())
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"{folder} has model format {version}, this reads {FORMAT_VERSION}")
        if not isinstance(description["model"], dict) or "published_weights" not in description:
            raise KeyError
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError(f"{folder / CONFIG} is damaged") from None
    assert isinstance(description, dict)
    return description


def _learned(model: SAVE) -> dict[str, Tensor]:
    state = model.state_dict()
    if not SIZES[model.config.name].pretrained:
        return state
    trained = {name for name, _ in model.trainable_parameters()}
    return {name: value for name, value in state.items() if name in trained}


def fingerprint(model: SAVE) -> str | None:
    """sha256 over evenly spread values of every tensor that ``_learned`` leaves out.

    Of the 160 million values of SAM and VGGish a few thousand tell one checkpoint from another.
    """
    learned = _learned(model).keys()
    left_out = {k: v for k, v in sorted(model.state_dict().items()) if k not in learned}
    if not left_out:
        return None
    digest = hashlib.sha256()
    for name, value in left_out.items():
        values = value.detach().flatten()
        probes = torch.linspace(0, values.numel() - 1, _PROBED_VALUES, dtype=torch.float64).long()
        probed = values[probes.to(values.device)].to("cpu", torch.float32)
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(probed.numpy().tobytes())
    return digest.hexdigest()
