"""Checkpoints are committed by one write, found again, and not taken for whole when torn."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from infra import storage
from training import checkpoint_store
from training.checkpoint_store import CheckpointStore


def made(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps({"step": step}))
        (folder / "save.safetensors").write_bytes(bytes([step]) * 100)

    return write


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, told: list[str]) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "checkpoints"), keep=1, say=told.append)


def save(store: CheckpointStore, *steps: int, m_j: float | None = None) -> None:
    for step in steps:
        store.save(made(step), step, m_j)
    store.wait()


def test_the_newest_checkpoint_is_found_and_its_files_are_those_that_were_saved(
    store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, 1, 2)
    (tmp_path / "got").mkdir()
    assert store.fetch_newest(tmp_path / "got") == 2
    assert (tmp_path / "got" / "save.safetensors").read_bytes() == bytes([2]) * 100


def test_without_any_checkpoint_there_is_nothing_to_go_on_from(
    store: CheckpointStore, tmp_path: Path
) -> None:
    assert store.fetch_newest(tmp_path) is None


def test_the_best_and_the_newest_stay_and_the_others_go(store: CheckpointStore) -> None:
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1), (4, None), (5, 0.2)):
        save(store, step, m_j=score)
    assert [one.step for one in store.committed()] == [5, 2]
    left = {name.partition("/")[0] for name in storage.list_sizes(store.uri)}
    assert left == {"step-00000002", "step-00000002.json", "step-00000005", "step-00000005.json"}
    assert checkpoint_store.best(store.committed()).step == 2


def test_of_equal_scores_the_later_is_the_best(store: CheckpointStore) -> None:
    save(store, 1, m_j=0.5)
    save(store, 2, m_j=0.5)
    assert checkpoint_store.best(store.committed()).step == 2


@pytest.mark.parametrize(
    "tear",
    ["no commit", "a file is gone", "a file is cut", "a file is other", "the commit is cut"],
)
def test_a_torn_checkpoint_is_skipped_with_a_word(
    store: CheckpointStore, told: list[str], tmp_path: Path, tear: str
) -> None:
    save(store, 1, m_j=0.5)
    save(store, 2, m_j=0.4)
    commit = Path(f"{store.folder(2)}.json")
    weights = Path(store.folder(2)) / "save.safetensors"
    if tear == "no commit":
        commit.unlink()
    elif tear == "a file is gone":
        weights.unlink()
    elif tear == "a file is cut":
        weights.write_bytes(bytes([2]) * 50)
    elif tear == "a file is other":
        weights.write_bytes(bytes([3]) * 100)
    else:
        commit.write_bytes(commit.read_bytes()[:20])
    assert store.fetch_newest(tmp_path) == 1
    assert (tmp_path / "save.safetensors").read_bytes() == bytes([1]) * 100
    # What was never committed is no checkpoint, and needs no word.
    assert bool(told) == (tear != "no commit")


def test_a_damaged_newest_checkpoint_does_not_take_those_that_follow_along(
    store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, 10, m_j=0.9)
    save(store, 50, m_j=0.5)
    (Path(store.folder(50)) / "save.safetensors").write_bytes(bytes([3]) * 100)
    assert store.fetch_newest(tmp_path) == 10
    save(store, 20)
    save(store, 30)
    assert [one.step for one in store.committed()] == [30, 10]
    assert store.fetch_newest(tmp_path) == 30
    save(store, 50)
    assert store.fetch_newest(tmp_path) == 50


def test_a_commit_that_names_files_elsewhere_is_no_commit(
    store: CheckpointStore, told: list[str], tmp_path: Path
) -> None:
    save(store, 1)
    commit = Path(f"{store.folder(1)}.json")
    document = json.loads(commit.read_bytes())
    document["files"] = {"../../stolen.txt": document["files"]["state.json"]}
    commit.write_text(json.dumps(document))
    assert store.fetch_newest(tmp_path) is None
    assert "no commit" in told[0]


def test_what_a_killed_run_left_is_cleared_by_the_next_checkpoint(store: CheckpointStore) -> None:
    storage.write_bytes(f"{store.folder(7)}/save.safetensors", b"half")
    save(store, 8)
    assert not storage.list_sizes(store.folder(7))


def test_training_goes_on_while_a_checkpoint_is_written(store: CheckpointStore) -> None:
    goes_on = Event()

    def write(folder: Path) -> None:
        assert goes_on.wait(30), "saving waited for the files"
        made(1)(folder)

    assert not store.stays_busy(0.0)
    store.save(write, 1, None)
    assert store.stays_busy(0.01) and not store.committed()
    goes_on.set()
    assert not store.stays_busy(30)
    store.wait()
    assert [one.step for one in store.committed()] == [1] and store.newest_step() == 1


def test_a_checkpoint_that_cannot_be_written_costs_a_word_and_the_last_one_an_error(
    tmp_path: Path, told: list[str]
) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=1, say=told.append)
    store.save(made(1), 1, None)
    store.save(made(2), 2, None)
    assert "could not be written" in told[0] and "training goes on" in told[0]
    with pytest.raises((OSError, ValueError)):
        store.wait()


def test_older_checkpoints_that_cannot_be_removed_take_nothing_from_the_new_one(
    store: CheckpointStore, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def refuse(uri: str) -> None:
        raise PermissionError(f"{uri} may not be removed")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", refuse)
        save(store, 2)
    assert "older checkpoints could not be removed" in told[0]
    assert [one.step for one in store.committed()] == [2, 1]
    save(store, 3)
    assert [one.step for one in store.committed()] == [3]


def test_what_was_written_when_a_worker_was_killed_does_not_fill_the_disk(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write_and_die(folder: Path) -> None:
        (folder / "save.safetensors").write_bytes(b"half")
        os._exit(9)

    worker = multiprocessing.get_context("fork").Process(
        target=lambda: (store.save(write_and_die, 1, None), store.wait())
    )
    worker.start()
    worker.join(60)
    assert worker.exitcode == 9 and list(tmp_path.rglob("save.safetensors"))
    save(store, 2)
    assert not [path for path in tmp_path.rglob("*.safetensors") if "checkpoint-" in str(path)]
