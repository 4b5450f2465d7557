"""segment-anything's model in small and SAVEs that stand on it, for tests of what loading does.

``small_sam`` has the official checkpoints' format at any width and depth; ``small_size`` is the
entry for ``model.save.SIZES`` that fits it.
"""

from __future__ import annotations

import dataclasses
import sys

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn

from model.save import SIZES, Size
from model.vggish import SmallVGGish

# The package has a function of the same name as this module.
_build_sam = sys.modules["segment_anything.build_sam"]._build_sam  # type: ignore[attr-defined]


def small_sam(*, dim: int = 64, depth: int = 2, heads: int = 2) -> Sam:
    """SAM at 1024 pixels, its last block global, random where a new one has zeros and ones."""
    sam = _build_sam(dim, depth, heads, (depth - 1,))
    unsettle(sam)
    return sam


def small_size(name: str = "save_vit_b", *, dim: int = 64, depth: int = 2, heads: int = 2) -> Size:
    """The size ``name`` cut down to ``small_sam`` of the same numbers, with a small VGGish."""
    return dataclasses.replace(
        SIZES[name],
        dim=dim,
        depth=depth,
        heads=heads,
        global_blocks=(depth - 1,),
        audio_encoder=SmallVGGish,
    )


def unsettle(module: nn.Module) -> None:
    """Move what starts at zero or one: biases, norms and positions that are zero hide errors."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 or "pos" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def sam_embedding(sam: Sam, image_B3SS: Tensor) -> Tensor:
    """segment-anything's own encoder pass at any multiple of 64 pixels up to 1024.

    It resizes relative positions as it runs. Of the absolute ones an even factor without
    antialiasing takes the mean of the middle 2 x 2 cells.
    """
    encoder = sam.image_encoder
    grid = image_B3SS.shape[-1] // 16
    factor, dim = 64 // grid, encoder.pos_embed.shape[-1]
    positions = encoder.pos_embed
    if factor > 1:
        blocks = positions.view(grid, factor, grid, factor, dim)
        middle = slice(factor // 2 - 1, factor // 2 + 1)
        positions = blocks[:, middle, :, middle].mean((1, 3))
    x = encoder.patch_embed(image_B3SS) + positions
    for block in encoder.blocks:
        x = block(x)
    embedding: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return embedding


@torch.no_grad()
def sam_mask(sam: Sam, embedding_1EHW: Tensor) -> Tensor:
    """segment-anything's single mask without a prompt, as logits at the input's size."""
    grid = embedding_1EHW.shape[-1]
    prompts = sam.prompt_encoder
    masks, _ = sam.mask_decoder(
        image_embeddings=embedding_1EHW,
        image_pe=prompts.pe_layer((grid, grid))[None],
        sparse_prompt_embeddings=torch.zeros(1, 0, 256),
        dense_prompt_embeddings=prompts.no_mask_embed.weight.view(1, 256, 1, 1).expand(
            1, -1, grid, grid
        ),
        multimask_output=False,
    )
    return F.interpolate(masks, (16 * grid, 16 * grid), mode="bilinear", align_corners=False)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Over the whole output: the norm of the difference by the norm of what is right."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()
