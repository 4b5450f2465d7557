"""Paths, ``file://`` and ``s3://`` mean one thing each, and writes are whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import aiohttp
import botocore.exceptions
import pytest
import s3fs.errors

from infra import retrying, storage


def test_a_path_and_its_file_uri_are_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a/b") == f"{tmp_path}/a/b"
    assert storage.normalise(f"file://{tmp_path}/a") == storage.normalise(tmp_path / "a")
    assert storage.normalise("s3://bucket/a/") == "s3://bucket/a"
    storage.write_bytes(f"file://{tmp_path}/x", b"1")
    assert storage.read_bytes("x") == b"1"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/x", "'gs://bucket/x' is no URI this can read"),
        ("https://host/x", "'https://host/x' is no URI this can read"),
        ("s3://", "'s3://' names no bucket"),
        ("", "an empty path"),
    ],
)
def test_a_wrong_uri_is_refused_by_name(uri: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        storage.read_bytes(uri)


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_no_name_leads_out_of_its_folder(tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        storage.join(tmp_path, part)
    assert storage.join(tmp_path, "a", "b..c/d") == f"{tmp_path}/a/b..c/d"


def test_what_is_written_is_read_back_whole_or_in_part(tmp_path: Path) -> None:
    uri = f"{tmp_path}/deep/in/file"
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_range(uri, 3, 4) == b"3456"
    assert storage.size(uri) == 10
    storage.download(uri, tmp_path / "copy" / "file")
    storage.upload(tmp_path / "copy" / "file", f"{tmp_path}/again")
    assert storage.read_bytes(f"{tmp_path}/again") == b"0123456789"
    storage.remove(uri)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_reading_is_bounded_and_a_short_file_is_told(tmp_path: Path) -> None:
    uri = f"{tmp_path}/file"
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri, limit=10)
    with pytest.raises(ValueError, match="larger than the 9 bytes"):
        storage.read_bytes(uri, limit=9)
    with pytest.raises(ValueError, match="ends after 10 bytes where 12 are needed"):
        storage.read_range(uri, 8, 4)


def test_a_write_that_dies_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{tmp_path}/file"
    storage.write_bytes(uri, b"old")

    def die(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(tmp_path) == [uri]
    assert len(list(tmp_path.iterdir())) == 1


def test_listing_is_sorted_deep_and_leaves_files_being_written_out(tmp_path: Path) -> None:
    for name in ("b.tar", "a/c.tar", "a/d.json", ".half.tar"):
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    assert storage.list_files(tmp_path, ".tar") == [f"{tmp_path}/a/c.tar", f"{tmp_path}/b.tar"]
    assert storage.list_files(tmp_path / "nowhere") == []


def test_a_walk_finds_at_any_depth_what_is_no_file_being_written(tmp_path: Path) -> None:
    for name in ("b.tar", "a/c.tar", "a/b/d.json", ".half.tar", "a/.half"):
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    assert sorted(storage.iter_files(tmp_path)) == ["a/b/d.json", "a/c.tar", "b.tar"]
    assert list(storage.iter_files(tmp_path / "nowhere")) == []


def test_an_object_is_read_from_front_to_back_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 1000
    storage.write_bytes(tmp_path / "file", data)
    monkeypatch.setattr(storage, "_PIECE", 70_001)
    asked: list[int] = []
    read_range = storage.read_range

    def noted(uri: str, offset: int, size: int) -> bytes:
        asked.append(offset)
        return read_range(uri, offset, size)

    monkeypatch.setattr(storage, "read_range", noted)
    with storage.open_read(tmp_path / "file") as file:
        read = iter(lambda: file.read(99_999), b"")
        assert next(read) == data[:99_999] and asked == [0, 70_001]
        assert b"".join(read) == data[99_999:]
    assert asked == [0, 70_001, 140_002, 210_003]


def test_what_is_missing_or_not_a_file_is_one_sentence_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    reads: list[Callable[[str], object]] = [
        *(storage.read_bytes, storage.size, storage.open_read),
    ]
    for read in reads:
        with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
            read(f"{tmp_path}/nowhere")
        with pytest.raises(ValueError, match="cannot be used: a folder stands"):
            read(str(tmp_path))
    with pytest.raises(ValueError, match="file/below cannot be used"):
        storage.write_bytes(f"{tmp_path}/file/below", b"1")


def test_what_is_listed_has_its_size(tmp_path: Path) -> None:
    for name, data in {"b.tar": b"12", "a/c.tar": b"", "a/d.json": b"1", ".half.tar": b""}.items():
        storage.write_bytes(f"{tmp_path}/{name}", data)
    assert storage.list_sizes(tmp_path) == {"a/c.tar": 0, "a/d.json": 1, "b.tar": 2}
    assert storage.list_sizes(tmp_path, ".json") == {"a/d.json": 1}
    assert storage.list_files(f"{tmp_path}/b.tar") == [f"{tmp_path}/b.tar"]


def test_many_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    for number in range(40):
        storage.write_bytes(f"{tmp_path}/{number}", str(number).encode())
    asked = [f"{tmp_path}/{number}" for number in (*range(39, -1, -1), 99)]
    read = list(storage.read_many(asked))
    assert read == [*(str(number).encode() for number in range(39, -1, -1)), None]


def test_an_object_is_created_once_and_replaced_only_as_it_was_read(tmp_path: Path) -> None:
    uri = f"{tmp_path}/deep/one"
    assert storage.read_stored(uri) is None
    first = storage.create(uri, b"a")
    assert first and storage.create(uri, b"b") is None
    stored = storage.read_stored(uri)
    assert stored is not None and (stored.data, stored.etag) == (b"a", first)
    assert 0 <= stored.age < 60
    second = storage.replace_if(uri, b"c", first)
    assert second and second != first
    assert storage.replace_if(uri, b"d", first) is None
    assert storage.replace_if(f"{tmp_path}/nowhere", b"d", first) is None
    assert storage.read_bytes(uri) == b"c"
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["one"]


def test_of_many_that_create_or_replace_at_once_one_succeeds(tmp_path: Path) -> None:
    names = [f"writer-{number}".encode() for number in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        for turn in range(10):
            uri = f"{tmp_path}/{turn}"
            tags = list(pool.map(lambda name: storage.create(uri, name), names))  # noqa: B023
            won = [tag for tag in tags if tag]
            assert len(won) == 1
            assert storage.read_bytes(uri) == names[tags.index(won[0])]
            again = list(
                pool.map(lambda name: storage.replace_if(uri, name + b"!", won[0]), names)  # noqa: B023
            )
            assert sum(tag is not None for tag in again) == 1


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited for; nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", waited.append)
    return waited


class Stumbling:
    """An S3 that fails as told, and then answers."""

    protocol = ("s3",)
    retries = 1

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked = 0

    def exists(self, path: str) -> bool:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return True


def answer(status: int, code: str) -> Exception:
    """What s3fs raises for an answer of the server."""
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = botocore.exceptions.ClientError(response, "HeadObject")
    return s3fs.errors.translate_boto_error(error)


@pytest.mark.parametrize(
    "failure",
    [
        answer(500, "InternalError"),
        answer(503, "SlowDown"),
        answer(503, "503"),
        answer(502, "502"),
        answer(429, "TooManyRequests"),
        answer(400, "RequestTimeout"),
        answer(404, "NoSuchUpload"),
        answer(409, "ConditionalRequestConflict"),
        ConnectionResetError("reset"),
        TimeoutError(),
        aiohttp.ClientPayloadError("the body broke"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://slow"),
        botocore.exceptions.ConnectTimeoutError(endpoint_url="http://slow"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://gone"),
        botocore.exceptions.ConnectionClosedError(endpoint_url="http://closed"),
        botocore.exceptions.ResponseStreamingError(error="cut"),
    ],
    ids=lambda error: f"{type(error).__name__} {getattr(error.__cause__, 'response', '')}"[:60],
)
def test_what_may_pass_is_asked_again_and_counted(
    failure: Exception, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Stumbling(failure, failure)
    monkeypatch.setattr(storage.s3, "connect", lambda: store)
    before = storage.retries()
    assert storage.exists("s3://bucket/x")
    assert store.asked == 3 and storage.retries() == before + 2
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (answer(404, "NoSuchKey"), FileNotFoundError),
        (answer(404, "404"), FileNotFoundError),
        (answer(403, "AccessDenied"), PermissionError),
        (answer(403, "SignatureDoesNotMatch"), PermissionError),
        (answer(501, "NotImplemented"), OSError),
        (botocore.exceptions.NoCredentialsError(), ConnectionError),
    ],
    ids=["key", "head", "access", "signature", "not implemented", "no keys"],
)
def test_what_cannot_pass_is_told_at_once(
    failure: Exception,
    kind: type[Exception],
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Stumbling(failure)
    monkeypatch.setattr(storage.s3, "connect", lambda: store)
    with pytest.raises(kind):
        storage.exists("s3://bucket/x")
    assert store.asked == 1 and waits == []


def test_a_store_that_does_not_answer_is_one_sentence(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = botocore.exceptions.EndpointConnectionError(endpoint_url="http://gone")
    store = Stumbling(*[gone] * 99)
    monkeypatch.setattr(storage.s3, "connect", lambda: store)
    with pytest.raises(ConnectionError, match=r"s3://bucket/x cannot be reached.*AWS_ENDPOINT_URL"):
        storage.exists("s3://bucket/x")
    assert store.asked == retrying.ATTEMPTS
    # A server that is restarted is outlived.
    assert 15 < sum(waits) < retrying.PATIENCE
