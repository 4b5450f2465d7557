"""A split's table is read from one file, and from its shards where that is not to be trusted."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import storage
from infra.corpus import Corpus, build_manifest, commit, join_indexes, write_shard
from tests.made_corpus import write_made_corpus


@pytest.fixture
def joined(tmp_path: Path) -> Corpus:
    """Three shards of each of two splits, whose indexes are joined."""
    told = {"samples": {"train": 12, "val": 6}, "size": 32}
    corpus = write_made_corpus(str(tmp_path / "corpus"), shard_samples=4, **told)
    join_indexes(corpus.uri, corpus.manifest)
    commit(corpus.uri, corpus.manifest)
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
    del joined.manifest["indexes"]
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
    for wrong in (whole.slice(1), whole.drop_columns(["members"]), whole.slice(0, 0)):
        buffer = pa.BufferOutputStream()
        pq.write_table(wrong.drop_columns(["shard"]), buffer)
        path = Path(joined.uri) / "index/train.parquet"
        path.write_bytes(buffer.getvalue().to_pybytes())
        manifest = json.loads(json.dumps(joined.manifest))
        manifest["indexes"]["train"] = {
            "bytes": path.stat().st_size,
            "sha256": sha256(path.read_bytes()).hexdigest(),
        }
        caplog.clear()
        assert Corpus(joined.uri, manifest, sha256="").table("train").equals(whole)
        assert "is left aside" in caplog.text


def test_a_corpus_stays_readable_while_a_larger_one_is_about_to_be_committed(
    tmp_path: Path,
) -> None:
    uri = str(tmp_path)
    small = write_made_corpus(uri, samples={"train": 4}, size=32, shard_samples=4)
    join_indexes(uri, small.manifest)
    commit(uri, small.manifest)
    rows = Corpus.open(uri).table("train")
    samples = [small.read("train", row) for row in range(4)]
    more = [replace(sample, key=f"more{n}") for n, sample in enumerate(samples)]
    record, _ = write_shard(uri, "train", 1, more, plan="more")
    told = {key: small.manifest[key] for key in ("kind", "seed", "recipe", "sources", "licences")}
    larger = build_manifest(**told, shards=[*small.shards, record], refused=[])
    join_indexes(uri, larger)
    assert Corpus.open(uri).table("train").equals(rows)
    commit(uri, larger)
    assert len(Corpus.open(uri).table("train")) == 8


@pytest.mark.parametrize("split", ["../train", "a/b", "", "a b"])
def test_a_manifest_whose_splits_lead_elsewhere_is_damaged(joined: Corpus, split: str) -> None:
    manifest = json.loads(storage.read_bytes(f"{joined.uri}/corpus.json"))
    manifest["splits"][split] = manifest["splits"].pop("val")
    commit(joined.uri, manifest)
    with pytest.raises(ValueError, match="names a split"):
        Corpus.open(joined.uri)


@pytest.mark.parametrize(
    "told", [[], "train", {"train": {}}, {"train": []}, {"train": {"bytes": "x"}}]
)
def test_what_a_manifest_says_of_joined_indexes_may_be_anything(joined: Corpus, told: Any) -> None:
    manifest = json.loads(storage.read_bytes(f"{joined.uri}/corpus.json"))
    manifest["indexes"] = told
    commit(joined.uri, manifest)
    if isinstance(told, dict):
        assert Corpus.open(joined.uri).table("train").equals(joined.table("train"))
    else:
        with pytest.raises(ValueError, match=r"corpus\.json is damaged"):
            Corpus.open(joined.uri)
