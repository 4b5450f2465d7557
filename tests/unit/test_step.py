"""One optimisation step with torch and the model alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import build_save
from training.auxiliary import ClassHeads
from training.batch import IGNORED_CELL, Batch
from training.step import Learner, OptimizerConfig, set_learning_rate, split_batch, train_step

SIZE, GRID, CLASSES = 32, 2, 3


def make_batch(samples: int = 4) -> Batch:
    torch.manual_seed(0)
    mask_B1SS = torch.zeros(samples, 1, SIZE, SIZE)
    mask_B1SS[:, :, 8:24, 8:24] = 1.0
    return Batch(
        image_B3SS=torch.randn(samples, 3, SIZE, SIZE).clamp(-2, 2),
        log_mel_B1MF=torch.randn(samples, 1, 96, 64),
        mask_B1SS=mask_B1SS,
        class_BC=torch.eye(CLASSES)[torch.arange(samples) % CLASSES],
        cell_BGG=torch.randint(0, CLASSES + 1, (samples, GRID, GRID)),
    )


def make_learner() -> Learner:
    torch.manual_seed(0)
    save = build_save("save_tiny", image_size=SIZE)
    return Learner(save, classes=CLASSES, class_weight=0.5)


def packages_of(imported: str) -> set[str]:
    """The packages outside the standard library that a fresh interpreter holds after an import."""
    code = f"import sys, {imported}; print(*{{name.split('.')[0] for name in sys.modules}})"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split()) - sys.stdlib_module_names


def test_the_step_imports_with_torch_alone() -> None:
    # What torch brings itself is its own affair; segment_anything brings torchvision.
    allowed = packages_of("torch, torchaudio, segment_anything") | {"model", "training"}
    assert packages_of("training.step") - allowed == set()


def test_steps_on_one_batch_bring_its_loss_down() -> None:
    learner, batch, config = make_learner(), make_batch(), OptimizerConfig(learning_rate=1e-3)
    optimizer = config.build([p for _, p in learner.trainable()])
    losses = [
        float(train_step(learner, optimizer, batch, clip_norm=1.0)["loss"]) for _ in range(12)
    ]
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_in_parts_teaches_what_the_whole_batch_teaches() -> None:
    found = []
    for parts in (1, 3):
        learner, batch, config = make_learner(), make_batch(), OptimizerConfig()
        optimizer = config.build([p for _, p in learner.trainable()])
        told = train_step(learner, optimizer, batch, clip_norm=1.0, accumulate=parts)
        found.append((told, dict(learner.trainable())))
    (whole, weights), (parted, others) = found
    for name, value in whole.items():
        torch.testing.assert_close(parted[name], value, rtol=1e-4, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-5)


def test_parts_of_a_batch_are_all_of_it_in_order_and_none_is_empty() -> None:
    batch = make_batch(5)
    for parts in (1, 2, 3, 5, 9):
        split = split_batch(batch, parts)
        assert len(split) == min(parts, 5) and min(map(len, split)) >= 1
        assert torch.equal(torch.cat([part.image_B3SS for part in split]), batch.image_B3SS)


def test_the_loss_is_the_sum_of_its_weighted_parts() -> None:
    learner = make_learner()
    loss, parts = learner(make_batch())
    classes = parts["sound_class"] + parts["cell_class"]
    torch.testing.assert_close(loss.detach(), parts["bce"] + parts["iou"] + 0.5 * classes)


def test_every_trained_parameter_gets_a_gradient() -> None:
    learner = make_learner()
    learner(make_batch())[0].backward()
    assert [name for name, p in learner.trainable() if p.grad is None] == []


def test_class_losses_of_shares_average_to_those_of_the_batch() -> None:
    torch.manual_seed(1)
    heads = ClassHeads(CLASSES)
    audio_BD, embedding_BEGG = torch.randn(6, 128), torch.randn(6, 256, GRID, GRID)
    class_BC = torch.eye(CLASSES).repeat(2, 1)
    class_BC[0] = 0.0
    cell_BGG = torch.randint(0, CLASSES + 1, (6, GRID, GRID))
    cell_BGG[:2] = IGNORED_CELL
    inputs = (audio_BD, embedding_BEGG, class_BC, cell_BGG)
    whole = torch.stack(heads(*inputs))
    shares = [torch.stack(heads(*(t[part] for t in inputs))) for part in (slice(3), slice(3, 6))]
    torch.testing.assert_close(whole, (shares[0] + shares[1]) / 2)


def test_samples_without_labels_teach_the_class_heads_nothing() -> None:
    heads = ClassHeads(CLASSES)
    unlabelled_BGG = torch.full((2, GRID, GRID), IGNORED_CELL)
    sound, cell = heads(
        torch.randn(2, 128), torch.randn(2, 256, GRID, GRID), torch.zeros(2, 3), unlabelled_BGG
    )
    assert sound.item() == 0.0 and cell.item() == 0.0


def test_class_heads_are_no_part_of_the_model() -> None:
    learner = make_learner()
    assert not [name for name in learner.save.state_dict() if "heads" in name]
    assert Learner(learner.save, classes=CLASSES, class_weight=0.0).heads is None


def test_the_learning_rate_rises_then_falls_along_a_cosine() -> None:
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)
    rates = [config.rate(step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_learning_rate_reaches_every_group() -> None:
    optimizer = OptimizerConfig().build([torch.nn.Parameter(torch.zeros(1))])
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]
