"""The image encoder adapter: what SAVE adds to every block of SAM's image encoder.

The form is SAM-Med2D's (its ``Adapter_Layer``, from which SAVE takes it): a channel gate, then a
spatial branch that halves the grid and restores it by a transposed convolution, then LayerNorm.

    A(z) = LayerNorm(z + s(g(z) * z)),   g(z) = sigmoid(W2 relu(W1 mean_HW(z)))
    s    = relu . ConvTranspose4x4/2 . relu . Conv3x3/2

Shapes: B images, H x W grid cells, C channels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Spatial = Literal["dense", "bottleneck", "depthwise"]
AdapterInit = Literal["parent", "zero"]

CHANNEL_RATIO = 0.25
BOTTLENECK_RATIO = 4


class ImageAdapter(nn.Module):
    """Channel gate, spatial branch and LayerNorm around a grid of features.

    Args:
        channels: C.
        spatial: ``dense`` is the parent's, 25 C^2 weights; ``bottleneck`` runs the same two
            convolutions in C/4 channels; ``depthwise`` runs them per channel.
        init: ``parent`` starts as SAM-Med2D does, adding a signal of unit variance to the block
            from step 0. ``zero`` starts with a LayerNorm of zero scale, so that the adapter adds
            nothing until it has learned something.

    Parameter names are SAM-Med2D's (``channel``, ``spatial``, ``norm``) for the dense form; the
    convolutions' weights are in another order, see ``GridConv``.
    """

    def __init__(self, channels: int, *, spatial: Spatial, init: AdapterInit) -> None:
        super().__init__()
        hidden = int(channels * CHANNEL_RATIO)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = _spatial_branch(channels, spatial)
        self.norm = nn.LayerNorm(channels)

        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, GridConv):
                with torch.no_grad():
                    nn.init.kaiming_normal_(module.kernel, mode="fan_out", nonlinearity="relu")
        if init == "zero":
            nn.init.zeros_(self.norm.weight)

    def forward(self, z_BHWC: Tensor) -> Tensor:
        height, width = z_BHWC.shape[1:3]
        gate_BC = self.channel(z_BHWC.mean((1, 2)))
        # The permuted view is channels_last in memory, which convolutions take without a copy.
        gated_BCHW = (z_BHWC * gate_BC[:, None, None, :]).permute(0, 3, 1, 2)
        # An odd grid comes back one cell larger; even grids, all of SAM's, are untouched.
        branch_BCHW = self.spatial(gated_BCHW)[:, :, :height, :width]
        out: Tensor = self.norm(z_BHWC + branch_BCHW.permute(0, 2, 3, 1))
        return out


class GridConv(nn.Module):
    """A 3x3 convolution that halves a grid, or a 4x4 transposed one that doubles it, all to all.

    The weights lie as the grid does, channels last: ``[C, 3, 3, C]`` (out, y, x, in), or
    ``[C, 4, 4, C]`` (in, y, x, out). In torch's own order they would be reordered in each step,
    which costs a quarter of a training step; a parameter in torch's order that merely lies
    otherwise in memory is what DeepSpeed cannot take.
    """

    def __init__(self, channels: int, *, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        side = 4 if transposed else 3
        self.weight = nn.Parameter(torch.empty(channels, side, side, channels))

    @property
    def kernel(self) -> Tensor:
        """The weights in torch's order, a view."""
        return self.weight.permute(0, 3, 1, 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose2d(x_BCHW, self.kernel, stride=2, padding=1)
        return F.conv2d(x_BCHW, self.kernel, stride=2, padding=1)


def _spatial_branch(channels: int, spatial: Spatial) -> nn.Sequential:
    inner = channels // BOTTLENECK_RATIO if spatial == "bottleneck" else channels
    if spatial == "depthwise":
        down: nn.Module = nn.Conv2d(inner, inner, 3, 2, padding=1, groups=inner, bias=False)
        up: nn.Module = nn.ConvTranspose2d(inner, inner, 4, 2, padding=1, groups=inner, bias=False)
    else:
        down, up = GridConv(inner, transposed=False), GridConv(inner, transposed=True)
    layers: list[nn.Module] = [down, nn.ReLU(), up, nn.ReLU()]
    if spatial == "bottleneck":
        layers = [
            nn.Conv2d(channels, inner, 1, bias=False),
            *layers,
            nn.Conv2d(inner, channels, 1, bias=False),
        ]
    return nn.Sequential(*layers)
