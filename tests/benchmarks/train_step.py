"""The training step with dense adapters at 256 pixels against its parents' plain code path.

::

    python -m tests.benchmarks.train_step

Forward, loss, backward, clipping and AdamW, on both sides with the same weights, data, loss and
optimizer. On a CPU: float32, and each side's peak memory in a process of its own. On a GPU: bf16
autocast with and without ``torch.compile``, for batches of 1 to 256. Needs torch, torchvision and
segment-anything.
"""

from __future__ import annotations

import copy
import gc

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model import SAVE, build_save
from model import save as save_module
from tests.benchmarks import timing
from tests.benchmarks.plain import PlainSave
from tests.small_sam import small_size
from training.loss import mask_loss

SIDE = 256
CLIP_NORM = 1.0


class Step:
    """One side: a model, its optimizer, and the step; the losses are kept for comparison."""

    def __init__(self, model: nn.Module, *, run: nn.Module | None = None) -> None:
        self.run = run or model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.losses: list[float] = []

    def __call__(self, image: Tensor, log_mel: Tensor, mask: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=image.is_cuda):
            logits = self.run(image, log_mel)
        loss: Tensor = mask_loss(logits, mask)[0]
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        return loss.detach()


def build(*, smoke: bool) -> SAVE:
    """Ours, with random weights; the peer is made from it."""
    if smoke:
        save_module.SIZES["save_vit_b"] = small_size()
    return build_save("save_vit_b", image_size=SIDE, spatial="dense", adapter_init="zero")


def batch(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    image = torch.randn(size, 3, SIDE, SIDE, generator=generator)
    log_mel = torch.randn(size, 1, 96, 64, generator=generator)
    mask = (torch.rand(size, 1, SIDE, SIDE, generator=generator) > 0.5).float()
    return image.to(device), log_mel.to(device), mask.to(device)


def main() -> None:
    parser = timing.parser(__doc__ or "", pairs=5, batch=2)
    parser.add_argument("--only", choices=("ours", "peer"), help="print its peak memory in GiB")
    options = parser.parse_args()
    device = timing.start(options)
    data = batch(options.batch, device)
    ours = build(smoke=options.smoke).to(device)
    if options.only:
        step = Step(ours if options.only == "ours" else PlainSave(ours))
        del ours
        gc.collect()
        for _ in range(2):
            step(*data)
        print(timing.own_peak_memory())
        return
    theirs = PlainSave(ours).to(device)
    ours_step, their_step = Step(ours), Step(theirs)
    pairs = [(float(ours_step(*data)), float(their_step(*data))) for _ in range(2)]
    for number, (a, b) in enumerate(pairs, start=1):
        print(f"loss of step {number}: ours {a:.6f}, peer {b:.6f}")
    if device.type == "cpu":
        timing.compare(
            f"training step, float32, batch {options.batch}",
            lambda: ours_step(*data),
            lambda: their_step(*data),
            pairs=options.pairs,
            images=options.batch,
        )
        arguments = ["--batch", str(options.batch), "--threads", str(options.threads)]
        arguments += ["--smoke"] if options.smoke else []
        memory = [
            timing.peak_memory_of("tests.benchmarks.train_step", [*arguments, "--only", side])
            for side in ("ours", "peer")
        ]
        print(f"peak memory of the process: ours {memory[0]:.2f} GiB, peer {memory[1]:.2f} GiB")
        return
    on_gpu(ours, theirs, device)


def on_gpu(ours: nn.Module, theirs: nn.Module, device: torch.device) -> None:
    peak = timing.matrix_peak(device)
    one = batch(1, device)
    with FlopCounterMode(display=False) as counter:
        Step(copy.deepcopy(ours))(*one)
    flop = counter.get_total_flops()
    print(f"matrix peak: {peak / 1e12:.0f} TFLOP/s in bf16; a step is {flop / 1e9:.0f} GFLOP")
    sides = {
        "peer": Step(theirs),
        "ours": Step(ours),
        "ours, compiled": Step(ours, run=torch.compile(ours)),
    }
    for size in (1, 4, 16, 64, 256):
        data = batch(size, device)
        for name, step in sides.items():
            timing.gpu_row(
                name,
                lambda step=step, data=data: step(*data),  # type: ignore[misc]
                images=size,
                flop=flop,
                peak=peak,
            )


if __name__ == "__main__":
    main()
