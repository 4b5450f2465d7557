"""The loader on a real S3 server: a small cache, shards fetched ahead, damage and faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import storage
from infra.corpus import Corpus
from tests.batches import equal
from tests.integration.conftest import ObjectStore
from tests.integration.fault_proxy import fault_proxy
from tests.integration.servers import aws_variables
from tests.made_corpus import write_made_corpus
from training.augmentation import Augmentation
from training.data import FrameSamples
from training.prefetch import batches

pytestmark = pytest.mark.integration

TOLD = {"samples": {"train": 24, "val": 2}, "size": 48, "shard_samples": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SAVE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "shards"


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_made_corpus(str(tmp_path_factory.mktemp("disk") / "corpus"), **TOLD)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_s3(seaweedfs: ObjectStore) -> str:
    return write_made_corpus(f"{seaweedfs.uri}/loader", **TOLD).uri  # type: ignore[arg-type]


def frame_samples(corpus: Corpus, window: int | None = None) -> FrameSamples:
    told = {"image_size": 48, "seed": 1, "augmentation": Augmentation()}
    return FrameSamples(corpus, "train", window=window, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(("window", "workers"), [(None, 0), (2, 0), (2, 2)])
def test_batches_from_s3_are_those_from_a_disk_within_the_cache_limit(
    on_disk: Corpus,
    on_s3: str,
    own_cache: Path,
    window: int | None,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 5 * max(record.bytes for record in on_disk.shards)
    monkeypatch.setenv("SAVE_CACHE_BYTES", str(limit))
    here = list(batches(frame_samples(on_disk, window), batch=4, first=3, last=12))
    there = batches(
        frame_samples(Corpus.open(on_s3), window), batch=4, first=3, last=12, workers=workers
    )
    for whole, batch in zip(here, there, strict=True):
        assert equal(whole, batch)
        used = [path.stat().st_size for path in own_cache.glob("*.tar") if path.is_file()]
        assert 0 < sum(used) <= limit


def test_the_shards_of_coming_steps_are_fetched_before_they_are_needed(
    on_s3: str, own_cache: Path
) -> None:
    corpus = Corpus.open(on_s3)
    loader = batches(frame_samples(corpus), batch=1, first=0, last=48)
    next(loader)
    wanted = {f"{record.sha256}.tar" for record in corpus.shards if record.split == "train"}
    end = time.monotonic() + 60
    while {path.name for path in own_cache.glob("*.tar")} != wanted:
        assert time.monotonic() < end, "not all were fetched while one batch was taken"
        time.sleep(0.05)
    loader.close()  # type: ignore[attr-defined]


def test_a_corpus_on_a_store_that_stumbles_is_read_all_the_same(
    on_disk: Corpus, on_s3: str, seaweedfs: ObjectStore
) -> None:
    with (
        fault_proxy(seaweedfs.endpoint, rate=0.3, seed=4) as proxy,
        aws_variables({"AWS_ENDPOINT_URL": proxy.endpoint}),
    ):
        corpus = Corpus.open(on_s3)
        for row in range(24):
            assert corpus.read("train", row) == on_disk.read("train", row)
        assert proxy.faults.total() >= 1


def test_a_damaged_shard_on_s3_stops_the_loop_by_name(
    on_disk: Corpus, seaweedfs: ObjectStore, own_cache: Path
) -> None:
    uri = f"{seaweedfs.uri}/damaged-loader"
    for name in storage.list_sizes(on_disk.uri):
        storage.write_bytes(f"{uri}/{name}", storage.read_bytes(f"{on_disk.uri}/{name}"))
    corpus = Corpus.open(uri)
    record = corpus.shards[2]
    data = bytearray(storage.read_bytes(f"{uri}/{record.path}"))
    data[-1] ^= 1
    storage.write_bytes(f"{uri}/{record.path}", bytes(data))
    with pytest.raises(ValueError, match=f"{record.path} does not match its checksum"):
        list(batches(frame_samples(corpus), batch=4, first=0, last=6))
    assert not (own_cache / f"{record.sha256}.tar").exists()
