"""Loading the published checkpoints of SAM and VGGish by their own key names.

Files are read with ``weights_only=True``: nothing in them is executed. A key that is missing, left
over or of another shape is an error that names it. The image encoder's absolute positions and the
relative positions of its global blocks are the only tensors that depend on the input size; they
are resized as SAM-Med2D resizes them.

Shapes: G x G grid of the model, g x g grid of the checkpoint, C channels, D channels of a head.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from model.image_encoder import ImageEncoder

SAM_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
# What this project adds to SAM's image encoder, and no SAM checkpoint has.
ADAPTER = ".Adapter."
# torchaudio's bundle (``vggish.pt``) has the same layers under other names.
TORCHAUDIO_VGGISH_NAMES = {"features_network.": "features.", "embedding_network.": "embeddings."}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """A flat state dict from a file written by ``torch.save``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, holds anything but tensors, or is no such file at all.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors (truncated, or not written by "
            f"torch.save): {reason}"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{path} is not a flat mapping of names to tensors")
    return dict(state)


def load_sam(
    path: str | Path,
    *,
    image_encoder: "ImageEncoder",
    prompt_encoder: nn.Module,
    mask_decoder: nn.Module,
) -> None:
    """Load an official SAM checkpoint (``sam_vit_*.pth``) into the three parts it describes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or its keys or shapes are those of another model.
    """
    state = read_state_dict(path)
    unexpected = [key for key in state if key.partition(".")[0] not in SAM_PARTS]
    if unexpected:
        raise ValueError(
            f"{path} is no SAM checkpoint: expected keys under {', '.join(SAM_PARTS)}, "
            f"got {_names(unexpected)}"
        )
    parts = {part: _under(state, part) for part in SAM_PARTS}
    _resize_positions(parts["image_encoder"], image_encoder)
    modules = dict(zip(SAM_PARTS, (image_encoder, prompt_encoder, mask_decoder), strict=True))
    # All parts are checked before any is touched.
    for part, module in modules.items():
        _check(module, parts[part], f"SAM checkpoint {path}", prefix=f"{part}.")
    for part, module in modules.items():
        module.load_state_dict(parts[part], strict=False)


def load_vggish(path: str | Path, vggish: nn.Module) -> None:
    """Load VGGish from torchvggish's (``vggish-10086976.pth``) or torchaudio's (``vggish.pt``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or its keys or shapes are those of another model.
    """
    state: dict[str, Tensor] = {}
    for key, value in read_state_dict(path).items():
        for theirs, ours in TORCHAUDIO_VGGISH_NAMES.items():
            key = ours + key.removeprefix(theirs) if key.startswith(theirs) else key
        state[key] = value
    _check(vggish, state, f"VGGish checkpoint {path}")
    vggish.load_state_dict(state)


def _under(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _resize_positions(state: dict[str, Tensor], encoder: "ImageEncoder") -> None:
    """Fit the encoder's position tables to its grid, in place; other shapes are left to fail."""
    wanted = {key: value.shape for key, value in encoder.state_dict().items()}
    # Windowed blocks have one size everywhere; another size there is another model.
    tables = {
        f"blocks.{index}.attn.rel_pos_{axis}" for index in encoder.global_blocks for axis in "hw"
    }
    for key, value in state.items():
        shape = wanted.get(key)
        if shape is None or value.shape == shape or value.ndim != len(shape):
            continue
        if key == "pos_embed" and value.shape[-1] == shape[-1]:
            state[key] = _resize_grid(value, shape[1])
        elif key in tables and value.shape[-1] == shape[-1]:
            state[key] = _resize_table(value, shape[0])


def _resize_grid(pos_embed_1ggC: Tensor, grid: int) -> Tensor:
    """Bilinear without antialiasing, as SAM-Med2D does."""
    resized = F.interpolate(
        pos_embed_1ggC.permute(0, 3, 1, 2), size=(grid, grid), mode="bilinear", align_corners=False
    )
    return resized.permute(0, 2, 3, 1)


def _resize_table(rel_pos_LD: Tensor, length: int) -> Tensor:
    """Linear, as segment-anything itself does at run time for another input size."""
    return F.interpolate(rel_pos_LD.T[None], size=length, mode="linear", align_corners=False)[0].T


def _check(
    module: nn.Module, state: Mapping[str, Tensor], source: str, *, prefix: str = ""
) -> None:
    """Refuse a state whose keys or shapes are not the module's; its adapters are not expected."""
    wanted = module.state_dict()
    missing = [prefix + key for key in wanted if key not in state and ADAPTER not in key]
    unexpected = [prefix + key for key in state if key not in wanted or ADAPTER in key]
    misshapen = [
        f"{prefix}{key} {list(wanted[key].shape)} but got {list(value.shape)}"
        for key, value in state.items()
        if key in wanted and wanted[key].shape != value.shape
    ]
    problems = [
        f"{label} {_names(names)}"
        for label, names in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("expected shape", misshapen),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{source} is of another model or incomplete; {'; '.join(problems)}")


def _names(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
