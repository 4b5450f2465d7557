"""Workers of a training world without Ray: what some engines do, and what checkpoints make of it.

Run as a program, once per rank, with torch's RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT and the
scenarios as JSON on the command line; rank 0 prints what came out, as one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH = 6
OVERLAYS = 4


def run(world: int, scenarios: list[dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    """What ``scenarios`` give in a world of so many ranks.

    Args:
        scenarios: each with ``config`` (changes of the recipe), ``steps`` (``[first, last]``), and
            perhaps ``restore`` (the folder of a checkpoint to start from), ``save`` (one to write
            in the end), ``accumulate``, ``zero_stage`` and ``image_size``; or, in place of steps,
            ``validate`` (the ``corpus`` and ``split`` to score with untrained weights, and a folder
            for what is ``shown``).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        **environment,
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.worlds", json.dumps(scenarios)],
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        told = [rank.communicate(timeout=600)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(rank.returncode for rank in ranks), told
    found: list[dict[str, Any]] = json.loads(told[0].splitlines()[-1])
    return found


def _main(scenarios: list[dict[str, Any]]) -> None:
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found = [
        _validate(scenario) if "validate" in scenario else _play(scenario) for scenario in scenarios
    ]
    if torch.distributed.get_rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")


def _play(scenario: dict[str, Any]) -> dict[str, Any]:
    import torch
    import torch.distributed

    from training import checkpoint
    from training.engine import take_batch
    from training.step import set_learning_rate

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config, learner, engine = _start(scenario)
    folder = scenario.get("restore")
    if folder:
        checkpoint.restore(Path(folder), engine, learner)
    losses, norms = [], []
    for step in range(*scenario["steps"]):
        batch = made_batch(step, config.model.image_size)
        first, last = (BATCH * end // world for end in (rank, rank + 1))
        share = type(batch)(
            **{f.name: getattr(batch, f.name)[first:last] for f in dataclasses.fields(batch)}
        )
        set_learning_rate(engine.optimizer, config.optimizer.rate(step, 10))
        told, norm = take_batch(engine, learner, share, total=BATCH, accumulate=config.accumulate)
        torch.distributed.all_reduce(told["loss"])
        losses.append(float(told["loss"]))
        norms.append(float(norm))
    gathered = checkpoint.gather(engine, learner)
    if scenario.get("save"):
        steps, scale = checkpoint.optimizer_state(engine)
        progress = checkpoint.Progress(
            step=scenario["steps"][1], optimizer_steps=steps, loss_scale=scale
        )
        with checkpoint.whole(learner):
            if rank == 0:
                taken = checkpoint.snapshot(
                    learner, gathered=gathered, mean=None, progress=progress
                )
                taken.write(Path(scenario["save"]))
        torch.distributed.barrier()
    sums = {
        key: {name: float(value.double().abs().sum()) for name, value in values.items()}
        for key, values in gathered.items()
    }
    optimizer_steps = checkpoint.optimizer_state(engine)[0]
    engine.destroy()
    return {
        "losses": losses,
        "norms": norms,
        "optimizer_steps": optimizer_steps,
        "direction": _direction(gathered["exp_avg"]) if rank == 0 else [],
        **sums,
    }


def _direction(tensors: dict[str, Any]) -> list[float]:
    """Where a vector of all tensors points: its length in some random directions, made 1 before."""
    import torch

    row = torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double()
    drawn = torch.Generator().manual_seed(0)
    along = [torch.randn(len(row), generator=drawn, dtype=torch.float64) for _ in range(8)]
    return [float(row @ one / row.norm()) for one in along]


def _validate(scenario: dict[str, Any]) -> dict[str, Any]:
    import torch.distributed

    from infra.corpus import Corpus
    from training.engine import take_batch
    from training.step import set_learning_rate
    from training.validation import validate

    asked = scenario["validate"]
    config, learner, engine = _start(scenario)
    # A step that changes nothing, since a stage never validates before its first one: in it ZeRO 3
    # learns which parameters a module borrows from another.
    set_learning_rate(engine.optimizer, 0.0)
    total = BATCH * torch.distributed.get_world_size()
    batch = made_batch(0, config.model.image_size)
    take_batch(engine, learner, batch, total=total, accumulate=1)
    scores = validate(
        learner.save,
        Corpus.open(asked["corpus"]),
        asked["split"],
        overlays=OVERLAYS,
        show=lambda key, jpeg: Path(asked["shown"], f"{key}.jpg").write_bytes(jpeg),
    )
    engine.destroy()
    return dataclasses.asdict(scores)


def _start(scenario: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The recipe, the learner and the engine of a scenario."""
    import torch
    import torch.distributed

    from training.engine import start_engine
    from training.loop import build_learner
    from training.recipe import ModelConfig, TrainConfig, WorkersConfig
    from training.step import OptimizerConfig

    workers = WorkersConfig(
        count=torch.distributed.get_world_size(), zero_stage=scenario.get("zero_stage", 0)
    )
    config = TrainConfig(
        stage="world",
        corpus="",
        steps=10,
        batch=BATCH,
        class_weight=0.5,
        accumulate=scenario.get("accumulate", 1),
        precision=scenario.get("precision", "fp32"),
        model=ModelConfig(image_size=scenario.get("image_size", 32)),
        workers=dataclasses.replace(workers, **scenario.get("workers", {})),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    learner = build_learner(config, classes=3)
    engine = start_engine(config, learner, torch.device("cpu"))
    return config, learner, engine


def made_batch(step: int, side: int) -> Any:
    """A batch that is a function of the step alone; some masks are empty."""
    import torch

    from training.batch import Batch

    made = torch.Generator().manual_seed(step)
    mask = (torch.rand(BATCH, 1, side, side, generator=made) < 0.3).float()
    mask[step % BATCH] = 0.0
    return Batch(
        image_B3SS=torch.randn(BATCH, 3, side, side, generator=made),
        log_mel_B1MF=torch.randn(BATCH, 1, 96, 64, generator=made),
        mask_B1SS=mask,
        class_BC=torch.eye(3)[torch.randint(3, (BATCH,), generator=made)],
        cell_BGG=torch.randint(4, (BATCH, side // 16, side // 16), generator=made),
    )


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
