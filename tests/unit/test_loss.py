"""The mask loss: its value, and that nothing makes it infinite."""

import math

import pytest
import torch

from training.loss import mask_loss


def random_pair(samples=3, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 1, side, side, generator=generator)
    masks = (torch.rand(samples, 1, side, side, generator=generator) > 0.6).float()
    return logits, masks


def test_the_loss_is_bce_plus_soft_iou_of_each_image():
    logits, masks = random_pair()
    p, g = logits.double().sigmoid(), masks.double()
    bce = -(g * p.log() + (1 - g) * (1 - p).log()).mean()
    iou = 0.0
    for p_, g_ in zip(p, g, strict=True):
        intersection = (p_ * g_).sum()
        iou += float(1 - intersection / (p_.sum() + g_.sum() - intersection)) / len(p)
    loss, parts = mask_loss(logits, masks)
    assert parts["bce"].item() == pytest.approx(bce.item(), rel=1e-5)
    assert parts["iou"].item() == pytest.approx(iou, rel=1e-5)
    assert loss.item() == pytest.approx(bce.item() + iou, rel=1e-5)


def test_empty_masks_take_no_part_in_the_iou_term():
    logits, masks = random_pair()
    masks[1] = 0
    _, parts = mask_loss(logits, masks)
    _, present = mask_loss(logits[[0, 2]], masks[[0, 2]])
    assert parts["iou"].item() == pytest.approx(present["iou"].item() * 2 / 3, rel=1e-6)


def test_two_halves_of_a_batch_average_to_the_whole():
    logits, masks = torch.randn(4, 1, 8, 8), (torch.rand(4, 1, 8, 8) < 0.3).float()
    masks[0] = 0
    whole, _ = mask_loss(logits, masks)
    halves = [mask_loss(logits[part], masks[part])[0] for part in (slice(0, 2), slice(2, 4))]
    assert whole.item() == pytest.approx(sum(h.item() for h in halves) / 2, rel=1e-6)


def test_a_batch_of_empty_masks_has_a_finite_loss_and_gradient():
    logits, masks = random_pair()
    logits.requires_grad_()
    loss, parts = mask_loss(logits, masks * 0)
    loss.backward()
    assert parts["iou"].item() == 0
    assert math.isfinite(loss.item())
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [-200.0, 200.0])
@pytest.mark.parametrize("empty", [True, False])
def test_saturated_logits_give_a_finite_loss_and_gradient(dtype, value, empty):
    logits = torch.full((2, 1, 8, 8), value, dtype=dtype, requires_grad=True)
    masks = torch.zeros(2, 1, 8, 8)
    if not empty:
        masks[:, :, :4] = 1
    loss, _ = mask_loss(logits, masks)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    assert logits.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision_of_the_sums():
    logits, masks = random_pair(side=64)
    expected, _ = mask_loss(logits, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = mask_loss(logits, masks)
    assert torch.equal(loss, expected)


def test_the_parts_carry_no_gradient():
    logits, masks = random_pair()
    loss, parts = mask_loss(logits.requires_grad_(), masks)
    assert loss.requires_grad
    assert set(parts) == {"bce", "iou"}
    assert not any(part.requires_grad for part in parts.values())


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 2, 8, 8), (3, 1, 8, 9)])
def test_a_mask_of_another_shape_is_refused_with_both_shapes(shape):
    logits, _ = random_pair()
    with pytest.raises(ValueError, match=r"\[3, 1, 8, 8\] and "):
        mask_loss(logits, torch.zeros(shape))
