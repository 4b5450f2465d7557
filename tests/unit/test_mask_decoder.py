"""One prompt for each image through segment-anything's decoder, at any batch size."""

import pytest
import torch
import torch.nn.functional as F

from model.mask_decoder import (
    build_mask_decoder,
    build_prompt_encoder,
    decode_masks,
    dense_positions,
)

SIDE, GRID = 128, 8


@pytest.fixture(scope="module")
def parts():
    """SAM's own sizes, every parameter random: zeros and ones would hide errors."""
    torch.manual_seed(0)
    prompt_encoder = build_prompt_encoder(SIDE, GRID)
    decoder = build_mask_decoder(mlp_dim=2048, attention_downsample=2)
    for module in (prompt_encoder, decoder):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, mean=0.01, std=0.05)
    return decoder.eval(), prompt_encoder.eval()


def upstream(decoder, prompt_encoder, embedding, prompt):
    """segment-anything's own pass for one image, and its post-processing to the input size."""
    sparse, dense = prompt_encoder(points=None, boxes=None, masks=None)
    masks, _ = decoder(
        image_embeddings=embedding,
        image_pe=prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse if prompt is None else prompt,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return F.interpolate(masks, (SIDE, SIDE), mode="bilinear", align_corners=False)


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() / theirs.norm() < tolerance


@torch.no_grad()
@pytest.mark.parametrize("with_prompt", [True, False])
def test_each_image_of_a_batch_gets_segment_anythings_own_mask(parts, with_prompt):
    embedding = torch.randn(3, 256, GRID, GRID)
    prompt = torch.randn(3, 1, 256) if with_prompt else None
    masks = decode_masks(*parts, embedding, prompt)
    for i in range(3):
        one = None if prompt is None else prompt[i : i + 1]
        assert_close(masks[i : i + 1], upstream(*parts, embedding[i : i + 1], one))


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(parts):
    embedding, prompt = torch.randn(4, 256, GRID, GRID), torch.randn(4, 1, 256)
    whole = decode_masks(*parts, embedding, prompt)
    alone = [decode_masks(*parts, embedding[i : i + 1], prompt[i : i + 1]) for i in range(4)]
    assert_close(whole, torch.cat(alone))
    assert whole.shape == (4, 1, SIDE, SIDE)


@torch.no_grad()
def test_the_prompt_decides_the_mask(parts):
    embedding = torch.randn(1, 256, GRID, GRID).expand(2, -1, -1, -1)
    masks = decode_masks(*parts, embedding, torch.randn(2, 1, 256))
    assert (masks[0] - masks[1]).abs().max() > 1e-3 * masks.abs().max()


@torch.no_grad()
def test_positions_are_sams_in_every_dtype(parts):
    _, prompt_encoder = parts
    theirs = prompt_encoder.get_dense_pe()
    assert_close(dense_positions(prompt_encoder, torch.float32), theirs)
    low = dense_positions(prompt_encoder, torch.bfloat16)
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), theirs, tolerance=1e-2)
