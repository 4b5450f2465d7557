"""A whole ViT-B on a checkpoint in the official format, against segment-anything itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from model import SAVE, build_save, saved
from model.vggish import VGGish
from tests.small_sam import relative_error, sam_embedding, sam_mask, unsettle
from training.loss import mask_loss

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    model = sam_model_registry["vit_b"]().eval()
    unsettle(model)
    return model


@pytest.fixture(scope="module")
def files(sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    torch.save(sam.state_dict(), folder / "sam_vit_b.pth")
    torch.save(VGGish().state_dict(), folder / "vggish.pth")
    return {"sam_checkpoint": folder / "sam_vit_b.pth", "vggish_checkpoint": folder / "vggish.pth"}


@torch.no_grad()
@pytest.mark.parametrize("side", [256, 512, 1024])
def test_without_sound_and_at_step_0_it_is_sam(sam: Sam, files: dict[str, Path], side: int) -> None:
    save = build_save(
        "save_vit_b", image_size=side, **files, adapter_init="zero", spatial="depthwise"
    ).eval()
    image = torch.randn(1, 3, side, side)
    theirs = sam.image_encoder(image) if side == 1024 else sam_embedding(sam, image)
    ours = save.encode_image(image)
    assert relative_error(ours, theirs) < 1e-5
    assert relative_error(save.decode_masks(ours, None), sam_mask(sam, theirs)) < 1e-5


@pytest.fixture(scope="module")
def save(files: dict[str, Path]) -> SAVE:
    """With the parent's dense adapters, as a run that starts."""
    torch.manual_seed(1)
    return build_save("save_vit_b", **files).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(2, 3, 256, 256), torch.randn(2, 1, 96, 64)


@torch.no_grad()
def test_float64_agrees_with_float32_and_bf16_within_a_hundredth(files: dict[str, Path]) -> None:
    # Convolutions per channel: on CPUs without bf16 dense ones take minutes in it.
    save = build_save("save_vit_b", **files, spatial="depthwise").eval()
    image, log_mel = (value[:1] for value in batch())
    exact = copy.deepcopy(save).double()(image.double(), log_mel.double())
    assert relative_error(save(image, log_mel), exact) < 1e-5
    # What rounding does in the pass: weights and input are the same rounded numbers in both.
    low, image, log_mel = copy.deepcopy(save).bfloat16(), image.bfloat16(), log_mel.bfloat16()
    rounded = low(image, log_mel)
    exact = low.double()(image.double(), log_mel.double())
    assert relative_error(rounded, exact) < 1e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = low.float()(image.float(), log_mel.float())
    assert relative_error(rounded, exact) < 1e-2


def test_gradients_reach_all_that_is_trained_and_nothing_else(save: SAVE) -> None:
    image, log_mel = batch()
    mask_loss(save(image, log_mel), (image[:, :1] > 0).float())[0].backward()
    trained = [name for name, _ in save.trainable_parameters()]
    assert trained == [name for name, p in save.named_parameters() if p.grad is not None]
    assert all(p.grad is not None and p.grad.any() for _, p in save.trainable_parameters())
    save.zero_grad(set_to_none=True)


@torch.no_grad()
def test_it_comes_back_from_disk_as_it_was(
    save: SAVE, files: dict[str, Path], tmp_path: Path
) -> None:
    saved.save(save, tmp_path)
    trained = sum(p.numel() for _, p in save.trainable_parameters())
    assert (tmp_path / saved.WEIGHTS).stat().st_size < 4 * trained + 2**20
    torch.manual_seed(9)
    again = saved.load(tmp_path, **files).eval()
    assert torch.equal(again(*batch()), save(*batch()))
