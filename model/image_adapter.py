"""The image encoder adapter: what SAVE adds to every block of SAM's image encoder.

The form is SAM-Med2D's (its ``Adapter_Layer``, from which SAVE takes it): a channel gate, then a
spatial branch that halves the grid and restores it by a transposed convolution, then LayerNorm.

    A(z) = LayerNorm(z + s(g(z) * z)),   g(z) = sigmoid(W2 relu(W1 mean_HW(z)))
    s    = relu . ConvTranspose4x4/2 . relu . Conv3x3/2

Shapes: B images, H x W grid cells, C channels.
"""

from typing import Literal

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

    Parameter names are SAM-Med2D's (``channel``, ``spatial``, ``norm``) for the dense form.
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


def _spatial_branch(channels: int, spatial: Spatial) -> nn.Sequential:
    inner = channels // BOTTLENECK_RATIO if spatial == "bottleneck" else channels
    groups = channels if spatial == "depthwise" else 1
    down = nn.Conv2d(inner, inner, 3, stride=2, padding=1, groups=groups, bias=False)
    up = nn.ConvTranspose2d(inner, inner, 4, stride=2, padding=1, groups=groups, bias=False)
    layers: list[nn.Module] = [down, nn.ReLU(), up, nn.ReLU()]
    if spatial == "bottleneck":
        layers = [
            nn.Conv2d(channels, inner, 1, bias=False),
            *layers,
            nn.Conv2d(inner, channels, 1, bias=False),
        ]
    return nn.Sequential(*layers)
