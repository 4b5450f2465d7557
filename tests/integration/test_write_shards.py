"""Shards written on a real Ray: a worker that dies costs nothing, bad input ends the job."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray.cloudpickle

from infra import stopwatch
from infra.corpus import Sample
from synth.distribute import ShardTask, write_shards

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

# Workers cannot import it by the name that pytest gives it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TASKS = [ShardTask(split="train", number=n, plan=f"plan-{n}", samples=2) for n in range(4)]


def samples(task: ShardTask) -> Iterator[Sample]:
    for index in range(task.samples):
        key = f"s{task.number}-{index}"
        with stopwatch.time("compose"):
            members = {"frame0.png": key.encode() * 100}
        yield Sample(key=key, members=members, meta={"scene": key, "classes": [], "frames": 1})


def dying(ledger: Path, *, times: int) -> Callable[[ShardTask], Iterator[Sample]]:
    """Shard 2's worker is killed in the middle of it, so many times."""

    def make(task: ShardTask) -> Iterator[Sample]:
        made = samples(task)
        yield next(made)
        if task.number == 2:
            deaths = len(list(ledger.iterdir()))
            if deaths < times:
                (ledger / str(deaths)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        yield from made

    return make


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "shards").iterdir()}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    (tmp_path / "ledger").mkdir()
    return tmp_path / "ledger"


def test_a_killed_worker_changes_no_byte(tmp_path: Path, ledger: Path) -> None:
    calm = write_shards(str(tmp_path / "calm"), TASKS, samples)
    killed = write_shards(str(tmp_path / "killed"), TASKS, dying(ledger, times=2))
    assert len(list(ledger.iterdir())) == 2
    assert content(tmp_path / "killed") == content(tmp_path / "calm")
    assert killed.made == calm.made == 4
    in_order = [sorted(w.records, key=lambda r: r.path) for w in (killed, calm)]
    assert in_order[0] == in_order[1]


def test_what_kills_every_worker_ends_the_job(tmp_path: Path, ledger: Path) -> None:
    with pytest.raises(ValueError, match=r"a worker died \(4 times over the same task"):
        write_shards(str(tmp_path / "corpus"), TASKS, dying(ledger, times=99))
    assert len(list(ledger.iterdir())) == 4


def test_bad_input_is_not_tried_again(tmp_path: Path, ledger: Path) -> None:
    def bad(task: ShardTask) -> Iterator[Sample]:
        if task.number == 1:
            (ledger / str(len(list(ledger.iterdir())))).touch()
            raise ValueError("the picture dog.png cannot be decoded: replace it")
        yield from samples(task)

    with pytest.raises(ValueError, match=r"^the picture dog\.png cannot be decoded: replace it$"):
        write_shards(str(tmp_path / "corpus"), TASKS, bad)
    assert len(list(ledger.iterdir())) == 1


def test_what_was_written_is_summed_up(tmp_path: Path) -> None:
    uri = str(tmp_path / "corpus")
    written = write_shards(uri, TASKS[:3], samples)
    sizes = [len(data) for name, data in content(Path(uri)).items() if not name.endswith(".json")]
    assert written.bytes == sum(sizes) and written.retries == 0
    assert sorted(written.timings) == ["compose", "write"]
    again = write_shards(uri, TASKS, samples)
    assert (again.made, len(again.records)) == (1, 4)
    assert 0 < again.bytes < written.bytes
