"""A split's table is read from one file, and from its shards where that is not to be trusted."""

from __future__ import annotations

import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import storage
from infra.commit import build_manifest, commit, join_indexes
from infra.config import canonical_json
from infra.corpus import Corpus, write_shard
from tests.made_corpus import write_made_corpus


@pytest.fixture
def joined(tmp_path: Path) -> Corpus:
    """Three shards of each of two splits, whose indexes are joined."""
    told = {"samples": {"train": 12, "val": 6}, "size": 32}
    corpus = write_made_corpus(str(tmp_path / "corpus"), shard_samples=4, **told)
    commit(corpus.uri, corpus.manifest, join_indexes(corpus))
    return Corpus.open(corpus.uri)


def read_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The index files that are read from now on."""
    read: list[str] = []
    one = storage.read_bytes

    def read_bytes(uri: str, **more: int) -> bytes:
        read.append(uri)
        return one(uri, **more)

    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    return read


def test_a_joined_table_is_that_of_the_shards_in_one_file(
    joined: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_of(monkeypatch)
    tables = {split: joined.table(split) for split in joined.splits}
    assert read == [f"{joined.uri}/index/{split}.parquet" for split in ("train", "val")]
    del joined.manifest["files"]
    apart = Corpus(joined.uri, joined.manifest, sha256="")
    for split, table in tables.items():
        assert table.equals(apart.table(split))
        assert table["shard"].to_pylist() == [
            record.path for record in joined.shards if record.split == split
            for _ in range(record.samples)
        ]  # fmt: skip
    assert sorted(read[2:]) == [f"{joined.uri}/{record.index}" for record in joined.shards]


@pytest.mark.parametrize("what", ["damaged", "missing", "longer", "another"])
def test_what_is_not_the_joined_table_of_the_manifest_is_left_aside(
    joined: Corpus, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = joined.table("train")
    path = Path(joined.uri) / "index/train.parquet"
    data = path.read_bytes()
    if what == "missing":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif what == "longer":
        path.write_bytes(data + b"0")
    else:
        path.write_bytes((Path(joined.uri) / "index/val.parquet").read_bytes())
    with caplog.at_level(logging.WARNING):
        assert Corpus.open(joined.uri).table("train").equals(whole)
    assert "index/train.parquet is left aside" in caplog.text


def test_a_joined_table_that_the_manifest_vouches_for_must_fit_the_shards(
    joined: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    whole = joined.table("train")
    order = [1, 0, *range(2, len(whole))]
    wrong_ones = (whole.slice(1), whole.drop_columns(["members"]), whole.take(order), b"PAR1", b"")
    for wrong in wrong_ones:
        path = Path(joined.uri) / "index/train.parquet"
        path.write_bytes(wrong if isinstance(wrong, bytes) else parquet(wrong))
        vouch(joined, path)
        caplog.clear()
        assert Corpus.open(joined.uri).table("train").equals(whole)
        assert "index/train.parquet is left aside" in caplog.text


def test_a_damaged_index_that_the_manifest_vouches_for_is_never_a_traceback(joined: Corpus) -> None:
    whole, random = joined.table("train"), np.random.default_rng(0)
    path = Path(joined.uri) / "index/train.parquet"
    data = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        vouch(joined, path)
        found = Corpus.open(joined.uri).table("train")
        # What is no offset may be another word, which nothing but a checksum tells.
        assert found["members"].equals(whole["members"]) and found["shard"].equals(whole["shard"])


def parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table.drop_columns(["shard"]), buffer)
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def vouch(corpus: Corpus, path: Path) -> None:
    """Let the manifest tell that the index of train is as it is."""
    told = {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
    write_manifest(corpus, files={**corpus.manifest["files"], "index/train.parquet": told})


def write_manifest(corpus: Corpus, **changed: Any) -> None:
    storage.write_bytes(f"{corpus.uri}/corpus.json", canonical_json({**corpus.manifest, **changed}))


def test_a_corpus_stays_readable_while_a_larger_one_is_about_to_be_committed(
    tmp_path: Path,
) -> None:
    uri = str(tmp_path)
    small = write_made_corpus(uri, samples={"train": 4}, size=32, shard_samples=4)
    commit(uri, small.manifest, join_indexes(small))
    rows = Corpus.open(uri).table("train")
    samples = [small.read("train", row) for row in range(4)]
    more = [replace(sample, key=f"more{n}") for n, sample in enumerate(samples)]
    record, _ = write_shard(uri, "train", 1, more, plan="more")
    told = {key: small.manifest[key] for key in ("kind", "seed", "recipe", "sources", "licences")}
    larger = build_manifest(**told, shards=[*small.shards, record], refused=[])

    def dies() -> None:
        if (tmp_path / "index/train.parquet").stat().st_mtime_ns != written:
            raise KeyboardInterrupt

    written = (tmp_path / "index/train.parquet").stat().st_mtime_ns
    files = join_indexes(Corpus(uri, larger, sha256=""))
    with pytest.raises(KeyboardInterrupt):
        commit(uri, larger, files, check=dies)
    assert Corpus.open(uri).table("train").equals(rows)
    commit(uri, larger, files)
    assert len(Corpus.open(uri).table("train")) == 8


@pytest.mark.parametrize("split", ["../train", "a/b", "", "a b"])
def test_a_manifest_whose_splits_lead_elsewhere_is_damaged(joined: Corpus, split: str) -> None:
    splits = joined.manifest["splits"]
    write_manifest(joined, splits={**splits, split: splits["val"]})
    with pytest.raises(ValueError, match="names a split"):
        Corpus.open(joined.uri)


@pytest.mark.parametrize("name", ["samples", "bytes", "index_bytes"])
@pytest.mark.parametrize("count", [-1, 2**70, 1.5, "1", None])
def test_a_manifest_whose_shards_have_impossible_sizes_is_damaged(
    joined: Corpus, name: str, count: Any
) -> None:
    first, *others = joined.manifest["shards"]
    write_manifest(joined, shards=[{**first, name: count}, *others])
    with pytest.raises(ValueError, match=r"names a shard .*: it is damaged"):
        Corpus.open(joined.uri)


@pytest.mark.parametrize("told", [{}, [], {"bytes": "x"}, {"bytes": 1 << 70, "sha256": ""}, "", 1])
def test_what_a_manifest_says_of_a_joined_index_may_be_anything(joined: Corpus, told: Any) -> None:
    write_manifest(joined, files={"index/train.parquet": told})
    assert Corpus.open(joined.uri).table("train").equals(joined.table("train"))
    write_manifest(joined, files=[told])
    with pytest.raises(ValueError, match=r"corpus\.json is damaged"):
        Corpus.open(joined.uri)


def test_a_corpus_is_the_same_whatever_is_made_of_it(joined: Corpus) -> None:
    commit(joined.uri, joined.manifest, {"index.html": b"a page"})
    again = Corpus.open(joined.uri)
    assert again.manifest != joined.manifest and again.sha256 == joined.sha256
    commit(joined.uri, {**joined.manifest, "seed": 1}, join_indexes(joined))
    assert Corpus.open(joined.uri).sha256 != joined.sha256
