"""SAM's image encoder with an adapter in every block and the sound added after every block.

A plain ViT with patch 16, windowed attention in most blocks and global attention in a few,
decomposed relative positions, and a convolutional neck to 256 channels. Parameter names are
segment-anything's, so that its checkpoints load by key; the adapters are ``blocks.{i}.Adapter.*``,
as SAM-Med2D names them.

The attention is an exact rewrite of segment-anything's, not a copy. A grid that does not fill its
windows is padded with zeros there, after the norm and before ``qkv``: so each padded cell's key
and value are the bias of ``qkv``, and nobody reads what its query would find. Here ``qkv`` and
``proj`` run on the real cells only, queries are real cells only, and padded keys are filled in.

In a bf16 or half model the stream of residuals between the parts is float32, as under autocast:
rounding it after each of its dozens of sums would double the encoder's error. The parts themselves
run in the model's dtype.

Shapes: B images, H x W grid cells, C channels, S window side, N windows, h x w the real cells of a
window, M heads, D channels of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        x_BHWC = x_BHWC.to(torch.promote_types(x_BHWC.dtype, torch.float32))
        for index, block in enumerate(self.blocks):
            x_BHWC = block(x_BHWC)
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
        height, width = x_BHWC.shape[1:3]
        qkv_BHWC = self.qkv(x_BHWC)
        # At most four rectangles: full windows, and those cut by the right and the bottom edge.
        columns = _spans(width, self.window)
        bands = [
            _join(
                [self._attend(qkv_BHWC[:, top:end, left:right]) for left, right in columns], axis=2
            )
            for top, end in _spans(height, self.window)
        ]
        out: Tensor = self.proj(_join(bands, axis=1))
        return out

    def _attend(self, qkv_BHWC: Tensor) -> Tensor:
        """Attention in a rectangle of equal windows, each with the same h x w real cells."""
        batch, height, width, _ = qkv_BHWC.shape
        side, h, w = self.window, min(self.window, height), min(self.window, width)
        down, across = height // h, width // w
        split = qkv_BHWC.reshape(batch, down, h, across, w, 3, self.heads, -1)
        q_NMhwD, k_NMhwD, v_NMhwD = split.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3).unbind(0)
        k_NMSSD, v_NMSSD = k_NMhwD, v_NMhwD
        if h < side or w < side:
            _, k_bias, v_bias = self.qkv.bias.to(split.dtype).view(3, self.heads, -1).unbind(0)
            k_NMSSD = _fill(k_NMhwD, k_bias, side)
            v_NMSSD = _fill(v_NMhwD, v_bias, side)
        out_NMQD = F.scaled_dot_product_attention(
            q_NMhwD.flatten(2, 3),
            k_NMSSD.flatten(2, 3),
            v_NMSSD.flatten(2, 3),
            attn_mask=self._relative_bias(q_NMhwD),
        )
        out = out_NMQD.view(batch, down, across, self.heads, h, w, -1)
        return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, -1)

    def _relative_bias(self, q_NMhwD: Tensor) -> Tensor | None:
        """SAM's decomposed relative positions as a bias ``[N, M, h*w, S*S]`` on the attention."""
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        side, (h, w) = self.window, q_NMhwD.shape[2:4]
        offset = torch.arange(side, device=q_NMhwD.device)
        table_h = self.rel_pos_h[offset[:h, None] - offset + side - 1].to(q_NMhwD.dtype)
        table_w = self.rel_pos_w[offset[:w, None] - offset + side - 1].to(q_NMhwD.dtype)
        bias_h = torch.einsum("nmhwd,hkd->nmhwk", q_NMhwD, table_h)
        bias_w = torch.einsum("nmhwd,wkd->nmhwk", q_NMhwD, table_w)
        bias = bias_h[..., :, None] + bias_w[..., None, :]
        return bias.flatten(4).flatten(2, 3)


def _spans(length: int, window: int) -> list[tuple[int, int]]:
    """The part of an axis that whole windows cover, and the rest, where there are such."""
    whole = length // window * window
    return [span for span in ((0, whole), (whole, length)) if span[0] < span[1]]


def _join(parts: list[Tensor], *, axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _fill(real_NMhwD: Tensor, bias_MD: Tensor, side: int) -> Tensor:
    """Extend windows to S x S cells, the new ones holding the bias."""
    windows, heads, h, w, dim = real_NMhwD.shape
    full = bias_MD[None, :, None, None, :].expand(windows, heads, side, side, dim).clone()
    full[:, :, :h, :w] = real_NMhwD
    return full
