"""Single objects on a real SeaweedFS that stumbles: whole, written once, nothing left over."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import retrying, storage
from tests.integration.conftest import ObjectStore
from tests.integration.fault_proxy import fault_proxy
from tests.integration.servers import aws_variables, uploads_under_way

pytestmark = pytest.mark.integration


def test_of_two_that_create_or_replace_at_once_one_succeeds(seaweedfs: ObjectStore) -> None:
    uri = f"{seaweedfs.uri}/conditions/one"
    with ThreadPoolExecutor(2) as pool:
        created = list(pool.map(lambda data: storage.create(uri, data), (b"a", b"b")))
        (tag,) = filter(None, created)
        stored = storage.read_stored(uri)
        assert stored is not None and stored.etag == tag and -1 <= stored.age < 60
        replaced = list(pool.map(lambda data: storage.replace_if(uri, data, tag), (b"c", b"d")))
    (newer,) = filter(None, replaced)
    assert newer != tag
    assert storage.read_bytes(uri) == (b"c" if replaced[0] else b"d")
    assert storage.replace_if(uri, b"e", tag) is None
    assert storage.replace_if(f"{uri}/nowhere", b"e", newer) is None
    assert storage.read_stored(f"{uri}/nowhere") is None


@pytest.mark.parametrize("seed", range(3))
def test_large_objects_pass_a_stumbling_store_whole_and_leave_no_parts(
    seaweedfs: ObjectStore, tmp_path: Path, seed: int
) -> None:
    data = random.Random(seed).randbytes(50 << 20)
    (tmp_path / "here").write_bytes(data)
    uri = f"{seaweedfs.uri}/large/{seed}"
    before = storage.retries()
    with (
        fault_proxy(seaweedfs.endpoint, seed=seed, rate=0.3, pause=0.1) as proxy,
        aws_variables({"AWS_ENDPOINT_URL": proxy.endpoint}),
    ):
        storage.upload(tmp_path / "here", uri)
        storage.download(uri, tmp_path / "there")
        storage.write_bytes(f"{uri}-bytes", data)
        assert storage.read_bytes(f"{uri}-bytes") == data
    assert proxy.faults.total() and storage.retries() > before
    assert (tmp_path / "there").read_bytes() == data
    assert storage.size(uri) == len(data)
    assert uploads_under_way(seaweedfs) == []


def test_conditions_hold_on_a_stumbling_store(seaweedfs: ObjectStore) -> None:
    with (
        fault_proxy(seaweedfs.endpoint, seed=1, rate=0.4, pause=0.1) as proxy,
        aws_variables({"AWS_ENDPOINT_URL": proxy.endpoint}),
    ):
        for number in range(10):
            uri = f"{seaweedfs.uri}/conditions/stumbling-{number}"
            tag = storage.create(uri, b"ours")
            assert tag and storage.create(uri, b"theirs") is None
            newer = storage.replace_if(uri, b"ours again", tag)
            assert newer and storage.replace_if(uri, b"theirs", tag) is None
            assert storage.read_bytes(uri) == b"ours again"
    # Some were done and their answers lost.
    assert any(kind.endswith("after") and not kind.startswith("slow") for kind in proxy.faults)


def test_a_store_that_is_too_slow_is_asked_again(
    seaweedfs: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(retrying.S3_CONFIG, "read_timeout", 0.5)
    storage.write_bytes(f"{seaweedfs.uri}/slow", b"data")
    before = storage.retries()
    with (
        fault_proxy(seaweedfs.endpoint, seed=0, rate=1.0, pause=2.0) as proxy,
        aws_variables({"AWS_ENDPOINT_URL": proxy.endpoint}),
    ):
        monkeypatch.setattr(proxy.random, "choice", lambda kinds: "slow")
        monkeypatch.setattr(proxy.random, "random", lambda: 0.0 if proxy.requests < 3 else 1.0)
        assert storage.read_bytes(f"{seaweedfs.uri}/slow") == b"data"
    assert proxy.faults == {"slow after": 2} and storage.retries() == before + 2
