"""Index and tar that must agree: what a member may be, and where each lies."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra import storage
from infra.commit import commit
from infra.corpus import Corpus
from infra.member_index import MAX_MEMBER, check_header, check_index
from tests.made_corpus import write_made_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Six small shards."""
    told = {"samples": {"train": 12}, "size": 32, "shard_samples": 2}
    return write_made_corpus(str(tmp_path / "corpus"), **told)


HEADERS: dict[str, dict[str, Any]] = {
    "another file": {"name": "../../etc/passwd"},
    "an absolute path": {"name": "/made-train-00000.frame0.png"},
    "a symbolic link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "a hard link": {"type": tarfile.LNKTYPE, "linkname": "other"},
    "a device": {"type": tarfile.CHRTYPE},
    "a folder": {"type": tarfile.DIRTYPE},
    "another size": {"size": 1 << 40},
}


def test_a_member_with_a_path_in_front_of_its_name_is_refused(corpus: Corpus) -> None:
    key, members = corpus.index("train").find(0)
    info = tarfile.TarInfo(f"{key}.{members[0].name}")
    info.size = members[0].size
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    check_header(bytes(header), key, members[0])
    header[345:354] = b"../../etc"
    assert tarfile.TarInfo.frombuf(_summed(header), "utf-8", "strict").name.startswith("../../etc/")
    with pytest.raises(ValueError, match="no regular file"):
        check_header(bytes(header), key, members[0])


def _summed(header: bytearray) -> bytes:
    """With its checksum as it has to be."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("kind", HEADERS)
def test_a_member_whose_header_is_that_of_something_else_is_refused(
    corpus: Corpus, kind: str
) -> None:
    member = next(m for m in corpus.index("train").find(0)[1] if m.name == "frame0.png")
    info = tarfile.TarInfo(f"{corpus.index('train').key(0)}.frame0.png")
    info.size = member.size
    check_header(info.tobuf(tarfile.PAX_FORMAT)[-512:], corpus.index("train").key(0), member)
    for name, value in HEADERS[kind].items():
        setattr(info, name, value)
    path = Path(corpus.uri) / corpus.shards[0].path
    with path.open("r+b") as file:
        file.seek(member.start)
        file.write(info.tobuf(tarfile.PAX_FORMAT)[-512:])
    with pytest.raises(
        ValueError, match=r"train-00000\.tar does not match its checksum: .*no regular"
    ):
        corpus.read("train", 0, names=["frame0.png"])
    assert corpus.read("train", 0, names=["mask0.png"]).members
    with pytest.raises(ValueError, match=r"train-00000\.tar does not match its checksum"):
        corpus.view("train", 0)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 0}, {"offset": -512}, {"offset": 1 << 50}, {"size": -1}, {"size": 1 << 50},
        {"size": MAX_MEMBER + 1}, {"name": "../x"}, {"name": "/x"}, {"name": ""},
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_its_tar_is_refused(
    corpus: Corpus, change: dict[str, Any]
) -> None:
    table = corpus.table("train")
    first_K, bytes_K = places(corpus)
    check_index(table, first_K, bytes_K)
    for row in (0, 1, len(table) - 1):
        rows = table.to_pylist()
        rows[row]["members"][1].update(change)
        with pytest.raises(ValueError, match="do not fill the tar"):
            check_index(pa.Table.from_pylist(rows, table.schema), first_K, bytes_K)


def test_an_index_of_other_samples_or_another_tar_is_refused(corpus: Corpus) -> None:
    table = corpus.table("train")
    first_K, bytes_K = places(corpus)
    assert len(bytes_K) > 1
    for shard in range(len(bytes_K)):
        longer_K = bytes_K.copy()
        longer_K[shard] += 20_480
        with pytest.raises(ValueError, match="do not fill the tar"):
            check_index(table, first_K, longer_K)
    for shard in range(1, len(bytes_K)):
        shifted_K = first_K.copy()
        shifted_K[shard] -= 1
        with pytest.raises(ValueError, match="do not fill the tar"):
            check_index(table, shifted_K, bytes_K)
    with pytest.raises(ValueError, match="no table of members"):
        check_index(table.drop_columns(["members"]), first_K, bytes_K)


@pytest.mark.parametrize("name", ["key", "classes", "frames", "members"])
def test_an_index_that_leaves_something_out_is_refused(corpus: Corpus, name: str) -> None:
    table = corpus.table("train")
    rows = table.to_pylist()
    rows[1][name] = None
    with pytest.raises(ValueError, match=r"do not fill|no table"):
        check_index(pa.Table.from_pylist(rows, table.schema), *places(corpus))
    rows = table.to_pylist()
    rows.insert(1, {**rows[1], "members": []})
    first_K, bytes_K = places(corpus)
    with pytest.raises(ValueError, match="do not fill the tar"):
        check_index(pa.Table.from_pylist(rows, table.schema), [0, *(first_K[1:] + 1)], bytes_K)


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_shard_without_samples_has_its_place_in_an_index(corpus: Corpus, number: int) -> None:
    first_K, bytes_K = places(corpus)
    first_K = np.insert(first_K, number, first_K[number])
    empty = tarfile.RECORDSIZE
    check_index(corpus.table("train"), first_K, np.insert(bytes_K, number, empty))
    with pytest.raises(ValueError, match="do not fill the tar"):
        check_index(corpus.table("train"), first_K, np.insert(bytes_K, number, 2 * empty))


def places(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each shard of the training split, and the end; the bytes of their tars."""
    records = [record for record in corpus.shards if record.split == "train"]
    first = np.cumsum([0, *(record.samples for record in records)])
    return first, np.array([record.bytes for record in records])


def test_a_long_key_is_checked_in_its_own_block(tmp_path: Path) -> None:
    from tests.unit.test_corpus import LONG_KEY, sample, write

    corpus = Corpus.open(write(tmp_path, [sample(LONG_KEY), sample("b")]))
    assert corpus.read("train", 0).members["audio.wav"] == b"sound"
    path = tmp_path / "shards/train-00000.tar"
    path.write_bytes(path.read_bytes().replace(b".audio.wav\n", b".audio.wax\n"))
    with pytest.raises(ValueError, match=r"no regular file k+\.audio\.wav"):
        Corpus.open(corpus.uri).read("train", 0)


def test_an_index_and_a_manifest_that_agree_are_still_checked(corpus: Corpus) -> None:
    manifest = json.loads(storage.read_bytes(f"{corpus.uri}/corpus.json"))
    manifest["shards"][0]["bytes"] += 20_480
    commit(corpus.uri, manifest)
    with pytest.raises(ValueError, match=r"train-00000\.parquet does not fit its tar"):
        Corpus.open(corpus.uri).table("train")
