"""The peer: a SAVE on its parents' plain code path, with the very same weights.

segment-anything's blocks as they are (windows padded before ``qkv``, scores and softmax written
out), SAM-Med2D's adapter as its formula reads, SAMA-AVS's injection, and segment-anything's mask
decoder with all its masks and their quality, made to take one prompt for each image as SAM-Med2D
does. What it gives is what ours gives.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn

from model.image_adapter import GridConv, ImageAdapter
from model.image_encoder import Attention, ImageEncoder
from model.save import SAVE, SIZES


def plain_encoder(ours: ImageEncoder) -> ImageEncoderViT:
    """segment-anything's own encoder for the same input size with the same weights."""
    block = ours.blocks[0]
    attention = block.attn
    assert isinstance(attention, Attention)
    windowed = [b.attn.window for i, b in enumerate(ours.blocks) if i not in ours.global_blocks]
    encoder = ImageEncoderViT(
        img_size=16 * ours.pos_embed.shape[1],
        patch_size=16,
        embed_dim=ours.pos_embed.shape[-1],
        depth=len(ours.blocks),
        num_heads=attention.heads,
        mlp_ratio=4,
        out_chans=256,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=windowed[0],
        global_attn_indexes=ours.global_blocks,
    )
    state = {key: value for key, value in ours.state_dict().items() if ".Adapter." not in key}
    encoder.load_state_dict(state)
    wanted = dict(ours.named_parameters())
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad = wanted[name].requires_grad
    return encoder


class PlainSave(nn.Module):
    """The same function as a SAVE of SAM's sizes, and the same trained parameters."""

    def __init__(self, save: SAVE) -> None:
        super().__init__()
        size = SIZES[save.config.name]
        self.encoder = plain_encoder(save.image_encoder)
        self.adapters = nn.ModuleList(_usual(b.Adapter) for b in save.image_encoder.blocks)
        self.audio_encoder = copy.deepcopy(save.audio_encoder)
        self.audio_adapter = copy.deepcopy(save.audio_adapter)
        self.prompt_encoder = copy.deepcopy(save.prompt_encoder)
        self.mask_decoder = MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=256, mlp_dim=size.decoder_mlp_dim, num_heads=8
            ),
        )
        self.mask_decoder.load_state_dict(save.mask_decoder.state_dict())
        trained = {name for name, _ in save.mask_decoder.named_parameters()} & {
            name.removeprefix("mask_decoder.") for name, _ in save.trainable_parameters()
        }
        for name, parameter in self.mask_decoder.named_parameters():
            parameter.requires_grad = name in trained

    def forward(self, image_B3SS: Tensor, log_mel_B1TF: Tensor) -> Tensor:
        with torch.no_grad():
            audio_BD = self.audio_encoder(log_mel_B1TF)
        injections, prompt_BE = self.audio_adapter(audio_BD)
        embedding_BEHW = self.encode(image_B3SS, injections)
        return self.decode(embedding_BEHW, prompt_BE[:, None])

    def encode(self, image_B3SS: Tensor, injections: Sequence[Tensor]) -> Tensor:
        encoder = self.encoder
        x = encoder.patch_embed(image_B3SS) + encoder.pos_embed
        for block, adapter, injection_BC in zip(
            encoder.blocks, self.adapters, injections, strict=True
        ):
            x = _plain_block(block, adapter, x) + injection_BC[:, None, None, :]
        embedding: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
        return embedding

    def decode(self, embedding_BEHW: Tensor, prompt_B1E: Tensor) -> Tensor:
        decoder, prompts = self.mask_decoder, self.prompt_encoder
        batch, channels, height, width = embedding_BEHW.shape
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([tokens[None].expand(batch, -1, -1), prompt_B1E], 1)
        dense = prompts.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embedding_BEHW)
        positions = torch.repeat_interleave(prompts.get_dense_pe(), batch, dim=0)
        hidden, source = decoder.transformer(embedding_BEHW + dense, positions, tokens)
        source = source.transpose(1, 2).view(batch, channels, height, width)
        upscaled = decoder.output_upscaling(source)
        filters = torch.stack(
            [mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1
        )
        masks = (filters @ upscaled.flatten(2)).view(batch, -1, *upscaled.shape[2:])
        decoder.iou_prediction_head(hidden[:, 0])
        return F.interpolate(
            masks[:, :1], prompts.input_image_size, mode="bilinear", align_corners=False
        )


def _plain_block(block: nn.Module, adapter: ImageAdapter, x: Tensor) -> Tensor:
    shortcut = x
    x = block.norm1(x)
    if block.window_size > 0:
        height, width = x.shape[1:3]
        x, padded = window_partition(x, block.window_size)
    x = block.attn(x)
    if block.window_size > 0:
        x = window_unpartition(x, block.window_size, padded, (height, width))
    x = shortcut + x
    z = block.norm2(x)
    out: Tensor = x + block.mlp(z) + _plain_adapter(adapter, z)
    return out


def _usual(adapter: ImageAdapter) -> ImageAdapter:
    """A copy with torch's own convolutions, as SAM-Med2D has them."""
    usual = copy.deepcopy(adapter)
    for name, layer in adapter.spatial.named_children():
        if isinstance(layer, GridConv):
            kind, side = (nn.ConvTranspose2d, 4) if layer.transposed else (nn.Conv2d, 3)
            channels = len(layer.weight)
            plain = kind(channels, channels, side, stride=2, padding=1, bias=False)
            with torch.no_grad():
                plain.weight.copy_(layer.kernel)
            usual.spatial.add_module(name, plain)
    return usual


def _plain_adapter(adapter: ImageAdapter, z_BHWC: Tensor) -> Tensor:
    z = z_BHWC.permute(0, 3, 1, 2)
    gate = adapter.channel(F.adaptive_avg_pool2d(z, 1).flatten(1))
    z = z + adapter.spatial(gate[:, :, None, None] * z)
    out: Tensor = adapter.norm(z.permute(0, 2, 3, 1))
    return out
