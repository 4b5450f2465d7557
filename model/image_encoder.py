"""SAM's image encoder with an adapter in every block and the sound added after every block.

A plain ViT with patch 16, windowed attention in most blocks and global attention in a few,
decomposed relative positions, and a convolutional neck to 256 channels. Parameter names are
segment-anything's, so that its checkpoints load by key; the adapters are ``blocks.{i}.Adapter.*``,
as SAM-Med2D names them.

The attention is an exact rewrite of segment-anything's, not a copy. A grid that does not fill its
windows is padded with zeros there, after the norm and before ``qkv``: so each padded cell's key
and value are the bias of ``qkv``, and nobody reads what its query would find. Here ``qkv`` and
``proj`` run on the real cells only, and so do the queries. The padded cells of a window, which
differ in their relative position alone, are one key and one value together, biased by the
logarithm of the sum of what their biases are the logarithms of.

In a bf16 or half model the stream of residuals between the parts is float32, as under autocast:
rounding it after each of its dozens of sums would double the encoder's error. The parts themselves
run in the model's dtype.

Shapes: B images, H x W grid cells, C channels, S window side, N windows, h x w the real cells of a
window, M heads, D channels of a head.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.image_adapter import AdapterInit, ImageAdapter, Spatial

PATCH = 16
OUT_CHANNELS = 256


class ImageEncoder(nn.Module):
    """Images to a grid of 256-channel features, a sixteenth of their side.

    Args:
        image_size: side of the square input in pixels, a multiple of 16.
        dim: C.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_ratio: width inside a block's MLP, in multiples of C (4 in SAM).
        global_blocks: blocks that attend over the whole grid; the others attend in windows.
        window: side of those windows in grid cells.
        relative_positions: whether attention has SAM's decomposed relative positions.
        neck_groups: groups of the neck's 3x3 convolution (1 in SAM).
        spatial: form of the adapters.
        adapter_init: start of the adapters.
    """

    def __init__(
        self,
        *,
        image_size: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        global_blocks: Sequence[int],
        window: int,
        relative_positions: bool,
        neck_groups: int,
        spatial: Spatial,
        adapter_init: AdapterInit,
    ) -> None:
        super().__init__()
        grid = image_size // PATCH
        self.global_blocks = tuple(global_blocks)
        self.recompute = False
        """Whether training computes each block again in the backward pass instead of keeping what
        it computed: less memory, more time."""
        self.patch_embed = PatchEmbedding(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads=heads,
                mlp_ratio=mlp_ratio,
                window=grid if index in global_blocks else window,
                relative_positions=relative_positions,
                adapter=ImageAdapter(dim, spatial=spatial, init=adapter_init),
            )
            for index in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, OUT_CHANNELS, 1, bias=False),
            ChannelNorm(OUT_CHANNELS),
            nn.Conv2d(OUT_CHANNELS, OUT_CHANNELS, 3, padding=1, groups=neck_groups, bias=False),
            ChannelNorm(OUT_CHANNELS),
        )

    def forward(self, image_BCHW: Tensor, injections: Sequence[Tensor] | None = None) -> Tensor:
        """Encode images, with one ``[B, C]`` of sound for each block, or none at all.

        Returns:
            ``[B, 256, side/16, side/16]``.
        """
        assert injections is None or len(injections) == len(self.blocks)
        x_BHWC = self.patch_embed(image_BCHW) + self.pos_embed
        x_BHWC = x_BHWC.to(_wide(x_BHWC))
        recompute = self.recompute and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            x_BHWC = checkpoint(block, x_BHWC, use_reentrant=False) if recompute else block(x_BHWC)
            if injections is not None:
                x_BHWC = x_BHWC + injections[index][:, None, None, :]
        x_BHWC = x_BHWC.to(self.pos_embed.dtype)
        embedding_BCHW: Tensor = self.neck(x_BHWC.permute(0, 3, 1, 2))
        return embedding_BCHW


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of ``[B, C, H, W]``; segment-anything's ``LayerNorm2d``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        normed = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, eps=1e-6)
        return normed.permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    """Non-overlapping 16x16 patches of an image, projected to C channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        patches: Tensor = self.proj(image_BCHW)
        return patches.permute(0, 2, 3, 1)


class Block(nn.Module):
    """A transformer block with the adapter beside its MLP, as SAM-Med2D places it.

    y = x + Attention(norm1(x)),  out = y + MLP(z) + Adapter(z),  z = norm2(y)
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        mlp_ratio: int,
        window: int,
        relative_positions: bool,
        adapter: ImageAdapter,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(
            dim, heads=heads, window=window, relative_positions=relative_positions
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_dim=mlp_ratio * dim)
        self.Adapter = adapter

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self.attn(_normed(self.norm1, x_BHWC))
        z_BHWC = _normed(self.norm2, x_BHWC)
        out: Tensor = x_BHWC + self.mlp(z_BHWC) + self.Adapter(z_BHWC)
        return out


def _normed(norm: nn.LayerNorm, x_BHWC: Tensor) -> Tensor:
    """The norm of a stream that may be more precise than the model, in the model's dtype."""
    dtype = norm.weight.dtype
    if x_BHWC.dtype == dtype:
        normed: Tensor = norm(x_BHWC)
        return normed
    weight, bias = norm.weight.to(x_BHWC.dtype), norm.bias.to(x_BHWC.dtype)
    return F.layer_norm(x_BHWC, norm.normalized_shape, weight, bias, norm.eps).to(dtype)


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class Attention(nn.Module):
    """Multi-head self-attention inside windows of S x S cells, S = the grid for global blocks."""

    def __init__(self, dim: int, *, heads: int, window: int, relative_positions: bool) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h: nn.Parameter | None = None
        self.rel_pos_w: nn.Parameter | None = None
        if relative_positions:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * window - 1, dim // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * window - 1, dim // heads))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        rows, columns = (_spans(length, self.window) for length in x_BHWC.shape[1:3])
        # At most four rectangles: full windows, and those cut by the right and the bottom edge.
        # Split, not sliced: a slice's gradient is a whole grid of zeros, to be added up.
        bands = [
            _join([self._attend(part) for part in band.split(columns, 2)], axis=2)
            for band in self.qkv(x_BHWC).split(rows, 1)
        ]
        out: Tensor = self.proj(_join(bands, axis=1))
        return out

    def _attend(self, qkv_BHWC: Tensor) -> Tensor:
        """Attention in a rectangle of equal windows, each with the same h x w real cells."""
        batch, height, width, _ = qkv_BHWC.shape
        h, w = min(self.window, height), min(self.window, width)
        down, across = height // h, width // w
        split = qkv_BHWC.reshape(batch, down, h, across, w, 3, self.heads, -1)
        q_NMhwD, k_NMhwD, v_NMhwD = split.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3).unbind(0)
        q_NMQD, k_NMKD, v_NMKD = (x.flatten(2, 3) for x in (q_NMhwD, k_NMhwD, v_NMhwD))
        if h < self.window or w < self.window:
            _, k_bias, v_bias = self.qkv.bias.to(split.dtype).view(3, self.heads, 1, -1).unbind(0)
            k_NMKD = torch.cat([k_NMKD, k_bias.expand(k_NMKD.shape[0], -1, -1, -1)], 2)
            v_NMKD = torch.cat([v_NMKD, v_bias.expand(v_NMKD.shape[0], -1, -1, -1)], 2)
        out_NMQD = _attention(q_NMQD, k_NMKD, v_NMKD, self._bias(q_NMhwD))
        out = out_NMQD.view(batch, down, across, self.heads, h, w, -1)
        return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, -1)

    def _bias(self, q_NMhwD: Tensor) -> Tensor | None:
        """The bias ``[N, M, h*w, keys]`` on the attention: one key for each real cell, and one
        more for all padded ones where the window has such."""
        side, (h, w) = self.window, q_NMhwD.shape[2:4]
        padded = side * side - h * w
        if self.rel_pos_h is None or self.rel_pos_w is None:
            if not padded:
                return None
            bias = q_NMhwD.new_zeros(1, 1, 1, h * w + 1)
            bias[..., -1] = math.log(padded)
            return bias
        offset = torch.arange(side, device=q_NMhwD.device)
        table_h = self.rel_pos_h[offset[:h, None] - offset + side - 1].to(q_NMhwD.dtype)
        table_w = self.rel_pos_w[offset[:w, None] - offset + side - 1].to(q_NMhwD.dtype)
        bias_h = torch.einsum("nmhwd,hkd->nmhwk", q_NMhwD, table_h)
        bias_w = torch.einsum("nmhwd,wkd->nmhwk", q_NMhwD, table_w)
        real = bias_h[..., :h, None] + bias_w[..., None, :w]
        if not padded:
            return real.flatten(4).flatten(2, 3)
        # Padded cells are those right of the real ones in every row, and those below them.
        bias_h, bias_w = bias_h.to(_wide(bias_h)), bias_w.to(_wide(bias_w))
        parts = []
        if w < side:
            parts.append(bias_h.logsumexp(-1) + bias_w[..., w:].logsumexp(-1))
        if h < side:
            parts.append(bias_h[..., h:].logsumexp(-1) + bias_w[..., :w].logsumexp(-1))
        rest = parts[0] if len(parts) == 1 else torch.logaddexp(*parts)
        return torch.cat([real.flatten(4), rest.to(real.dtype)[..., None]], -1).flatten(2, 3)


def _attention(q_NMQD: Tensor, k_NMKD: Tensor, v_NMKD: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None or not bias.requires_grad or not bias.is_cpu:
        return F.scaled_dot_product_attention(q_NMQD, k_NMKD, v_NMKD, attn_mask=bias)
    # On a CPU no fused kernel differentiates the bias, and what runs instead first looks for
    # queries that may see no key at all, of which there are none here.
    scores = torch.baddbmm(
        bias.flatten(0, 1),
        q_NMQD.flatten(0, 1),
        k_NMKD.flatten(0, 1).transpose(1, 2),
        alpha=q_NMQD.shape[-1] ** -0.5,
    )
    return (scores.softmax(-1) @ v_NMKD.flatten(0, 1)).view_as(q_NMQD)


def _wide(tensor: Tensor) -> torch.dtype:
    """float32 for what is less precise."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _spans(length: int, window: int) -> list[int]:
    """How much of an axis whole windows cover, and how much is left, where there is such."""
    rest = length % window
    return [span for span in (length - rest, rest) if span]


def _join(parts: list[Tensor], *, axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
