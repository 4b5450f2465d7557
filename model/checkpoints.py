"""Loading the published checkpoints of SAM and VGGish by their own key names.

Files are read with ``weights_only=True``: nothing in them is executed. A key that is missing, left
over or of another shape is an error that names it, and a file under a published name must have the
published sha256. The image encoder's absolute positions and the
relative positions of its global blocks are the only tensors that depend on the input size; they
are resized as SAM-Med2D resizes them.

Shapes: G x G grid of the model, g x g grid of the checkpoint, C channels, D channels of a head.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from model.image_encoder import ImageEncoder

SAM_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
# sha256 of the published files. SAM's authors publish none (the six digits in their file names
# begin the md5). These are the ones that micro-sam's pooch registry (micro_sam/util.py), deepof's
# download_models.py and several other projects check their downloads against; all agree.
# VGGish's begins with the eight digits that its author put into the file name, as torch.hub asks
# for; in full it is in uncharted-distil's distil-primitives and Radio Track Splitter's installer.
PUBLISHED_SHA256 = {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    "vggish-10086976.pth": "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
}
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


def checked_sha256(path: str | Path) -> str:
    """sha256 of a checkpoint file, which under a published name must be the published one.

    A copy whose name only ends in a published name, as in a cache, counts as named so too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has a published name and other content.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    for name, published in PUBLISHED_SHA256.items():
        if path.name.endswith(name) and found != published:
            raise ValueError(
                f"{path} is damaged: the published {name} has sha256 {published}, this file has "
                f"{found}. Download it again; if it is another checkpoint, give it another name"
            )
    return found


def load_sam(
    path: str | Path,
    *,
    image_encoder: "ImageEncoder",
    prompt_encoder: nn.Module,
    mask_decoder: nn.Module,
) -> str:
    """Load an official SAM checkpoint (``sam_vit_*.pth``) into the three parts it describes.

    Returns:
        the file's sha256.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its keys or shapes are those of another model.
    """
    sha256 = checked_sha256(path)
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
    return sha256


def load_vggish(path: str | Path, vggish: nn.Module) -> str:
    """Load VGGish from torchvggish's (``vggish-10086976.pth``) or torchaudio's (``vggish.pt``).

    Returns:
        the file's sha256.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its keys or shapes are those of another model.
    """
    sha256 = checked_sha256(path)
    state: dict[str, Tensor] = {}
    for key, value in read_state_dict(path).items():
        for theirs, ours in TORCHAUDIO_VGGISH_NAMES.items():
            key = ours + key.removeprefix(theirs) if key.startswith(theirs) else key
        state[key] = value
    _check(vggish, state, f"VGGish checkpoint {path}")
    vggish.load_state_dict(state)
    return sha256


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


def mismatch(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, prefix: str = "") -> str:
    """What is missing in a state, left over or of another shape, in words; empty if it fits."""
    misshapen = [
        f"{prefix}{key} {list(wanted[key].shape)} but got {list(value.shape)}"
        for key, value in state.items()
        if key in wanted and wanted[key].shape != value.shape
    ]
    return "; ".join(
        f"{label} {_names(names)}"
        for label, names in (
            ("missing:", [prefix + key for key in wanted if key not in state]),
            ("unexpected:", [prefix + key for key in state if key not in wanted]),
            ("expected shape", misshapen),
        )
        if names
    )


def _check(
    module: nn.Module, state: Mapping[str, Tensor], source: str, *, prefix: str = ""
) -> None:
    """Refuse a state whose keys or shapes are not the module's; its adapters are not expected."""
    wanted = {key: value for key, value in module.state_dict().items() if ADAPTER not in key}
    if problems := mismatch(state, wanted, prefix=prefix):
        raise ValueError(f"{source} is of another model or incomplete; {problems}")


def _names(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
