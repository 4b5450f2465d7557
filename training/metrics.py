"""AVSBench's two scores, with its exact semantics.

M_J is the mean of ``jaccard`` over all frames. M_F is the mean of ``f_measure`` over videos; each
video must be scored on its own, because the maximum over thresholds is taken of the curve averaged
over the frames given (``avs_scripts/avs_s4/utils/utility.py`` of AVSBench; the reference scripts
use one video per batch).

Shapes: N frames, T frames of one video, H x W pixels, K thresholds.
"""

import torch
from torch import Tensor

THRESHOLDS = 255
BETA_SQUARED = 0.3


def jaccard(logits: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of each frame, at probability > 0.5.

    For an empty mask the score is the fraction of the frame that the prediction leaves empty.

    Args:
        logits: ``[N, H, W]``, any floating dtype.
        masks: ``[N, H, W]``, 0 or 1 (other values are used as they are, as AVSBench does).

    Returns:
        float32 ``[N]``, on the device of the logits.

    Raises:
        ValueError: the shapes differ or are not ``[N, H, W]``.
    """
    _check_shapes("jaccard", logits, masks)
    # The probability, not the sign of the logit, decides: a tiny positive logit gives exactly 0.5.
    predicted_NP = (logits.float().sigmoid() > 0.5).float().flatten(1)
    masks_NP = masks.float().flatten(1)
    intersection_N = (predicted_NP * masks_NP).sum(1)
    union_N = torch.maximum(predicted_NP, masks_NP).sum(1)
    empty_N = masks_NP.sum(1) == 0
    left_empty_N = ((1 - predicted_NP) * (1 - masks_NP)).sum(1)
    pixels_N = torch.full_like(union_N, masks_NP.shape[1])
    return torch.where(empty_N, left_empty_N, intersection_N) / (
        torch.where(empty_N, pixels_N, union_N) + 1e-7
    )


def f_measure(logits: Tensor, masks: Tensor) -> float:
    """F-measure of one video: the best over 255 thresholds of the mean curve of its frames.

    beta^2 is 0.3. Frames with an empty mask are left out; a video with nothing but empty masks
    scores 0. The lowest threshold is 0 and predicts every pixel, so the score of a video with any
    mask is never below 1.3 a / (0.3 a + 1), a being the fraction of the frame that the mask covers.

    Args:
        logits: ``[T, H, W]``, any floating dtype.
        masks: ``[T, H, W]``, 0 or 1 (other values are used as they are, as AVSBench does).

    Raises:
        ValueError: the shapes differ or are not ``[T, H, W]``.
    """
    _check_shapes("f_measure", logits, masks)
    # float32 on purpose: AVSBench's last threshold, 1 - 1e-10, rounds to exactly 1 there.
    thresholds_K = torch.linspace(0, 1 - 1e-10, THRESHOLDS, device=logits.device)
    curves_TK = [
        _f_curve(probability_P, mask_P, thresholds_K)
        for probability_P, mask_P in zip(
            logits.float().sigmoid().flatten(1), masks.double().flatten(1), strict=True
        )
        if bool(mask_P.sum() != 0)
    ]
    if not curves_TK:
        return 0.0
    return float(torch.stack(curves_TK).mean(0).max())


def _f_curve(probability_P: Tensor, mask_P: Tensor, thresholds_K: Tensor) -> Tensor:
    """F at each threshold of one frame, from one histogram instead of 255 passes."""
    # A pixel that reaches n thresholds is predicted at thresholds 0..n-1.
    reached_P = torch.searchsorted(thresholds_K, probability_P.contiguous(), right=True)
    bins = len(thresholds_K) + 1
    pixels_K = _at_least(torch.bincount(reached_P, minlength=bins).double())
    hits_K = _at_least(torch.bincount(reached_P, weights=mask_P, minlength=bins))
    precision_K = hits_K / (pixels_K + 1e-20)
    recall_K = hits_K / (mask_P.sum() + 1e-20)
    f_K = (1 + BETA_SQUARED) * precision_K * recall_K / (BETA_SQUARED * precision_K + recall_K)
    return f_K.nan_to_num(nan=0.0)


def _at_least(histogram: Tensor) -> Tensor:
    """From counts per bin 0..K, the total of the bins above k, for k in 0..K-1."""
    return histogram.flip(0).cumsum(0).flip(0)[1:]


def _check_shapes(name: str, logits: Tensor, masks: Tensor) -> None:
    if logits.ndim != 3 or logits.shape != masks.shape:
        raise ValueError(
            f"{name} expects logits and masks of one shape [frames, H, W], "
            f"got {list(logits.shape)} and {list(masks.shape)}"
        )
