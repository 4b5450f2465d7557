"""Masks of a whole clip: five frames and five seconds of sound, with the stages timed apart.

::

    python -m tests.benchmarks.inference

Ours and the parents' plain code path with the same weights, and ``save_tiny`` beside them.
"""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from model import SAVE, build_save, log_mel_examples
from model import save as save_module
from tests.benchmarks import timing
from tests.benchmarks.plain import PlainSave
from tests.small_sam import small_size

SIDE, NATIVE, FRAMES, RATE = 256, 224, 5, 16000


def masks(logits_T1SS: Tensor) -> Tensor:
    """Binary masks in the frames' own size."""
    native = F.interpolate(logits_T1SS, (NATIVE, NATIVE), mode="bilinear", align_corners=False)
    return native[:, 0] > 0


@torch.inference_mode()
def staged(model: SAVE, image_T3SS: Tensor, wave_N: Tensor, *, repeats: int) -> None:
    """Print the median of each stage."""
    log_mel = log_mel_examples(wave_N.cpu(), RATE).to(image_T3SS.device)
    audio = model.embed_audio(log_mel)
    embedding = model.encode_image(image_T3SS, audio)
    logits = model.decode_masks(embedding, audio)
    stages = {
        "log-mel": lambda: log_mel_examples(wave_N.cpu(), RATE),
        "audio encoder": lambda: model.embed_audio(log_mel),
        "image encoder": lambda: model.encode_image(image_T3SS, audio),
        "mask decoder": lambda: model.decode_masks(embedding, audio),
        "masks at 224": lambda: masks(logits),
    }
    for name, stage in stages.items():
        stage()
        median = statistics.median(timing.seconds(stage) for _ in range(repeats))
        print(f"  {name:<16}{1000 * median:10.1f} ms a clip")


@torch.inference_mode()
def whole(model: torch.nn.Module, image_T3SS: Tensor, wave_N: Tensor) -> Tensor:
    log_mel = log_mel_examples(wave_N.cpu(), RATE).to(image_T3SS.device)
    return masks(model(image_T3SS, log_mel))


def main() -> None:
    options = timing.parser(__doc__ or "", pairs=5, batch=FRAMES).parse_args()
    device = timing.start(options)
    if options.smoke:
        save_module.SIZES["save_vit_b"] = small_size()
    image = torch.randn(options.batch, 3, SIDE, SIDE, device=device)
    samples = 15_360 * options.batch + 240
    wave = 0.1 * torch.randn(samples)
    for spatial in ("dense", "depthwise"):
        save = build_save("save_vit_b", spatial=spatial).eval().to(device)
        plain = PlainSave(save).eval().to(device)
        agree = (whole(save, image, wave) == whole(plain, image, wave)).float().mean()
        print(f"save_vit_b, {spatial} adapters; pixels with the peer's answer: {agree:.4%}")
        timing.compare(
            f"clip of {options.batch} frames",
            lambda save=save: whole(save, image, wave),  # type: ignore[misc]
            lambda plain=plain: whole(plain, image, wave),  # type: ignore[misc]
            pairs=options.pairs,
            images=options.batch,
        )
        staged(save, image, wave, repeats=options.pairs)
    tiny = build_save("save_tiny").eval().to(device)
    median = statistics.median(
        timing.seconds(lambda: whole(tiny, image, wave)) for _ in range(options.pairs + 1)
    )
    print(f"save_tiny: {1000 * median:.1f} ms a clip, {options.batch / median:.1f} frames/s")
    staged(tiny, image, wave, repeats=options.pairs)


if __name__ == "__main__":
    main()
