"""The image encoder against segment-anything's own at 256 pixels, at equal output.

::

    python -m tests.benchmarks.encoder

On a CPU: float32, forward, and forward with backward to every weight. On a GPU: bf16 with and
without ``torch.compile``, for batches of 1 to 256. Needs torch, torchvision and segment-anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.image_encoder import ImageEncoder
from tests.benchmarks import timing
from tests.benchmarks.plain import plain_encoder

SIDE = 256


class WithoutAdapters(nn.Module):
    """Our encoder as SAM's: the adapters are no part of what is compared."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        for block in encoder.blocks:
            block.Adapter = Nothing()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        embedding: Tensor = self.encoder(image)
        return embedding


class Nothing(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.new_zeros(())


def build(*, smoke: bool) -> tuple[nn.Module, nn.Module]:
    """Ours and segment-anything's, with the same weights, all of them random."""
    dim, depth, heads = (64, 2, 2) if smoke else (768, 12, 12)
    ours = ImageEncoder(
        image_size=SIDE,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=4,
        global_blocks=(1,) if smoke else (2, 5, 8, 11),
        window=14,
        relative_positions=True,
        neck_groups=1,
        spatial="depthwise",
        adapter_init="zero",
    )
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if ".Adapter." not in name and (parameter.ndim == 1 or "pos" in name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = plain_encoder(ours)
    return WithoutAdapters(ours), theirs


def forward_and_backward(encoder: nn.Module, image: Tensor) -> Tensor:
    encoder.zero_grad(set_to_none=True)
    out: Tensor = encoder(image)
    out.float().square().mean().backward()
    return out


def forward(encoder: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = encoder(image)
    return out


def main() -> None:
    options = timing.parser(__doc__ or "", pairs=5, batch=8).parse_args()
    device = timing.start(options)
    ours, theirs = (encoder.to(device) for encoder in build(smoke=options.smoke))
    image = torch.randn(options.batch, 3, SIDE, SIDE, device=device)
    a, b = forward(ours, image), forward(theirs, image)
    print(f"relative difference of the outputs: {(a - b).norm() / b.norm():.1e}")
    flop = {}
    for name, encoder in (("ours", ours), ("peer", theirs)):
        with FlopCounterMode(display=False) as counter:
            forward(encoder, image[:1])
        flop[name] = counter.get_total_flops()
        print(f"{name}: {flop[name] / 1e9:.1f} GFLOP an image")
    if device.type == "cpu":
        for label, call in (("forward", forward), ("forward and backward", forward_and_backward)):
            timing.compare(
                f"{label}, float32, batch {options.batch}",
                lambda call=call: call(ours, image),  # type: ignore[misc]
                lambda call=call: call(theirs, image),  # type: ignore[misc]
                pairs=options.pairs,
                images=options.batch,
            )
        return
    on_gpu(ours.bfloat16(), theirs.bfloat16(), flop["ours"], device)


def on_gpu(ours: nn.Module, theirs: nn.Module, flop: float, device: torch.device) -> None:
    """Share of the peak: of ours by the operations that ours needs, and of the peer too."""
    peak = timing.matrix_peak(device)
    print(f"matrix peak: {peak / 1e12:.0f} TFLOP/s in bf16")
    sides = {"peer": theirs, "ours": ours, "ours, compiled": torch.compile(ours)}
    for label, call, factor in (("forward", forward, 1), ("and backward", forward_and_backward, 3)):
        print(label)
        for batch in (1, 4, 16, 64, 256):
            image = torch.randn(batch, 3, SIDE, SIDE, device=device, dtype=torch.bfloat16)
            for name, encoder in sides.items():
                timing.gpu_row(
                    name,
                    lambda call=call, encoder=encoder, image=image: call(encoder, image),  # type: ignore[misc]
                    images=batch,
                    flop=factor * flop,
                    peak=peak,
                )


if __name__ == "__main__":
    main()
