"""``s3://`` works wherever a path does, on a real SeaweedFS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import config, storage
from infra.corpus import Corpus
from pipelines import shard_avsbench
from pipelines.catalog import MediaConfig, look_at_media
from pipelines.synthesize import SynthesizeConfig, run
from synth.miniature import Counts, MiniatureConfig, write_miniature
from synth.pools import split_assets
from synth.recipe import Recipe, Samples
from tests.integration.conftest import ROOT, ObjectStore
from tests.integration.fault_proxy import fault_proxy
from tests.integration.servers import uploads_under_way
from tests.made_media import write_made_media
from training.models import load_model
from training.recipe import ModelConfig, TrainConfig
from training.stage import run_stage

pytestmark = pytest.mark.integration

RECIPE = Recipe(
    image_size=64, samples=Samples(train=6, val=2, test=2, unseen=2), samples_per_shard=4
)


@pytest.fixture(scope="module", autouse=True)
def ray_on_storage(seaweedfs: ObjectStore, ray_local: None) -> None:
    """Ray starts after the server, so that its workers know the server too."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SAVE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_made_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def on_disk(media: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(media, str(tmp_path_factory.mktemp("disk")))


@pytest.fixture(scope="module")
def on_s3(media: str, seaweedfs: ObjectStore) -> dict[str, Any]:
    return made(media, f"{seaweedfs.uri}/made/corpus")


def made(media: str, uri: str) -> dict[str, Any]:
    return run(SynthesizeConfig(uri=uri, media=MediaConfig(folder=media), corpus=RECIPE))


def test_a_corpus_on_s3_is_the_one_on_disk(on_disk: dict[str, Any], on_s3: dict[str, Any]) -> None:
    assert on_s3["uri"].startswith("s3://")
    assert on_s3["manifest_sha256"] == on_disk["manifest_sha256"]
    names = [
        [uri.removeprefix(f"{summary['uri']}/") for uri in storage.list_files(summary["uri"])]
        for summary in (on_disk, on_s3)
    ]
    assert names[0] == names[1] and "corpus.json" in names[0]
    for name in names[0]:
        if not name.startswith("catalog/"):
            there, here = (storage.read_bytes(f"{s['uri']}/{name}") for s in (on_s3, on_disk))
            assert there == here, name


def test_the_same_samples_are_read_from_s3(
    on_disk: dict[str, Any], on_s3: dict[str, Any], own_cache: Path
) -> None:
    here, there = (Corpus.open(summary["uri"]) for summary in (on_disk, on_s3))
    assert here.sha256 == there.sha256 and here.splits == there.splits
    for split in here.splits:
        assert here.table(split).equals(there.table(split))
        for row in range(len(here.table(split))):
            assert here.read(split, row) == there.read(split, row)
    # Each shard was copied once, under its checksum, and nothing else is left there.
    cached = sorted(file.name for file in (own_cache / "shards").iterdir())
    assert cached == sorted(f"{shard.sha256}.tar" for shard in there.shards)


def test_a_damaged_shard_on_s3_is_refused_and_not_kept(
    on_s3: dict[str, Any], seaweedfs: ObjectStore, own_cache: Path
) -> None:
    uri = f"{seaweedfs.uri}/damaged"
    for file in storage.list_files(on_s3["uri"]):
        storage.write_bytes(file.replace(on_s3["uri"], uri), storage.read_bytes(file))
    shard = Corpus.open(uri).shards[0]
    data = bytearray(storage.read_bytes(f"{uri}/{shard.path}"))
    data[700] ^= 1
    storage.write_bytes(f"{uri}/{shard.path}", bytes(data))
    with pytest.raises(ValueError, match=f"{shard.path} does not match its checksum"):
        Corpus.open(uri).read(shard.split, 0)
    assert list((own_cache / "shards").iterdir()) == []


def test_a_rerun_on_s3_makes_only_what_is_missing(on_s3: dict[str, Any], media: str) -> None:
    assert made(media, on_s3["uri"])["shards_made"] == 0
    storage.remove(f"{on_s3['uri']}/shards/train-00001.json")
    again = made(media, on_s3["uri"])
    assert again["shards_made"] == 1
    assert again["manifest_sha256"] == on_s3["manifest_sha256"]


def test_media_may_lie_on_s3_too(
    on_disk: dict[str, Any], media: str, seaweedfs: ObjectStore, tmp_path: Path
) -> None:
    for file in storage.list_files(media):
        storage.upload(Path(file), file.replace(media, f"{seaweedfs.uri}/media"))
    there = made(f"{seaweedfs.uri}/media", str(tmp_path / "corpus"))
    assert there["manifest_sha256"] == on_disk["manifest_sha256"]


def test_ranges_and_what_is_missing_on_s3(seaweedfs: ObjectStore, tmp_path: Path) -> None:
    uri = f"{seaweedfs.uri}/deep/in/file"
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_range(uri, 3, 4) == b"3456"
    assert storage.size(uri) == 10 and storage.exists(f"{seaweedfs.uri}/deep")
    with pytest.raises(ValueError, match="ends after 10 bytes"):
        storage.read_range(uri, 8, 4)
    storage.download(uri, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    storage.remove(uri)
    with pytest.raises(FileNotFoundError, match="deep/in/file does not exist"):
        storage.read_bytes(uri)
    with pytest.raises(FileNotFoundError, match=r"no corpus stands at s3://save-corpus/nowhere"):
        Corpus.open(f"{seaweedfs.uri}/nowhere")


def test_a_long_listing_and_a_long_object_are_read_page_by_page(
    seaweedfs: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{seaweedfs.uri}/long"
    names = [f"{number % 3}/{number}.txt" for number in range(1_003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(f"{uri}/{name}", b"x"), names))
    storage.write_bytes(f"{uri}er/other", b"x")
    assert sorted(storage.iter_files(uri)) == sorted(names)
    assert list(storage.iter_files(f"{seaweedfs.uri}/nowhere")) == []
    with pytest.raises(ValueError, match="long cannot be used: a folder stands"):
        storage.open_read(uri)
    data = bytes(range(256)) * 1000
    storage.write_bytes(f"{uri}/file", data)
    monkeypatch.setattr(storage, "_PIECE", 70_001)
    with storage.open_read(f"{uri}/file") as file:
        assert file.read() == data


def test_wrong_keys_are_one_sentence(
    seaweedfs: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(PermissionError, match=r"s3://.*may not be accessed.*AWS keys"):
                storage.write_bytes(f"{seaweedfs.uri}/x", b"1")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_corpus_made_on_a_stumbling_store_is_the_one_on_disk(
    on_disk: dict[str, Any], media: str, seaweedfs: ObjectStore
) -> None:
    uri = f"{seaweedfs.uri}/stumbling/corpus"
    values = config.to_dict(RECIPE)
    flags = [
        f"--corpus.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    ]
    script = str(ROOT / "pipelines" / "synthesize.py")
    # A Ray of its own: the workers have to go through the proxy too.
    with fault_proxy(seaweedfs.endpoint, seed=0, rate=0.2, pause=0.5) as proxy:
        kept = {n: v for n, v in os.environ.items() if n not in ("RAY_ADDRESS", "SAVE_TRACEBACK")}
        ended = subprocess.run(
            [sys.executable, script, f"--uri={uri}", f"--media.folder={media}", *flags],
            env={**kept, "PYTHONPATH": str(ROOT), "AWS_ENDPOINT_URL": proxy.endpoint},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert min(proxy.kinds.values()) >= 1, proxy
    there = json.loads(ended.stdout.splitlines()[-1])
    assert there["manifest_sha256"] == on_disk["manifest_sha256"]
    names = storage.list_sizes(on_disk["uri"])
    assert storage.list_sizes(uri) == names
    for name in names:
        if not name.startswith("catalog/"):
            assert storage.read_bytes(f"{uri}/{name}") == storage.read_bytes(
                f"{on_disk['uri']}/{name}"
            )
    assert uploads_under_way(seaweedfs) == []


def test_miniature_sharding_and_training_live_on_s3(
    media: str, seaweedfs: ObjectStore, tmp_path: Path
) -> None:
    catalog = look_at_media(MediaConfig(folder=media))
    pools = split_assets(catalog, RECIPE)["train"]
    tree, corpora = f"{seaweedfs.uri}/mini", f"{seaweedfs.uri}/corpora"
    miniature = MiniatureConfig(
        s4=Counts(train=6, val=2, test=2), ms3=Counts(train=2, val=2, test=2), collection=""
    )
    write_miniature(
        tree, replace(pools, backgrounds=catalog.backgrounds), miniature, catalog.folder
    )
    sharded = shard_avsbench.run(
        shard_avsbench.ShardAvsbenchConfig(tree=tree, subset="s4", uri=f"{corpora}/s4")
    )
    assert sharded["samples"] == 10 and sharded["kind"] == "avsbench_s4_miniature"

    def stage(name: str, corpus: str, parent: str | None) -> dict[str, Any]:
        return run_stage(
            TrainConfig(
                stage=name,
                corpus=corpus,
                parent=parent,
                output=f"{seaweedfs.uri}/training",
                model=ModelConfig(image_size=64),
                batch=2,
                steps=2,
            )
        )

    synthetic = made(media, f"{corpora}/synthetic")["uri"]
    pretrained = stage("pretrain", synthetic, None)
    finetuned = stage("finetune", sharded["uri"], pretrained["checkpoint"])
    assert finetuned["steps"] == 2 and finetuned["checkpoint"].startswith("s3://")
    assert load_model(finetuned["checkpoint"]).config.image_size == 64
