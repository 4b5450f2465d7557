"""SAM's prompt encoder and mask decoder, run with one sound prompt for each image.

Both modules are segment-anything's own, but for one norm, so that its weights load by key. Only
the pass through them is ours: segment-anything takes one image with many prompts and repeats the
image for each; here every image has its own prompt and B images are one batch. It also computes
four masks and their quality; here the single-mask output is computed alone.

Shapes: B images, E = 256 channels, H x W the grid, n sparse tokens (0 or 1).
"""

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor

from model.image_encoder import ChannelNorm

PROMPT_DIM = 256
MASK_TOKENS = 4
# Parts of segment-anything's modules that get no gradient when one mask is asked for without
# points, boxes or mask prompts.
UNUSED_PROMPT_PARTS = ("point_embeddings.", "not_a_point_embed.", "mask_downscaling.")
UNUSED_DECODER_PARTS = (
    "iou_prediction_head.",
    *(f"output_hypernetworks_mlps.{index}." for index in range(1, MASK_TOKENS)),
)


def build_prompt_encoder(image_size: int, grid: int) -> PromptEncoder:
    """segment-anything's prompt encoder for a square image."""
    return PromptEncoder(
        embed_dim=PROMPT_DIM,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )


def build_mask_decoder(*, mlp_dim: int, attention_downsample: int) -> MaskDecoder:
    """segment-anything's mask decoder.

    Args:
        mlp_dim: width of the transformer's MLP (2048 in SAM).
        attention_downsample: by how much attention between tokens and image is narrower than the
            256 channels (2 in SAM).
    """
    decoder = MaskDecoder(
        num_multimask_outputs=MASK_TOKENS - 1,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=PROMPT_DIM,
            mlp_dim=mlp_dim,
            num_heads=8,
            attention_downsample_rate=attention_downsample,
        ),
        transformer_dim=PROMPT_DIM,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    # segment-anything's LayerNorm2d takes its mean and variance in bf16 when the model is bf16;
    # this is the same norm with its sums in float32, and one kernel instead of seven.
    norm = decoder.output_upscaling[1]
    decoder.output_upscaling[1] = ChannelNorm(norm.weight.numel())
    return decoder


def dense_positions(prompt_encoder: PromptEncoder, dtype: torch.dtype) -> Tensor:
    """SAM's positional encoding of the grid, ``[1, E, H, W]``.

    The same as ``prompt_encoder.get_dense_pe()``, which mixes dtypes and fails when the model is
    not float32. Angles are computed in at least float32: they span many turns.
    """
    matrix_2F = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    matrix_2F = matrix_2F.to(torch.promote_types(matrix_2F.dtype, torch.float32))
    height, width = prompt_encoder.image_embedding_size
    y_H, x_W = (
        2 * (torch.arange(size, dtype=matrix_2F.dtype, device=matrix_2F.device) + 0.5) / size - 1
        for size in (height, width)
    )
    angle_HWF = (
        2 * math.pi * (x_W[None, :, None] * matrix_2F[0] + y_H[:, None, None] * matrix_2F[1])
    )
    encoding_HWE = torch.cat([angle_HWF.sin(), angle_HWF.cos()], -1)
    return encoding_HWE.permute(2, 0, 1)[None].to(dtype)


def decode_masks(
    decoder: MaskDecoder,
    prompt_encoder: PromptEncoder,
    embedding_BEHW: Tensor,
    prompt_BnE: Tensor | None,
) -> Tensor:
    """One mask for each image.

    Args:
        decoder: segment-anything's mask decoder.
        prompt_encoder: gives the positions and the embedding that stands for no mask prompt.
        embedding_BEHW: what the image encoder gives.
        prompt_BnE: each image's own sparse tokens, or None for none.

    Returns:
        logits at the input's size, ``[B, 1, 16 H, 16 W]``.
    """
    batch, channels, height, width = embedding_BEHW.shape
    no_mask = prompt_encoder.no_mask_embed.weight
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens_BnE = output_tokens[None].expand(batch, -1, -1)
    if prompt_BnE is not None:
        tokens_BnE = torch.cat([tokens_BnE, prompt_BnE.to(tokens_BnE.dtype)], 1)

    # One row of positions serves all images: the transformer only adds it.
    tokens_BnE, source_BPE = decoder.transformer(
        embedding_BEHW + no_mask.view(1, -1, 1, 1),
        dense_positions(prompt_encoder, embedding_BEHW.dtype),
        tokens_BnE,
    )
    source_BEHW = source_BPE.transpose(1, 2).reshape(batch, channels, height, width)
    upscaled_BFhw = decoder.output_upscaling(source_BEHW)
    # Token 0 is the quality token, token 1 the single-mask token.
    filter_BF = decoder.output_hypernetworks_mlps[0](tokens_BnE[:, 1])
    logits_B1P = filter_BF[:, None] @ upscaled_BFhw.flatten(2)
    logits_B1hw = logits_B1P.view(batch, 1, *upscaled_BFhw.shape[2:])
    return F.interpolate(
        logits_B1hw,
        size=prompt_encoder.input_image_size,
        mode="bilinear",
        align_corners=False,
    )
