"""Media that lie on one machine, and a cluster whose tasks run on others."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from infra import storage
from pipelines.catalog import MediaConfig, find_media
from synth.sources import debian_media
from synth.sources.esc50 import Esc50Config

DRIVER = "10.0.0.1"
OTHER = "10.0.0.2"
SHARED = "a disk that all of them share"


def node(address: str, cpus: int, *, name: str = "", lives: bool = True) -> dict[str, Any]:
    """A node as Ray tells of it, which leaves out what a node has none of."""
    return {
        "NodeID": name or address,
        "Alive": lives,
        "NodeManagerAddress": address,
        "Resources": {"memory": 1.0, **({"CPU": float(cpus)} if cpus else {})},
    }


ON_OTHERS = {
    "a head without CPUs, and no worker yet": [node(DRIVER, 0)],
    "a head without CPUs": [node(DRIVER, 0), node(OTHER, 2)],
    "several machines": [node(DRIVER, 2), node(OTHER, 2)],
}
ON_THIS_ONE = {
    "one node": [node(DRIVER, 2)],
    "several nodes of one machine": [node(DRIVER, 1), node(DRIVER, 1, name="second")],
    "a head without CPUs beside a worker": [node(DRIVER, 0), node(DRIVER, 2, name="second")],
    "other machines that are gone": [node(DRIVER, 2), node(OTHER, 2, lives=False)],
    "other machines without CPUs": [node(DRIVER, 2), node(OTHER, 0)],
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The media cache, from which nothing has to be fetched."""
    monkeypatch.delenv("SAVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debian_media, "fetch", lambda cache, *, progress: cache / "media")
    return storage.cache_folder()


def connect(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]]) -> None:
    """A driver on the first machine of a cluster."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    context = SimpleNamespace(get_node_id=lambda: DRIVER)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)


@pytest.mark.parametrize("nodes", ON_OTHERS.values(), ids=ON_OTHERS)
@pytest.mark.parametrize(
    "media", [MediaConfig(), MediaConfig(debian=True, esc50=Esc50Config(folder="s3://b/esc50"))]
)
def test_media_of_this_machine_are_refused_where_tasks_run_on_others(
    monkeypatch: pytest.MonkeyPatch, cache: Path, nodes: list[dict[str, Any]], media: MediaConfig
) -> None:
    connect(monkeypatch, nodes)
    with pytest.raises(ValueError, match=r"this machine alone.*--media\.folder") as refused:
        find_media(media)
    assert str(cache / "media") in str(refused.value)


@pytest.mark.parametrize("nodes", ON_THIS_ONE.values(), ids=ON_THIS_ONE)
def test_nodes_of_one_machine_see_its_media(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cache: Path,
    nodes: list[dict[str, Any]],
) -> None:
    connect(monkeypatch, nodes)
    assert find_media(MediaConfig()).media == str(cache / "media")
    assert not caplog.records


def test_without_ray_all_is_on_this_machine(cache: Path) -> None:
    assert find_media(MediaConfig()).media == str(cache / "media")


def test_a_shared_disk_can_be_named_as_the_cache_or_as_the_folder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    connect(monkeypatch, ON_OTHERS["several machines"])
    shared = str(tmp_path / "shared")
    assert find_media(MediaConfig(folder=shared)).media == shared
    monkeypatch.setenv("SAVE_CACHE", shared)
    assert find_media(MediaConfig()).media == f"{shared}/media"
    # No one can know that it is shared; so they are told what it has to be.
    assert [SHARED in line for line in caplog.messages] == [True, True]
    assert f"{shared}/media" in caplog.messages[1]


def test_nothing_is_said_of_object_storage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect(monkeypatch, ON_OTHERS["several machines"])
    with caplog.at_level(logging.INFO):
        media = MediaConfig(folder="s3://b/media", esc50=Esc50Config(folder="s3://b/esc50"))
        assert find_media(media).media == "s3://b/media"
    assert not caplog.records
