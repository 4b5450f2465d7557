"""Whole synthesis jobs: the same bytes, each once, whoever is killed and in whatever order.

The corpus is a natural one with refusals of both kinds: files that the catalog refuses, and scenes
that a shard refuses (in some shards all there are).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from fsspec.implementations.local import LocalFileSystem

from infra import cluster, config, storage
from infra.corpus import Corpus
from pipelines.catalog import MediaConfig
from pipelines.synthesize import SynthesizeConfig, run
from synth.plan import plan_shards
from synth.recipe import Recipe, Samples
from synth.sources import Offer
from synth.sources.coco import CocoConfig
from synth.sources.esc50 import Esc50Config
from synth.sources.vggsound import VggSoundConfig
from tests.integration.conftest import ROOT, ObjectStore, end_session
from tests.integration.servers import KillSwitch, children_titled
from tests.made_sources import natural_offer

pytestmark = pytest.mark.integration

logger = logging.getLogger(__name__)

FEW = Recipe(
    scenes="natural",
    image_size=32,
    samples=Samples(train=20, val=2, test=2, unseen=0),
    samples_per_shard=2,
    asset_shares=(0.6, 0.2, 0.2),
    # A narrow view and often two sounding classes: what does not show both is refused.
    crop=(0.45, 0.5),
    sources=(0.5, 0.5, 0.0),
    min_mask_area=0.02,
    max_refused=0.9,
)
MANY = dataclasses.replace(
    FEW, samples=Samples(train=112, val=4, test=4, unseen=0), samples_per_shard=1
)
FEW_SHARDS, MANY_SHARDS = 12, 120
# What makes a corpus stand, in its order; of the catalog what was looked at, one of the tables and
# what makes them one, of the shards each file in a shard of its own.
CATALOG_FILES = ("catalog/looked-*.parquet", "catalog/clips.parquet", "catalog/catalog.json")
SHARD_FILES = ("shards/train-00001.tar", "shards/train-00003.parquet", "shards/train-00005.json")
LAST_FILES = ("refused.parquet", "index.html", "index/train.parquet", "corpus.json")
KILLS = 10
PATIENCE = 240.0


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree") / "media")


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> KillSwitch:
    return KillSwitch.install(tmp_path_factory.mktemp("switch") / "on")


@pytest.fixture(scope="module", autouse=True)
def address(seaweedfs: ObjectStore, switch: KillSwitch) -> Iterator[str]:
    """A local Ray whose workers have the switch; this process is one of its drivers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", f"{switch.folder}{os.pathsep}{ROOT}")
        cluster.connect(num_cpus=2)
        yield ray.get_runtime_context().gcs_address
        cluster.disconnect()


@pytest.fixture(scope="module")
def calm(tree: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one worker makes of the small recipe when nobody disturbs it."""
    uri = tmp_path_factory.mktemp("calm") / "corpus"
    summary = made(tree, uri, parallelism=1)
    assert summary["shards_made"] == FEW_SHARDS
    assert set(summary["refused_by_reason"]) == {"mask", "unreadable"}
    return contents(uri)


@pytest.fixture(scope="module")
def calm_many(tree: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What two make of the larger one."""
    uri = tmp_path_factory.mktemp("calm-many") / "corpus"
    assert made(tree, uri, recipe=MANY)["shards_made"] == MANY_SHARDS
    return contents(uri)


def write_tree(folder: Path) -> Path:
    """COCO, VGGSound and ESC-50, with a picture that is cut off and a sound that is none."""
    natural_offer(folder)
    picture = folder / "coco" / "train2017" / "000000000003.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    (folder / "vggsound" / "-madecat003_000030.flac").write_bytes(b"fLaC and no more of it")
    return folder


def made(tree: Path, uri: Path | str, *, recipe: Recipe = FEW, **more: Any) -> dict[str, Any]:
    """The summary of a job whose driver is this process."""
    media = MediaConfig(
        coco=CocoConfig(folder=f"{tree}/coco"),
        vggsound=VggSoundConfig(folder=f"{tree}/vggsound"),
        esc50=Esc50Config(folder=f"{tree}/esc50"),
    )
    return run(SynthesizeConfig(uri=str(uri), media=media, corpus=recipe, **more))


@contextmanager
def driver(
    tree: Path, uri: Path, log: Path, *more: str, recipe: Recipe = FEW, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The real command in a session of its own, all of which is killed at the end."""
    values = config.to_dict(recipe)
    command = [
        *(sys.executable, str(ROOT / "pipelines" / "synthesize.py"), f"--uri={uri}"),
        *(f"--media.{name}.folder={tree / name}" for name in ("coco", "vggsound", "esc50")),
        *(
            f"--corpus.{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in values.items()
        ),
    ]
    dropped = ("SAVE_TRACEBACK", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *more],
            env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_session(process.pid)
        process.wait()


def contents(uri: Path | str) -> dict[str, str]:
    """sha256 of every object below a corpus, by name; the catalog's and any lease's too."""
    names = storage.list_sizes(uri)
    return {n: hashlib.sha256(storage.read_bytes(f"{uri}/{n}")).hexdigest() for n in names}


def leftovers(uri: Path) -> list[Path]:
    """What whoever was killed over a file has left beside it."""
    return list(uri.rglob(".*"))


def markers(uri: Path) -> int:
    return len(list(uri.glob("shards/*.json")))


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether it happened before the process ended."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        if ready():
            return True
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.005)
    return False


def test_workers_killed_around_each_commit_of_a_shard_change_no_byte(
    tree: Path, tmp_path: Path, switch: KillSwitch, calm: dict[str, str]
) -> None:
    plan = [
        (moment, rf"/shards/train-0000{number}\.{ending}$", "worker")
        for number, (moment, ending) in enumerate(
            (m, e) for m in ("before", "after") for e in ("tar", "parquet", "json")
        )
    ]
    switch.arm(*plan)
    summary = made(tree, tmp_path / "corpus")
    assert switch.struck == len(plan) == 6
    assert summary["shards_made"] == FEW_SHARDS
    assert contents(tmp_path / "corpus") == calm
    assert leftovers(tmp_path / "corpus")
    assert made(tree, tmp_path / "corpus")["shards_made"] == 0
    assert contents(tmp_path / "corpus") == calm and not leftovers(tmp_path / "corpus")


def test_a_job_killed_at_any_commit_is_finished_by_the_next(
    tree: Path, tmp_path: Path, address: str, switch: KillSwitch, calm: dict[str, str]
) -> None:
    uri, log = tmp_path / "corpus", tmp_path / "log"
    env = {"RAY_ADDRESS": address, "PYTHONPATH": f"{switch.folder}{os.pathsep}{ROOT}"}
    kills = [(name, moment) for name in CATALOG_FILES for moment in ("before", "after")]
    kills += [(name, "after") for name in SHARD_FILES]
    kills += [(name, moment) for name in LAST_FILES for moment in ("before", "after")]
    for name, moment in kills:
        switch.arm((moment, f"/corpus/{fnmatch.translate(name)}", "job"))
        with driver(tree, uri, log, "--parallelism=1", **env) as process:
            switch.watch(process.pid)
            assert process.wait(PATIENCE) == -signal.SIGKILL, log.read_text()
        assert switch.struck == 1
        assert bool(list(uri.glob(name))) == (moment == "after"), (moment, name)
        assert leftovers(uri) or moment == "after", (moment, name)
        # The kills go on with what the last left; beside them each is followed by a calm run.
        switch.arm()
        after = tmp_path / "after" / "corpus"
        shutil.copytree(uri, after)
        standing = markers(after)
        assert made(tree, after)["shards_made"] == FEW_SHARDS - standing, (moment, name)
        assert contents(after) == calm and not leftovers(after), (moment, name)
        shutil.rmtree(after)
    assert made(tree, uri)["shards_made"] == 0
    assert contents(uri) == calm


def test_workers_killed_at_random_change_no_byte(
    tree: Path, tmp_path: Path, calm_many: dict[str, str]
) -> None:
    uri = tmp_path / "corpus"
    rng = random.Random(0)
    killed = {"catalog": 0, "shards": 0}
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(rng.uniform(0.0, 0.4)):
            stage = "shards" if (uri / "catalog" / "catalog.json").exists() else "catalog"
            busy = children_titled("ray::Map")
            # One task may be hit by all of them, and the fourth of its deaths ends the job.
            if busy and killed[stage] < 3:
                with suppress(psutil.NoSuchProcess):
                    rng.choice(busy).kill()
                    killed[stage] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        summary = made(tree, uri, recipe=MANY)
    finally:
        ended.set()
        killer.join()
    logger.info("killed %s", killed)
    assert killed["shards"] > 0
    assert summary["shards_made"] == MANY_SHARDS
    assert contents(uri) == calm_many


def test_ten_kills_of_everything_lose_nothing_and_double_nothing(
    tree: Path, tmp_path: Path, switch: KillSwitch, calm_many: dict[str, str]
) -> None:
    uri, log = tmp_path / "corpus", tmp_path / "log"
    path = f"{switch.folder}{os.pathsep}{ROOT}"
    rng = random.Random(0)
    stood: list[int] = []
    # Ray itself gives up where a machine is too busy to start it, which is no kill of ours.
    for _ in range(2 * KILLS):
        # Nobody is done before he is killed.
        switch.arm(("before", "/corpus/corpus.json$", "hold"))
        # A Ray of its own, so that all of it dies: driver, workers, raylet.
        with driver(tree, uri, log, recipe=MANY, PYTHONPATH=path) as process:
            if len(stood) < 3:
                time.sleep(rng.uniform(0.5, 8.0))
            else:
                more = markers(uri) + rng.randint(1, 12)
                wanted = MANY_SHARDS if len(stood) == KILLS - 1 else min(more, MANY_SHARDS)
                wait_for(lambda wanted=wanted: markers(uri) >= wanted, process, log)  # type: ignore[misc]
                time.sleep(rng.uniform(0.0, 0.4))
        if process.returncode == -signal.SIGKILL:
            stood.append(markers(uri))
        else:
            assert "timed out during startup" in log.read_text(), log.read_text()
        if len(stood) == KILLS:
            break
    # Ten kills, at different points and the last right before the end, and no shard was lost.
    assert len(stood) == KILLS and not (uri / "corpus.json").exists()
    assert stood == sorted(stood) and len(set(stood)) >= 4 and stood[-1] == MANY_SHARDS, stood
    made(tree, uri, recipe=MANY)
    assert contents(uri) == calm_many and not leftovers(uri)

    corpus = Corpus.open(str(uri))
    keys = [key for split in corpus.splits for key in corpus.table(split)["key"].to_pylist()]
    refused = storage.read_bytes(f"{uri}/refused.parquet")
    scenes = [row["id"] for row in rows_of(refused) if row["source"] == "scene"]
    planned = [
        f"{plan.split}-{number:08d}"
        for plan in plan_shards(MANY)
        for number in range(plan.first, plan.first + plan.samples)
    ]
    assert sorted([*keys, *scenes]) == sorted(planned)
    assert len(keys) > len(scenes) > 0


def rows_of(parquet: bytes) -> list[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, str]] = pq.read_table(pa.BufferReader(parquet)).to_pylist()
    return rows


def test_bytes_do_not_depend_on_the_order_and_place_of_the_files_nor_on_workers(
    tree: Path, tmp_path: Path, calm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = write_in_another_order(tree, tmp_path / "elsewhere")
    found, offered = LocalFileSystem.find, Offer.__iter__

    def backwards(*args: Any, **how: Any) -> dict[str, Any]:
        listing = found(*args, **how)
        return {name: listing[name] for name in reversed(listing)}

    def shuffled(offer: Offer) -> Iterator[Any]:
        candidates = list(offered(offer))
        random.Random(len(candidates)).shuffle(candidates)
        yield from candidates

    monkeypatch.setattr(LocalFileSystem, "find", backwards)
    monkeypatch.setattr(Offer, "__iter__", shuffled)
    made(elsewhere, tmp_path / "corpus", parallelism=2)
    monkeypatch.undo()
    # This one alone says where the media lie.
    name = "catalog/catalog.json"
    there = contents(tmp_path / "corpus")
    assert there.pop(name) != calm[name]
    assert there == {n: digest for n, digest in calm.items() if n != name}


def write_in_another_order(tree: Path, folder: Path) -> Path:
    """The same media with the rows of their tables shuffled."""
    shutil.copytree(tree, folder)
    rng = random.Random(1)
    for name, heads in (("vggsound/vggsound.csv", 0), ("esc50/meta/esc50.csv", 1)):
        lines = (folder / name).read_text().splitlines()
        rows = lines[heads:]
        rng.shuffle(rows)
        assert rows != lines[heads:]
        (folder / name).write_text("\n".join([*lines[:heads], *rows]) + "\n")
    table = folder / "coco" / "annotations" / "instances_train2017.json"
    document = json.loads(table.read_text())
    for name in ("images", "annotations", "categories"):
        rng.shuffle(document[name])
    table.write_text(json.dumps(document))
    return folder


def test_bytes_on_s3_are_those_on_disk(
    tree: Path, seaweedfs: ObjectStore, calm: dict[str, str]
) -> None:
    uri = f"{seaweedfs.uri}/natural/corpus"
    made(tree, uri)
    assert contents(uri) == calm


def test_a_second_job_is_refused_while_one_runs_and_follows_a_killed_one_at_once(
    tree: Path, tmp_path: Path, address: str, switch: KillSwitch, calm: dict[str, str]
) -> None:
    uri, logs = tmp_path / "corpus", (tmp_path / "first", tmp_path / "second")
    switch.arm(("after", r"/shards/train-00004\.tar$", "hold"))
    with driver(tree, uri, logs[0], RAY_ADDRESS=address) as first:
        assert wait_for(lambda: switch.struck == 1, first, logs[0]), logs[0].read_text()
        with driver(tree, uri, logs[1], RAY_ADDRESS=address) as second:
            assert second.wait(PATIENCE) == 1
        said = logs[1].read_text()
        assert said.splitlines()[-1].startswith(
            f"error: another job (synthesize, process {first.pid} on "
        )
        assert f"writes at {uri} since " in said.splitlines()[-1] and "Traceback" not in said
        assert first.poll() is None and not (uri / "corpus.json").exists()
        first.kill()
        first.wait()
        # Its worker is held still, and may write on when the next has begun.
        switch.release()
        assert made(tree, uri)["shards_made"] < FEW_SHARDS
    assert contents(uri) == calm
