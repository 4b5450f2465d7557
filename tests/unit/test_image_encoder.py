"""The image encoder against segment-anything's own, with every parameter random."""

import copy

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT

from model.image_adapter import ImageAdapter
from model.image_encoder import ImageEncoder
from tests.small_sam import relative_error


def build(image_size, *, dim=64, heads=2, window=14, init="zero", depth=2):
    return ImageEncoder(
        image_size=image_size,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=4,
        global_blocks=(depth - 1,),
        window=window,
        relative_positions=True,
        neck_groups=1,
        spatial="dense",
        adapter_init=init,
    )


def build_upstream(image_size, *, dim=64, heads=2, depth=2):
    return ImageEncoderViT(
        depth=depth,
        embed_dim=dim,
        img_size=image_size,
        mlp_ratio=4,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        num_heads=heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=(depth - 1,),
        window_size=14,
        out_chans=256,
    )


def randomise(module, seed=0):
    """Zeros (positions, biases) and ones (norms) would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            is_table = "pos" in name
            parameter.copy_(0.3 * noise if is_table or fan_in == 1 else noise / fan_in**0.5)
            if ".norm" in name and name.endswith("weight"):
                parameter.add_(1)


def pair(image_size, **numbers):
    theirs = build_upstream(image_size, **numbers)
    randomise(theirs)
    ours = build(image_size, **numbers)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all(".Adapter." in key for key in missing)
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize(
    ("image_size", "numbers"),
    [
        (256, {}),  # grid 16: windows of 14x14, 14x2, 2x14 and 2x2 real cells
        (1024, {"dim": 32}),  # grid 64: SAM's own
        (512, {"dim": 160}),  # grid 32, and ViT-H's head width 80
        (224, {}),  # grid 14: nothing to pad
        (144, {}),  # grid 9: one window, smaller than 14, and odd for the adapters
    ],
)
def test_the_encoder_at_step_0_equals_segment_anythings(image_size, numbers):
    ours, theirs = pair(image_size, **numbers)
    image = torch.randn(1 if image_size == 1024 else 2, 3, image_size, image_size)
    assert relative_error(ours(image), theirs(image)) < 1e-5


def test_gradients_equal_segment_anythings():
    ours, theirs = pair(256)
    ours, theirs = ours.double(), theirs.double()
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    weight = torch.randn(1, 256, 16, 16, dtype=torch.float64)
    (ours(image) * weight).sum().backward()
    (theirs(image) * weight).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if ".Adapter." not in name:
            assert relative_error(parameter.grad, expected[name]) < 1e-9, name


@torch.no_grad()
@pytest.mark.parametrize("init", ["parent", "zero"])
def test_float32_agrees_with_float64_and_bf16_within_a_hundredth(init):
    torch.manual_seed(0)
    encoder = build(256, init=init, depth=6)
    randomise(encoder)
    image = torch.randn(1, 3, 256, 256)
    sound = list(torch.randn(6, 1, 64))
    exact = copy.deepcopy(encoder).double()(image.double(), [t.double() for t in sound])
    assert relative_error(encoder(image, sound), exact) < 1e-5
    low, image, sound = encoder.bfloat16(), image.bfloat16(), [t.bfloat16() for t in sound]
    exact = copy.deepcopy(low).double()(image.double(), [t.double() for t in sound])
    rounded = low(image, sound)
    assert rounded.dtype == torch.bfloat16
    assert relative_error(rounded, exact) < 1e-2


@torch.no_grad()
def test_sound_is_added_after_each_block_the_same_everywhere():
    torch.manual_seed(0)
    encoder = build(64, depth=2, init="parent")
    randomise(encoder)
    image = torch.randn(2, 3, 64, 64)
    first, second = torch.randn(2, 2, 64)
    x = encoder.patch_embed(image) + encoder.pos_embed
    x = encoder.blocks[0](x) + first.view(2, 1, 1, 64)
    x = encoder.blocks[1](x) + second.view(2, 1, 1, 64)
    expected = encoder.neck(x.permute(0, 3, 1, 2))
    assert torch.allclose(encoder(image, [first, second]), expected, atol=1e-6)
    assert not torch.allclose(encoder(image), expected, atol=1e-2)


@torch.no_grad()
def test_the_adapter_stands_beside_the_mlp_on_the_second_norm():
    block = build(64, depth=1, init="parent").blocks[0]
    randomise(block)
    x = torch.randn(2, 4, 4, 64)
    y = x + block.attn(block.norm1(x))
    z = block.norm2(y)
    assert torch.allclose(block(x), y + block.mlp(z) + block.Adapter(z), atol=1e-5)


@torch.no_grad()
def test_the_dense_adapter_is_its_parents_formula():
    adapter = ImageAdapter(16, spatial="dense", init="parent")
    z = torch.randn(2, 6, 6, 16)
    weights = adapter.state_dict()
    assert set(weights) == {
        "channel.0.weight",
        "channel.2.weight",
        "spatial.0.weight",
        "spatial.2.weight",
        "norm.weight",
        "norm.bias",
    }
    gate = F.linear(z.mean((1, 2)), weights["channel.0.weight"]).relu()
    gate = F.linear(gate, weights["channel.2.weight"]).sigmoid()
    grid = (z * gate.view(2, 1, 1, 16)).permute(0, 3, 1, 2)
    first, second = (weights[f"spatial.{i}.weight"].permute(0, 3, 1, 2) for i in (0, 2))
    down = F.conv2d(grid, first, stride=2, padding=1).relu()
    up = F.conv_transpose2d(down, second, stride=2, padding=1).relu()
    expected = F.layer_norm(z + up.permute(0, 2, 3, 1), (16,))
    assert torch.allclose(adapter(z), expected, atol=1e-5)


@pytest.mark.parametrize("spatial", ["dense", "bottleneck", "depthwise"])
@pytest.mark.parametrize("grid", [(8, 8), (9, 9), (7, 10), (1, 1)])
def test_adapters_keep_the_grid_and_start_at_zero_when_asked(spatial, grid):
    z = torch.randn(2, *grid, 32)
    assert ImageAdapter(32, spatial=spatial, init="parent")(z).abs().mean() > 0.1
    zero = ImageAdapter(32, spatial=spatial, init="zero")
    out = zero(z)
    assert out.shape == z.shape
    assert not out.any()
    # Zero is a start, not an end: the first step moves it.
    (out * torch.randn_like(out)).sum().backward()
    assert zero.norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("spatial", "expected"),
    [("dense", 15_042_048), ("bottleneck", 1_512_960), ("depthwise", 315_648)],
)
def test_adapter_sizes_at_vit_b(spatial, expected):
    with torch.device("meta"):
        adapter = ImageAdapter(768, spatial=spatial, init="parent")
    assert sum(parameter.numel() for parameter in adapter.parameters()) == expected
