"""A DeepSpeed engine on one rank: its step is that of torch alone, and it trains nothing frozen."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors.torch import load_file
from torch import Tensor

from model import save as save_module
from model import saved
from model.vggish import SmallVGGish
from tests.small_sam import relative_error, small_sam, small_size
from tests.worlds import BATCH, made_batch
from training import checkpoint
from training.batch import Batch
from training.engine import start_engine, take_batch
from training.loop import build_learner
from training.recipe import ModelConfig, TrainConfig, WorkersConfig
from training.step import Learner, OptimizerConfig, set_learning_rate, train_step

SIDE, CLASSES = 32, 3
RATE = 1e-3
CPU = torch.device("cpu")
# Far below any gradient's norm: each step is clipped, and each by another factor.
CLIP_NORM = 0.01


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A world of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("DS_ACCELERATOR", "cpu")
        meeting = tmp_path_factory.mktemp("world") / "meeting"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=0, world_size=1
        )
        yield
        torch.distributed.destroy_process_group()


def config(**changes: Any) -> TrainConfig:
    made = TrainConfig(
        stage="engine",
        corpus="",
        steps=10,
        batch=BATCH,
        accumulate=2,
        class_weight=0.5,
        model=ModelConfig(image_size=SIDE),
        workers=WorkersConfig(count=1),
        optimizer=OptimizerConfig(learning_rate=RATE, clip_norm=CLIP_NORM),
    )
    return dataclasses.replace(made, **changes)


def everything(learner: Learner) -> Tensor:
    """What is trained, in one row."""
    with checkpoint.whole(learner):
        return torch.cat([p.detach().flatten().clone() for _, p in learner.trainable()])


def take(engine: Any, learner: Learner, batch: Batch) -> tuple[float, float]:
    """Loss and norm of a step in two parts."""
    set_learning_rate(engine.optimizer, RATE)
    told, norm = take_batch(engine, learner, batch, total=BATCH, accumulate=2)
    return float(told["loss"]), float(norm)


def write_checkpoint(engine: Any, learner: Learner, folder: Path) -> None:
    steps, _ = checkpoint.optimizer_state(engine)
    gathered = checkpoint.gather(engine, learner)
    progress = checkpoint.Progress(step=2, optimizer_steps=steps)
    with checkpoint.whole(learner):
        taken = checkpoint.snapshot(learner, gathered=gathered, mean=None, progress=progress)
    taken.write(folder)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_an_engine_learns_what_torch_alone_learns_clipped_and_in_parts(zero_stage: Any) -> None:
    told = config(workers=WorkersConfig(count=1, zero_stage=zero_stage))
    plain = build_learner(told, classes=CLASSES)
    optimizer = told.optimizer.build([p for _, p in plain.trainable()])
    learner = build_learner(told, classes=CLASSES)
    engine = start_engine(told, learner, CPU)
    for step in range(3):
        batch = made_batch(step, SIDE)
        expected = train_step(plain, optimizer, batch, clip_norm=CLIP_NORM, accumulate=2)
        loss, norm = take(engine, learner, batch)
        assert float(expected["grad_norm"]) > 10 * CLIP_NORM
        assert loss == pytest.approx(float(expected["loss"]), rel=1e-6)
        assert norm == pytest.approx(float(expected["grad_norm"]), rel=1e-5)
    engine.destroy()
    assert relative_error(everything(learner), everything(plain)) < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_below_fp32_a_stage_learns_what_fp32_learns(
    precision: Any, zero_stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed refuses what this CPU does slowly; the arithmetic is that of a GPU.
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    told = config(precision=precision, workers=WorkersConfig(count=1, zero_stage=zero_stage))
    plain = build_learner(told, classes=CLASSES)
    optimizer = told.optimizer.build([p for _, p in plain.trainable()])
    learner = build_learner(told, classes=CLASSES)
    engine = start_engine(told, learner, CPU)
    taken = 0
    for step in range(40):
        batch = made_batch(step, SIDE)
        loss, norm = take(engine, learner, batch)
        if not math.isfinite(norm):
            assert precision == "fp16" and taken == 0  # until the scale of the loss fits
            gathered = checkpoint.gather(engine, learner)
            assert not any(value.any() for value in gathered["exp_avg"].values())
            continue
        expected = train_step(plain, optimizer, batch, clip_norm=CLIP_NORM, accumulate=2)
        assert loss == pytest.approx(float(expected["loss"]), rel=3e-2)
        assert norm == pytest.approx(float(expected["grad_norm"]), rel=0.1)
        taken += 1
        if taken == 3:
            break
    assert taken == 3
    gathered = checkpoint.gather(engine, learner)
    assert checkpoint.optimizer_state(engine)[0] == 3
    engine.destroy()
    moments = {n: optimizer.state[p]["exp_avg"] for n, p in plain.trainable()}
    ours, theirs = (
        torch.cat([t.flatten() for t in m.values()]) for m in (gathered["exp_avg"], moments)
    )
    assert relative_error(ours, theirs) < 0.1


@pytest.mark.parametrize("again", [False, True])
def test_blocks_are_computed_again_where_activations_are_not_kept(again: bool) -> None:
    told = config(workers=WorkersConfig(count=1, activation_checkpointing=again))
    learner = build_learner(told, classes=CLASSES)
    engine = start_engine(told, learner, CPU)
    computed: Counter[int] = Counter()
    for number, block in enumerate(learner.save.image_encoder.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: computed.update([number]))
    take(engine, learner, made_batch(0, SIDE))
    engine.destroy()
    # A step in two parts.
    assert computed == {number: 4 if again else 2 for number in range(4)}


@pytest.fixture(scope="module")
def on_sam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelConfig]:
    """A SAM in small: of its image encoder the adapters alone are trained."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    torch.save(small_sam().state_dict(), folder / "sam.pth")
    torch.save(SmallVGGish().state_dict(), folder / "vggish.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(save_module.SIZES, "save_vit_b", small_size())
        yield ModelConfig(
            name="save_vit_b",
            image_size=64,
            sam_checkpoint=str(folder / "sam.pth"),
            vggish_checkpoint=str(folder / "vggish.pth"),
        )


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_what_is_frozen_stays_and_is_in_no_optimizer_while_the_rest_learns_and_resumes(
    on_sam: ModelConfig, tmp_path: Path, zero_stage: Any
) -> None:
    workers = WorkersConfig(count=1, zero_stage=zero_stage, activation_checkpointing=True)
    told, batch = config(model=on_sam, workers=workers), made_batch(0, on_sam.image_size)
    learner = build_learner(told, classes=CLASSES)
    frozen = {n: p.detach().clone() for n, p in learner.named_parameters() if not p.requires_grad}
    names = {name for name, _ in learner.trainable()}
    assert "save.image_encoder.blocks.0.attn.qkv.weight" in frozen
    assert any(name.startswith("save.image_encoder.blocks.0.Adapter") for name in names)
    engine = start_engine(told, learner, CPU)
    if zero_stage == 3:
        held = engine.optimizer.fp32_partitioned_groups_flat
    else:
        held = [p for group in engine.optimizer.param_groups for p in group["params"]]
    # ZeRO pads to an even number.
    assert 0 <= sum(p.numel() for p in held) - everything(learner).numel() < 2
    losses = [take(engine, learner, batch)[0] for _ in range(2)]
    write_checkpoint(engine, learner, tmp_path)
    losses += [take(engine, learner, batch)[0] for _ in range(2)]
    assert losses == sorted(losses, reverse=True) and losses[3] < losses[0]
    learned = everything(learner)
    engine.destroy()

    state = load_file(tmp_path / checkpoint.OPTIMIZER)
    for moment in checkpoint.MOMENTS:
        assert {k.partition("/")[2] for k in state if k.startswith(moment + "/")} == names
    assert not {f"save.{name}" for name in load_file(tmp_path / saved.WEIGHTS)} & frozen.keys()

    resumed = build_learner(told, classes=CLASSES)
    saved.load_weights(resumed.save, tmp_path)
    engine = start_engine(told, resumed, CPU)
    checkpoint.restore(tmp_path, engine, resumed)
    assert [take(engine, resumed, batch)[0] for _ in range(2)] == losses[2:]
    assert torch.equal(everything(resumed), learned)
    with checkpoint.whole(resumed):
        for name, value in resumed.named_parameters():
            assert name in names or torch.equal(value, frozen[name]), name
    engine.destroy()
