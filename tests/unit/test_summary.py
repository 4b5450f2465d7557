"""What the summary says of the model's size and cost."""

from __future__ import annotations

import pytest
import torch

from model import build_save
from model.summary import flops_by_part, parameters_by_part


def count(parameters: list[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(
    ("name", "dense", "encoder", "audio"),
    [
        ("save_vit_b", 180_504_576, 89_670_912, 3_385_344),
        ("save_vit_l", 641_777_664, 308_278_272, 6_606_080),
        ("save_vit_h", 1_337_016_320, 637_026_048, 8_775_168),
    ],
)
def test_part_sizes_are_the_published_ones(name: str, dense: int, encoder: int, audio: int) -> None:
    with torch.device("meta"):
        model = build_save(name, image_size=1024)
    parts = parameters_by_part(model)
    assert {part: count(parameters) for part, parameters in parts.items()} == {
        "image encoder": encoder,
        "image adapters": dense,
        "audio encoder": 72_141_184,
        "audio adapter": audio,
        "prompt encoder": 6_220,
        "mask decoder": 4_058_340,
    }
    assert sum(map(count, parts.values())) == count(list(model.parameters()))


def test_the_table_says_what_is_trained_what_is_frozen_and_what_it_costs() -> None:
    with torch.device("meta"):
        model = build_save("save_vit_b")
    lines = model.summary().splitlines()
    assert lines[0] == "save_vit_b at 256 pixels, dense image adapters, chain audio adapter"
    assert lines[1].split() == ["parameters", "trainable", "frozen", "GFLOP"]
    assert "attention are counted" in lines[-1]
    rows = {line[:15].strip(): line[15:].split() for line in lines[2:-2]}
    assert rows["image adapters"][:3] == ["180,504,576", "180,504,576", "0"]
    assert rows["image encoder"][1:3] == ["0", rows["image encoder"][0]]
    trained = count([parameter for _, parameter in model.trainable_parameters()])
    total = count(list(model.parameters()))
    assert rows["total"][:3] == [f"{total:,}", f"{trained:,}", f"{total - trained:,}"]


def test_operations_are_those_of_the_formulas_attention_included() -> None:
    """A ViT-B at 256 pixels on 256 cells: all padding of a window costs one key."""
    with torch.device("meta"):
        twin = build_save("save_vit_b")
    flops = flops_by_part(twin)
    cells, dim, blocks = 256, 768, 12
    linear = blocks * 2 * cells * 12 * dim * dim
    patches_and_neck = 2 * cells * (dim * 768 + dim * 256 + 256 * 256 * 9)
    # Scores and sums: 256 keys for each query in 4 global blocks; in the others the real cells of
    # its window and one key for all padded ones. Relative positions of a query: one product with
    # each row and each column of its window.
    windowed = 196 * 196 + 2 * 28 * 29 + 4 * 5
    attention = 4 * dim * (4 * 256 * 256 + 8 * windowed)
    attention += 2 * cells * dim * (4 * 2 * 16 + 8 * 2 * 14)
    assert flops["image encoder"] == linear + patches_and_neck + attention
    convolutions = 2 * dim * dim * (64 * 9 + 64 * 16)
    gate = 2 * 2 * dim * dim // 4
    assert flops["image adapters"] == blocks * (convolutions + gate)
