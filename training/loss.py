"""The mask loss: binary cross-entropy plus soft IoU, equally weighted.

    L = BCE(M, G) + 1 - (sum p G + eps) / (sum p + sum G - sum p G + eps),   p = sigmoid(M)

as in SAMA-AVS (WACV 2024), with two repairs. Its IoU term has no epsilon and becomes 0/0 when a
whole map saturates; here eps keeps it finite and all sums are float32. For an empty mask the term
is a constant without gradient, so it is left out of the mean.

Shapes: B samples, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


def mask_loss(logits: Tensor, masks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of predicted mask logits against true masks.

    Args:
        logits: ``[B, 1, H, W]``, any floating dtype.
        masks: ``[B, 1, H, W]``, values in 0..1 (bool or number).

    Returns:
        The scalar float32 loss, and its two parts ``{"bce", "iou"}`` without gradient. The IoU
        part is the mean over all samples, with 0 for one whose mask is empty.

    Raises:
        ValueError: the shapes differ or are not ``[B, 1, H, W]``.
    """
    if logits.ndim != 4 or logits.shape[1] != 1 or logits.shape != masks.shape:
        raise ValueError(
            "mask_loss expects logits and masks of one shape [B, 1, H, W], "
            f"got {list(logits.shape)} and {list(masks.shape)}"
        )
    # Autocast would otherwise be free to lower the sums again.
    with torch.autocast(device_type=logits.device.type, enabled=False):
        logits_BP = logits.float().flatten(1)
        masks_BP = masks.to(logits_BP.dtype).flatten(1)
        bce = F.binary_cross_entropy_with_logits(logits_BP, masks_BP)

        probability_BP = logits_BP.sigmoid()
        truth_B = masks_BP.sum(1)
        intersection_B = (probability_BP * masks_BP).sum(1)
        union_B = probability_BP.sum(1) + truth_B - intersection_B
        iou_B = 1 - (intersection_B + EPSILON) / (union_B + EPSILON)
        present_B = (truth_B > 0).to(iou_B.dtype)
        # Over all samples, not the present ones alone: then the mean over workers with equal
        # shares of a batch is the loss of the whole batch.
        iou = (iou_B * present_B).mean()
    return bce + iou, {"bce": bce.detach(), "iou": iou.detach()}
