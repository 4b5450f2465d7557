"""AVSBench's scores, against its published behaviour and a plain reading of the definition."""

import math

import pytest
import torch

from training.metrics import f_measure, jaccard

FRAMES, SIDE = 5, 16
HALF = torch.zeros(FRAMES, SIDE, SIDE)
HALF[:, :, : SIDE // 2] = 1
EMPTY = torch.zeros(FRAMES, SIDE, SIDE)
FULL = torch.ones(FRAMES, SIDE, SIDE)


def logits_of(mask):
    return (mask * 2 - 1) * 50


@pytest.mark.parametrize(
    ("truth", "predicted", "m_j", "m_f"),
    [
        (EMPTY, EMPTY, 1.0, 0.0),
        (EMPTY, FULL, 0.0, 0.0),
        (HALF, FULL, 0.5, 0.5652),
        (HALF, EMPTY, 0.0, 0.5652),
        (HALF, HALF, 1.0, 1.0),
        (HALF * 225 / 255, HALF, 0.882, 0.907),
    ],
    ids=["empty-empty", "empty-full", "half-full", "half-empty", "perfect", "grey-truth"],
)
def test_scores_are_those_of_avsbench_on_its_corner_cases(truth, predicted, m_j, m_f):
    logits = logits_of(predicted)
    assert jaccard(logits, truth).mean().item() == pytest.approx(m_j, abs=5e-4)
    assert f_measure(logits, truth) == pytest.approx(m_f, abs=5e-4)


def plain_f_measure(logits, masks):
    """The definition, threshold by threshold in Python numbers."""
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    curves = []
    for probability, mask in zip(logits.sigmoid(), masks, strict=True):
        if mask.sum() == 0:
            continue
        curve = []
        for threshold in thresholds:
            predicted = (probability >= threshold).double()
            hits = float((predicted * mask).sum())
            precision = hits / (float(predicted.sum()) + 1e-20)
            recall = hits / (float(mask.sum()) + 1e-20)
            f = 0.0
            if hits:
                f = 1.3 * precision * recall / (0.3 * precision + recall)
            curve.append(f)
        curves.append(curve)
    return max(sum(values) / len(values) for values in zip(*curves, strict=True)) if curves else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_f_measure_equals_the_plain_definition_on_random_frames(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(FRAMES, SIDE, SIDE, generator=generator)
    masks = (torch.rand(FRAMES, SIDE, SIDE, generator=generator) > 0.7).float()
    masks[seed] = 0
    assert f_measure(logits, masks) == pytest.approx(plain_f_measure(logits, masks), abs=1e-6)


def test_f_measure_takes_the_maximum_of_the_mean_curve_not_the_mean_of_maxima():
    # Each frame alone is perfect at a threshold at which the other one is not.
    masks = HALF[:2]
    low = torch.where(masks[0] > 0, -2.0, -4.0)
    high = torch.where(masks[1] > 0, 4.0, 2.0)
    logits = torch.stack([low, high])
    assert f_measure(logits[:1], masks[:1]) == pytest.approx(1.0)
    assert f_measure(logits[1:], masks[1:]) == pytest.approx(1.0)
    assert f_measure(logits, masks) < 0.9


def test_jaccard_scores_frames_apart_so_that_batches_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, SIDE, SIDE, generator=generator)
    masks = (torch.rand(6, SIDE, SIDE, generator=generator) > 0.5).float()
    whole = jaccard(logits, masks)
    assert torch.equal(
        whole, torch.cat([jaccard(logits[:4], masks[:4]), jaccard(logits[4:], masks[4:])])
    )
    expected = [
        float(((x > 0) & (y > 0)).sum()) / float(((x > 0) | (y > 0)).sum())
        for x, y in zip(logits, masks, strict=True)
    ]
    assert whole.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_logit_too_small_to_move_the_probability_off_one_half_predicts_nothing():
    logits = torch.full((1, 4, 4), 1e-9)
    assert jaccard(logits, torch.ones(1, 4, 4)).item() == 0.0


@pytest.mark.parametrize("score", [jaccard, f_measure])
def test_shapes_that_differ_are_named(score):
    with pytest.raises(ValueError, match=r"\[5, 16, 16\] and \[4, 16, 16\]"):
        score(HALF, HALF[:4])


def test_bool_masks_and_bf16_logits_score_the_same():
    assert f_measure(logits_of(HALF).bfloat16(), HALF.bool()) == pytest.approx(1.0)
    assert jaccard(logits_of(HALF).bfloat16(), HALF.bool()).tolist() == pytest.approx(
        [1.0] * FRAMES
    )
    assert not math.isnan(f_measure(logits_of(EMPTY), EMPTY.bool()))
