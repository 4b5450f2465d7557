"""The local cache of shards: limits, damage, change, company."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from infra import storage
from infra.corpus import Corpus, ShardRecord
from infra.shard_cache import ShardCache
from tests.made_corpus import write_made_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Six small shards."""
    told = {"samples": {"train": 12}, "size": 32, "shard_samples": 2}
    return write_made_corpus(str(tmp_path / "corpus"), **told)


def uri_of(corpus: Corpus, record: ShardRecord) -> str:
    return f"{corpus.uri}/{record.path}"


def cached(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def names(*records: ShardRecord) -> set[str]:
    return {f"{record.sha256}.tar" for record in records}


def use(cache: ShardCache, corpus: Corpus, record: ShardRecord) -> bytes:
    with cache.reading(uri_of(corpus, record), record) as descriptor:
        return os.pread(descriptor, record.bytes + 1, 0)


def backdate(folder: Path) -> None:
    """An hour passes."""
    for path in folder.glob("*.tar"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns - 3_600 * 10**9, status.st_mtime_ns))


def count_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    download = storage.download

    def watched(uri: str, local: Path) -> None:
        asked.append(uri)
        download(uri, local)

    monkeypatch.setattr(storage, "download", watched)
    return asked


def test_a_shard_is_fetched_once_and_read_whole(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_downloads(monkeypatch)
    record = corpus.shards[0]
    for _ in range(3):
        data = use(ShardCache(tmp_path / "cache"), corpus, record)
        assert data == Path(uri_of(corpus, record)).read_bytes()
    assert asked == [uri_of(corpus, record)]
    assert cached(tmp_path / "cache") == names(record)


def test_the_cache_limit_is_kept_and_the_least_recently_used_goes(
    corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    a, b, c, d = corpus.shards[:4]
    limit = a.bytes + b.bytes + c.bytes + d.bytes - 1
    cache = ShardCache(folder, limit)
    for record in (a, b, c):
        use(cache, corpus, record)
        backdate(folder)
    use(cache, corpus, a)
    use(cache, corpus, d)
    assert cached(folder) == names(a, c, d)
    for record in corpus.shards * 2:
        use(cache, corpus, record)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= limit


def test_a_shard_that_somebody_reads_is_not_evicted(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    a, b, c = corpus.shards[:3]
    cache = ShardCache(folder, 2 * a.bytes)
    with cache.reading(uri_of(corpus, a), a) as descriptor:
        backdate(folder)
        use(cache, corpus, b)
        use(ShardCache(folder, 2 * a.bytes), corpus, c)
        assert cached(folder) == names(a, c)
        assert len(os.pread(descriptor, a.bytes, 0)) == a.bytes


def test_what_is_mapped_stays_good_when_its_shard_is_evicted(
    corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    a, b = corpus.shards[:2]
    cache = ShardCache(folder, a.bytes)
    tar = cache.mapped(uri_of(corpus, a), a)
    use(cache, corpus, b)
    assert cached(folder) == names(b), "nobody waits for what is mapped"
    assert tar[:] == Path(uri_of(corpus, a)).read_bytes()


def test_who_finds_no_room_waits_until_others_have_read(corpus: Corpus, tmp_path: Path) -> None:
    a, b = corpus.shards[:2]
    cache = ShardCache(tmp_path / "cache", a.bytes)
    with ThreadPoolExecutor(1) as pool:
        with cache.reading(uri_of(corpus, a), a):
            waiting = pool.submit(use, cache, corpus, b)
            time.sleep(0.2)
            assert not waiting.done()
        assert len(waiting.result(timeout=60)) == b.bytes
    assert cached(tmp_path / "cache") == names(b)


def test_a_shard_larger_than_the_cache_is_told_so(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="raise SAVE_CACHE_BYTES"):
        use(ShardCache(tmp_path / "cache", 1000), corpus, corpus.shards[0])
    assert cached(tmp_path / "cache") == set()


@pytest.mark.parametrize("told", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_number_is_refused(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVE_CACHE_BYTES", told)
    with pytest.raises(ValueError, match="SAVE_CACHE_BYTES must be a whole number"):
        ShardCache(tmp_path)
    monkeypatch.setenv("SAVE_CACHE_BYTES", "123456")
    monkeypatch.setenv("SAVE_CACHE", str(tmp_path))
    assert (ShardCache().limit, ShardCache().folder) == (123456, tmp_path / "shards")


@pytest.mark.parametrize("damage", ["turned", "short", "long"])
def test_a_damaged_shard_is_fetched_again_once_and_then_refused_by_name(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    record, other = corpus.shards[:2]
    path = Path(uri_of(corpus, record))
    whole = bytearray(path.read_bytes())
    download, bad = storage.download, bytearray(whole)
    bad[700] ^= 1
    torn = {"turned": bytes(bad), "short": bytes(whole[:-512]), "long": bytes(whole) + b"\0"}[
        damage
    ]
    cache = ShardCache(tmp_path / "cache")
    arrivals: list[int] = []

    def damaged_once(uri: str, local: Path) -> None:
        arrivals.append(1)
        download(uri, local)
        if len(arrivals) == 1:
            local.write_bytes(torn)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "download", damaged_once)
        assert use(cache, corpus, record) == whole
    assert len(arrivals) == 2

    path = Path(uri_of(corpus, other))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    asked = count_downloads(monkeypatch)
    with pytest.raises(ValueError, match=rf"{other.path} does not match its checksum"):
        use(cache, corpus, other)
    assert len(asked) == 2
    assert cached(tmp_path / "cache") == names(record)


@pytest.mark.parametrize("change", ["written", "cut", "gone"])
def test_a_cached_shard_that_changes_is_fetched_again(
    corpus: Corpus, tmp_path: Path, change: str
) -> None:
    cache, record = ShardCache(tmp_path / "cache"), corpus.shards[0]
    whole = use(cache, corpus, record)
    local = tmp_path / "cache" / f"{record.sha256}.tar"
    if change == "gone":
        local.unlink()
    else:
        local.write_bytes(whole[:-1] + b"x" if change == "written" else whole[:-512])
    assert use(cache, corpus, record) == whole


def test_what_killed_processes_left_does_not_take_room_for_ever(
    corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    a, b = corpus.shards[:2]
    cache = ShardCache(folder, a.bytes)
    for name in (f".{a.sha256}.part", f"..{a.sha256}.part.x7", f".{b.sha256}.part"):
        (folder / name).write_bytes(bytes(a.bytes))
    (folder / f".{a.sha256}.lock").touch()
    assert len(use(cache, corpus, b)) == b.bytes
    assert {n for n in cached(folder) if "lock" not in n} == names(b)


def test_two_processes_fill_one_cache(corpus: Corpus, tmp_path: Path) -> None:
    limit = 3 * max(record.bytes for record in corpus.shards)
    code = f"""
import hashlib, json, os, random, sys, time
from pathlib import Path
from infra import storage
from infra.corpus import Corpus
from infra.shard_cache import ShardCache
corpus, cache = Corpus.open({corpus.uri!r}), ShardCache(Path({str(tmp_path / "cache")!r}), {limit})
asked, largest, order = [], 0, random.Random(int(sys.argv[1]))
download = storage.download
def watched(uri, local):
    asked.append(uri)
    download(uri, local)
storage.download = watched
for turn in range(60):
    record = order.choice(corpus.shards)
    with cache.reading(f"{{corpus.uri}}/{{record.path}}", record) as descriptor:
        data = os.pread(descriptor, record.bytes + 1, 0)
        assert hashlib.sha256(data).hexdigest() == record.sha256
        used = 0
        for path in cache.folder.glob("*.tar"):
            try:
                used += path.stat().st_size
            except FileNotFoundError:
                pass
        largest = max(largest, used)
print(json.dumps([len(asked), largest]))
"""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for seed in range(2)
    ]
    answers = [json.loads(run.communicate(timeout=120)[0]) for run in runs]
    assert all(run.returncode == 0 for run in runs)
    # A listing is no moment: between two looks the other process may exchange one shard.
    most = limit + limit // 3
    assert all(fetched >= 1 and largest <= most for fetched, largest in answers), answers
    left = cached(tmp_path / "cache")
    assert left <= names(*corpus.shards) and 1 <= len(left) <= 3


def test_many_who_want_one_shard_fetch_it_once(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_downloads(monkeypatch)
    record = corpus.shards[0]

    def wanted(_: int) -> bytes:
        return use(ShardCache(tmp_path / "cache"), corpus, record)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(wanted, range(16)))) == 1
    assert len(asked) == 1


def test_a_record_of_another_size_is_never_taken_from_the_cache(
    corpus: Corpus, tmp_path: Path
) -> None:
    cache, record = ShardCache(tmp_path / "cache"), corpus.shards[0]
    use(cache, corpus, record)
    with pytest.raises(ValueError, match="does not match its checksum"):
        use(cache, corpus, replace(record, bytes=record.bytes + 512))
