"""What a SAVE is made of, and what one pass costs: the table behind ``SAVE.summary()``.

Operations are counted on shapes alone, by running a twin of the model on the meta device. A
multiply-add counts as two operations. Every product counts: linear layers, convolutions, and
attention with its relative positions. Norms, activations, softmax, sums and interpolation do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.mask_decoder import decode_masks
from model.vggish import EXAMPLE_FRAMES, MEL_BANDS

if TYPE_CHECKING:
    from model.save import SAVE

Result = TypeVar("Result")

IMAGE_ADAPTERS = "image adapters"
PARTS = (
    "image encoder",
    IMAGE_ADAPTERS,
    "audio encoder",
    "audio adapter",
    "prompt encoder",
    "mask decoder",
)


def parameters_by_part(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part, the image adapters apart from the encoder they stand in."""
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0].replace("_", " ")
        parts[IMAGE_ADAPTERS if ".Adapter." in name else part].append(parameter)
    return parts


def flops_by_part(twin: SAVE) -> dict[str, int]:
    """Operations in each part for one image with its sound.

    Args:
        twin: a SAVE on the meta device.
    """
    side = twin.config.image_size
    with torch.device("meta"):
        image = torch.empty(1, 3, side, side)
        log_mel = torch.empty(1, 1, EXAMPLE_FRAMES, MEL_BANDS)
    with torch.no_grad():
        audio, audio_encoder = _counted(lambda: twin.embed_audio(log_mel))
        (injections, prompt), audio_adapter = _counted(lambda: twin.audio_adapter(audio))
        embedding, image_encoder = _counted(lambda: twin.image_encoder(image, injections))
        _, mask_decoder = _counted(
            lambda: decode_masks(twin.mask_decoder, twin.prompt_encoder, embedding, prompt[:, None])
        )
    adapters = sum(count for name, count in image_encoder.items() if name.endswith(".Adapter"))
    return {
        "image encoder": image_encoder["Global"] - adapters,
        IMAGE_ADAPTERS: adapters,
        "audio encoder": audio_encoder["Global"],
        "audio adapter": audio_adapter["Global"],
        # Its positions and its embedding of no mask are tables: nothing is multiplied.
        "prompt encoder": 0,
        "mask decoder": mask_decoder["Global"],
    }


def table(model: SAVE, twin: SAVE) -> str:
    """The parts of ``model``: parameters, those trained and frozen, and GFLOP of one sample.

    Args:
        twin: a SAVE of the same configuration on the meta device.
    """
    flops = flops_by_part(twin)
    counts = {
        part: (
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p.requires_grad),
            sum(p.numel() for p in parameters if not p.requires_grad),
            flops[part],
        )
        for part, parameters in parameters_by_part(model).items()
    }
    counts["total"] = tuple(map(sum, zip(*counts.values(), strict=True)))  # type: ignore[assignment]
    config = model.config
    lines = [
        f"{config.name} at {config.image_size} pixels, {config.spatial} image adapters, "
        f"{config.audio_adapter} audio adapter",
        f"{'':<15}{'parameters':>15}{'trainable':>15}{'frozen':>15}{'GFLOP':>10}",
        *(
            f"{part:<15}{total:>15,}{trainable:>15,}{frozen:>15,}{flop / 1e9:>10.3f}"
            for part, (total, trainable, frozen, flop) in counts.items()
        ),
        "GFLOP: forward, one image with its sound; a multiply-add is two. Linear layers,",
        "convolutions and attention are counted; norms, activations and sums are not.",
    ]
    return "\n".join(lines)


def _counted(call: Callable[[], Result]) -> tuple[Result, dict[str, int]]:
    """What the call gives, and its operations by module name, ``Global`` for all."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    counts = counter.get_flop_counts()
    return result, {name: sum(operations.values()) for name, operations in counts.items()}
