"""Training through Ray and DeepSpeed against the bare step, recovery, checkpoints, two workers.

::

    python -m tests.benchmarks.training [--only step|workers|recovery|checkpoint]

One model (``save_tiny`` at 224 pixels), one corpus of made samples and one loader on all sides; a
thread for each worker. The bare step is ``training.step.train_step`` with the real loader and torch
alone; it takes turns with the stage, in a process of its own, and says what share of its time it
waits for data. Where there is a GPU, both sides take the step of the real recipes there, ViT-B at
256 pixels in bf16 on random weights, fed by a process for each core but one; no other part runs
then, and where there is no Ray the bare side alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.made_corpus import write_made_corpus
from training.recipe import ModelConfig, TrainConfig, WorkersConfig
from training.step import OptimizerConfig

BATCH = 16
# Before the first timed step: caches, and what a process does once.
WARM_UP = 4
HAS_RAY = importlib.util.find_spec("ray") is not None


def stage(folder: Path, name: str, *, steps: int, smoke: bool, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        stage=name,
        corpus=str(folder / "corpus"),
        output=str(folder / "runs"),
        model=ModelConfig(image_size=32 if smoke else 224),
        batch=4 if smoke else BATCH,
        steps=steps,
        class_weight=0.5,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        validate_every=10**6,
        overlays=0,
        log_every=1,
        workers=WorkersConfig(count=1),
    )
    if torch.cuda.is_available() and not smoke:
        config = dataclasses.replace(
            config,
            model=ModelConfig(name="save_vit_b", image_size=256, **random_weights(folder)),
            precision="bf16",
            class_weight=0.0,
            workers=WorkersConfig(count=1, use_gpu=True, decoders=(os.cpu_count() or 2) - 1),
        )
    return dataclasses.replace(config, **changes)


def random_weights(folder: Path) -> dict[str, str]:
    """What stands in for the published weights, whose values no step's time depends on."""
    from segment_anything import sam_model_registry

    from model.vggish import VGGish

    sam, vggish = folder / "sam.pth", folder / "vggish.pth"
    if not vggish.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(sam_model_registry["vit_b"]().state_dict(), sam)
        torch.save(VGGish().state_dict(), vggish)
    return {"sam_checkpoint": str(sam), "vggish_checkpoint": str(vggish)}


def seconds_a_step(points: list[dict[str, float]], batch: int) -> float:
    """The median, of what comes after the warm-up."""
    paces = [
        p["samples_per_second"] for p in points if "samples_per_second" in p and p["step"] > WARM_UP
    ]
    return batch / statistics.median(paces)


def through_ray(config: TrainConfig) -> float:
    from training.stage import run_stage

    return seconds_a_step(run_stage(config)["history"], config.batch)


def bare(config: TrainConfig) -> dict[str, float]:
    """Seconds a step and share of waiting, in a process of its own."""
    told = json.dumps(dataclasses.asdict(config))
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.training", "--bare", told],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_bare(told: dict[str, Any]) -> dict[str, float]:
    """``training.step`` with the real loader; torch and the corpus, nothing else."""
    from infra.corpus import Corpus
    from model import build_save
    from training.accounts import Accounts
    from training.augmentation import Augmentation
    from training.data import FrameSamples
    from training.prefetch import batches
    from training.step import Learner, train_step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batch, on_gpu = told["model"], told["batch"], told["workers"]["use_gpu"]
    device = torch.device("cuda" if on_gpu else "cpu")
    samples = FrameSamples(
        Corpus.open(told["corpus"]),
        "train",
        image_size=model["image_size"],
        seed=0,
        augmentation=Augmentation(),
    )
    save = build_save(**model)
    learner = Learner(save, classes=len(samples.classes), class_weight=told["class_weight"])
    learner.to(device)
    config = OptimizerConfig(learning_rate=1e-4)
    optimizer = config.build([p for _, p in learner.trainable()])
    accounts = Accounts(device, batch=batch, peak=None)
    points: list[dict[str, float]] = []
    decoders, is_low = told["workers"]["decoders"], told["precision"] == "bf16"
    loader = batches(samples, batch=batch, first=0, last=told["steps"], workers=decoders)
    for step, made in enumerate(accounts.waiting_for(loader), start=1):
        with torch.autocast(device.type, torch.bfloat16, enabled=is_low):
            parts = train_step(learner, optimizer, made.to(device), clip_norm=1.0)
        float(parts["loss"])  # as the stage does at each of its points
        points.append({"step": step, **accounts.take(1)})
    waits = [point["data_wait"] for point in points if point["step"] > WARM_UP]
    return {"seconds": seconds_a_step(points, batch), "data_wait": statistics.median(waits)}


def step_overhead(folder: Path, *, pairs: int, steps: int, smoke: bool) -> None:
    ratios, ours, theirs, waits = [], [], [], []
    for pair in range(pairs):
        config = stage(folder, f"overhead-{pair}", steps=steps, smoke=smoke)
        sides: list[Callable[[], None]] = [
            lambda config=config: ours.append(through_ray(config)),  # type: ignore[misc]
            lambda config=config: _bare_into(config, theirs, waits),  # type: ignore[misc]
        ]
        for side in (sides if pair % 2 else sides[::-1]) if HAS_RAY else sides[1:]:
            side()
        if HAS_RAY:
            ratios.append(ours[-1] / theirs[-1])
    if HAS_RAY:
        print(
            f"step of {config.batch}: Ray and DeepSpeed {statistics.median(ours):.3f} s, ratio to "
            f"the bare one {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        )
    print(
        f"bare step of {config.batch}: {statistics.median(theirs):.3f} s, waits for data "
        f"{statistics.median(waits):.2%}",
        flush=True,
    )


def _bare_into(config: TrainConfig, seconds: list[float], waits: list[float]) -> None:
    found = bare(config)
    seconds.append(found["seconds"])
    waits.append(found["data_wait"])


def two_workers(folder: Path, *, pairs: int, steps: int, smoke: bool) -> None:
    found: dict[int, list[float]] = {1: [], 2: []}
    for pair in range(pairs):
        for count in (1, 2) if pair % 2 else (2, 1):
            workers = WorkersConfig(count=count, zero_stage=1)
            name = f"workers-{count}-{pair}"
            config = stage(folder, name, steps=steps, smoke=smoke, workers=workers)
            found[count].append(through_ray(config))
    one, two = (statistics.median(found[count]) for count in (1, 2))
    print(
        f"the same batch of {config.batch}: one worker {one:.3f} s a step, two {two:.3f} s, "
        f"ratio {one / two:.2f}",
        flush=True,
    )


def recovery(folder: Path, *, smoke: bool) -> None:
    """From SIGKILL of a worker to the first step that was not taken before."""
    from tests.integration.servers import children_titled
    from training.stage import run_stage

    steps = 60
    killed = reached = again = 0.0

    def watch(point: dict[str, float]) -> None:
        nonlocal killed, reached, again
        if not killed and point["step"] >= 20:
            for process in children_titled("RayTrainWorker")[:1]:
                process.kill()
                killed = time.monotonic()
        elif killed and not again:
            # What was posted before the kill may be heard of after it.
            if time.monotonic() - killed < 3.0:
                reached = max(reached, point["step"])
            elif point["step"] > reached:
                again = time.monotonic()
        if not killed:
            reached = point["step"]

    config = stage(folder, "recovery", steps=steps, smoke=smoke, checkpoint_every=5)
    run_stage(config, on_metrics=watch)
    assert again, "training had ended before the workers were there again"
    print(
        f"from a worker's SIGKILL to the first new step {again - killed:.1f} s "
        "(checkpoint every 5 steps; heard of within a second)",
        flush=True,
    )


def checkpoints(folder: Path, *, turns: int, smoke: bool) -> None:
    """Save and load, of what SAVE with ViT-B and dense adapters trains and of the tiny model."""
    code = [sys.executable, "-m", "tests.benchmarks.training", "--checkpoint"]
    for name in ("save_tiny",) if smoke else ("save_tiny", "save_vit_b"):
        environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        place = str(folder / f"checkpoints-{name}")
        subprocess.run([*code, f"{name},{place},{turns}"], check=True, env=environment)


def run_checkpoints(told: str) -> None:
    import torch.distributed

    from model import build_save
    from training import checkpoint
    from training.checkpoint_store import CheckpointStore
    from training.engine import start_engine
    from training.step import Learner

    name, place, turns = told.split(",")
    torch.distributed.init_process_group(
        "gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1
    )
    learner = Learner(build_save(name, image_size=256), classes=0)
    config = stage(Path(place), "c", steps=1, smoke=False)
    engine = start_engine(config, learner, torch.device("cpu"))
    checkpoint._make_optimizer_state(engine, learner)
    store = CheckpointStore(place, keep=1)
    spent: dict[str, list[float]] = {"the loop waits": [], "in the background": [], "load": []}
    for turn in range(int(turns)):
        times = [time.perf_counter()]
        gathered = checkpoint.gather(engine, learner)
        progress = checkpoint.Progress(step=turn)
        taken = checkpoint.snapshot(learner, gathered=gathered, mean=None, progress=progress)
        store.save(taken.write, turn, None)
        times.append(time.perf_counter())
        store.wait()
        times.append(time.perf_counter())
        with tempfile.TemporaryDirectory() as temporary:
            store.fetch_newest(Path(temporary))
            checkpoint.restore(Path(temporary), engine, learner)
        times.append(time.perf_counter())
        for kind, first, last in zip(spent, times[:-1], times[1:], strict=True):
            spent[kind].append(last - first)
    trained = sum(p.numel() for _, p in learner.trainable()) / 1e6
    parts = ", ".join(f"{kind} {statistics.median(t):.2f} s" for kind, t in spent.items())
    print(f"checkpoint of {name}, {trained:.1f} M parameters trained: {parts}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="timed turns of each side")
    parser.add_argument("--steps", type=int, default=24, help="of each turn")
    parser.add_argument("--only", choices=("step", "workers", "recovery", "checkpoint"))
    parser.add_argument("--smoke", action="store_true", help="few and small: does it run at all")
    parser.add_argument("--bare", help="internal")
    parser.add_argument("--checkpoint", help="internal")
    chosen = parser.parse_args()
    if chosen.bare:
        print(json.dumps(run_bare(json.loads(chosen.bare))))
        return
    if chosen.checkpoint:
        run_checkpoints(chosen.checkpoint)
        return
    pairs, steps = (1, WARM_UP + 2) if chosen.smoke else (chosen.pairs, chosen.steps)
    print(f"{date.today()}, torch {torch.__version__}, {os.cpu_count()} cores seen", flush=True)
    with tempfile.TemporaryDirectory(prefix="save-training-") as name:
        folder = Path(name)
        size = 32 if chosen.smoke else 224
        write_made_corpus(str(folder / "corpus"), samples={"train": 64, "val": 2}, size=size)
        parts: dict[str, Callable[[], None]] = {
            "checkpoint": lambda: checkpoints(folder, turns=pairs, smoke=chosen.smoke),
            "step": lambda: step_overhead(folder, pairs=pairs, steps=steps, smoke=chosen.smoke),
            "workers": lambda: two_workers(folder, pairs=pairs, steps=steps, smoke=chosen.smoke),
            "recovery": lambda: recovery(folder, smoke=chosen.smoke),
        }
        if torch.cuda.is_available():
            parts = {"step": parts["step"]}
        for part, run in parts.items():
            if chosen.only in (None, part):
                run()
        if HAS_RAY:
            from infra import cluster

            cluster.disconnect()


if __name__ == "__main__":
    main()
