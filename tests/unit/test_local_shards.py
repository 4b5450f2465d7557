"""Shards read in place: copies and views agree, and what changes under them is noticed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from infra import local_shards
from infra.corpus import Corpus
from tests.made_corpus import write_made_corpus

READERS: dict[str, Callable[[Corpus, int], object]] = {
    "copied": lambda corpus, row: corpus.read("train", row),
    "viewed": lambda corpus, row: corpus.view("train", row),
}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Six small shards of two samples."""
    told = {"samples": {"train": 12}, "size": 32, "shard_samples": 2}
    return write_made_corpus(str(tmp_path / "corpus"), **told)


def path_of(corpus: Corpus, shard: int) -> Path:
    return Path(corpus.uri) / corpus.shards[shard].path


def replace(path: Path) -> None:
    """Another file of the same bytes takes the name."""
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


def test_views_are_of_the_bytes_that_are_copied(corpus: Corpus) -> None:
    for row in range(12):
        sample = corpus.read("train", row)
        key, views = corpus.view("train", row)
        assert key == sample.key
        assert json.loads(bytes(views.pop("json"))) == sample.meta
        assert views == sample.members


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("how", ["replaced", "written", "cut", "removed"])
def test_a_shard_that_changes_under_us_is_noticed(corpus: Corpus, how: str, reader: str) -> None:
    read = READERS[reader]
    read(corpus, 0)
    path = path_of(corpus, 0)
    whole = path.read_bytes()
    if how == "replaced":
        replace(path)
    elif how == "written":
        path.write_bytes(whole)
        os.utime(path, ns=(0, 0))
    elif how == "cut":
        os.truncate(path, 512)
    else:
        path.unlink()
    message = "is missing" if how == "removed" else "changed since it was first read"
    with pytest.raises(ValueError, match=rf"train-00000\.tar {message}"):
        read(corpus, 1)
    read(corpus, 2)  # the others are as they were
    if how in ("replaced", "written"):
        read(Corpus.open(corpus.uri), 1)
    else:
        with pytest.raises(ValueError, match=r"train-00000\.tar is missing or cut short"):
            read(Corpus.open(corpus.uri), 1)


@pytest.mark.parametrize("reader", READERS)
def test_the_checksum_of_local_shards_is_compared_on_request(corpus: Corpus, reader: str) -> None:
    read = READERS[reader]
    path = path_of(corpus, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    read(Corpus.open(corpus.uri), 0)
    verified = Corpus.open(corpus.uri, verify=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"train-00000\.tar does not match its checksum"):
            read(verified, 0)
    read(verified, 2)


def test_a_corpus_that_travelled_looks_at_the_files_it_finds(corpus: Corpus) -> None:
    corpus.read("train", 0)
    packed = pickle.dumps(corpus)
    # On another machine the same file has another device and inode.
    replace(path_of(corpus, 0))
    assert pickle.loads(packed).read("train", 0).members
    with pytest.raises(ValueError, match="changed since it was first read"):
        corpus.read("train", 0)


def test_views_of_many_shards_hold_few_files_open(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_shards, "_map", lru_cache(maxsize=2)(local_shards._map.__wrapped__))
    for row in range(12):
        assert corpus.view("train", row)[1]
    opened = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    assert sum(path.startswith(f"{corpus.uri}/") for path in opened) == 2
