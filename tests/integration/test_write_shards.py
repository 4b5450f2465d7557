"""Shards written on a real Ray: a worker that dies costs nothing, bad input ends the job."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray.cloudpickle

from infra import retrying, stopwatch, storage
from infra.commit import standing_shards
from infra.corpus import Refused, Sample
from synth.distribute import ShardTask, map_rows, write_shards

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


def test_a_shard_that_dies_while_it_is_made_anew_is_made_once_more(tmp_path: Path) -> None:
    uri = str(tmp_path / "corpus")

    def lacking(task: ShardTask) -> Iterator[Sample | Refused]:
        yield from samples(task)
        if task.number == 1:
            yield Refused(id="dog.png", source="made", reason="missing: no such file")

    def dying_after_the_tar(task: ShardTask) -> Iterator[Sample]:
        for made in samples(task):
            members = {name: data[::-1] for name, data in made.members.items()}
            yield Sample(key=made.key, members=members, meta=made.meta)
        whole = storage.write_bytes

        def die(*_: object) -> None:
            storage.write_bytes = whole
            raise ConnectionError("the storage is gone")

        storage.write_bytes = die

    write_shards(uri, TASKS, lacking)
    old = content(Path(uri))
    with pytest.raises(ValueError, match="the storage is gone"):
        write_shards(uri, TASKS, dying_after_the_tar, retry_refused=True)
    torn = content(Path(uri))["train-00001.tar"]
    assert torn != old["train-00001.tar"] and len(torn) == len(old["train-00001.tar"])
    found = standing_shards(uri, {(t.split, t.number): t.plan for t in TASKS})
    assert sorted(number for _, number in found) == [0, 2, 3]

    assert write_shards(uri, TASKS, samples).made == 1
    write_shards(str(tmp_path / "calm"), TASKS, samples)
    assert content(Path(uri)) == content(tmp_path / "calm")


def test_a_job_that_must_not_write_any_more_ends_at_the_next_shard(tmp_path: Path) -> None:
    checks = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 2:
            raise ValueError("the lease was lost")

    with pytest.raises(ValueError, match="the lease was lost"):
        write_shards(str(tmp_path / "corpus"), TASKS, samples, parallelism=1, check=check)
    assert len(checks) == 2


def test_what_workers_ask_for_again_counts_as_the_jobs_own(tmp_path: Path, ledger: Path) -> None:
    def stumbling(name: str) -> None:
        if not (ledger / name).exists():
            (ledger / name).touch()
            raise ConnectionResetError("once")

    def look(row: dict[str, str]) -> dict[str, str]:
        retrying.retrying(lambda: stumbling(row["name"]), what=row["name"])
        return row

    def make(task: ShardTask) -> Iterator[Sample]:
        retrying.retrying(lambda: stumbling(f"shard {task.number}"), what="a shard")
        yield from samples(task)

    before = storage.retries()
    map_rows([{"name": name} for name in ("a", "b", "c")], look)
    assert storage.retries() - before == 3
    assert write_shards(str(tmp_path / "corpus"), TASKS, make).retries == 4
    assert storage.retries() - before == 7
