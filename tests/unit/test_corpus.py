"""The corpus format: same samples same bytes, one commit point, and damage is told by name."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import webdataset

from infra import storage
from infra.commit import build_manifest, check_free, commit, refused_table, standing_shards
from infra.corpus import Corpus, Refused, Sample, write_shard
from tests.made_corpus import write_made_corpus

LONG_KEY = "k" * 100


def sample(key: str = "a", **members: bytes) -> Sample:
    named = {name.replace("_", "."): data for name, data in members.items()}
    meta = {"key": key, "scene": f"scene-{key}", "classes": ["bell"], "frames": 1}
    return Sample(
        key=key, members=named or {"frame0.png": b"picture", "audio.wav": b"sound"}, meta=meta
    )


def write(folder: Path, samples: list[Sample | Refused], *, plan: str = "plan") -> str:
    """A committed corpus with one shard."""
    uri = str(folder)
    record, refused = write_shard(uri, "train", 0, samples, plan=plan)
    manifest = build_manifest(**manifest_of(), shards=[record], refused=refused)
    commit(uri, manifest, {"refused.parquet": refused_table(refused)})
    return uri


def manifest_of(**other: Any) -> dict[str, Any]:
    values = {"recipe": {"size": 64}, "seed": 0, "sources": {"made": "1"}, **other}
    return {"kind": "made", "licences": ["CC0-1.0"], **values}


def standing(uri: str, split: str = "train", number: int = 0, *, plan: str) -> Any:
    """What a rerun finds of one shard."""
    return standing_shards(uri, {(split, number): plan}).get((split, number))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_bytes_are_a_function_of_the_samples_alone(tmp_path: Path) -> None:
    def generated() -> Iterator[Sample]:
        for key in ("b", "a", LONG_KEY):
            # The order in which members were put together does not matter either.
            yield sample(key, audio_wav=b"s" * 700, frame0_png=b"p" * 513)

    def listed() -> Iterator[Sample]:
        for key in ("b", "a", LONG_KEY):
            yield sample(key, frame0_png=b"p" * 513, audio_wav=b"s" * 700)

    records = [
        write_shard(str(tmp_path / name), "train", 0, samples, plan="p")
        for name, samples in (("one", generated()), ("two", listed()))
    ]
    assert records[0] == records[1]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert sorted(files(tmp_path / "one")) == [
        f"shards/train-00000.{kind}" for kind in ("json", "parquet", "tar")
    ]


def test_offsets_point_at_the_members_in_a_plain_tar(tmp_path: Path) -> None:
    uri = write(tmp_path, [sample("a", frame0_png=b"x" * 1000), sample(LONG_KEY)])
    data = (tmp_path / "shards/train-00000.tar").read_bytes()
    with tarfile.open(tmp_path / "shards/train-00000.tar") as tar:
        by_name = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        infos = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in infos} == {(0, 0, 0, "", 0o644)}
    placed = 0
    for row in Corpus.open(uri).table("train").to_pylist():
        for member in row["members"]:
            part = data[member["offset"] : member["offset"] + member["size"]]
            assert part == by_name[f"{row['key']}.{member['name']}"]
            placed += 1
    assert placed == len(by_name) == 5
    assert len(data) % tarfile.RECORDSIZE == 0 and data.endswith(bytes(1024))


def test_any_webdataset_reader_sees_the_same_samples(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 5}, frames=2, shard_samples=8)
    reader = webdataset.WebDataset(
        str(tmp_path / "shards/train-00000.tar"), shardshuffle=False, nodesplitter=None
    )
    seen = list(reader)
    assert len(seen) == len(corpus.table("train")) == 5
    for row, theirs in enumerate(seen):
        ours = corpus.read("train", row)
        assert theirs["__key__"] == ours.key
        members = {name: data for name, data in theirs.items() if not name.startswith("__")}
        assert json.loads(members.pop("json")) == ours.meta
        assert members == ours.members


def test_a_hundred_letter_key_survives_a_webdataset_reader(tmp_path: Path) -> None:
    write(tmp_path, [sample(LONG_KEY), sample("k" * 99 + "j")])
    reader = webdataset.WebDataset(
        str(tmp_path / "shards/train-00000.tar"), shardshuffle=False, nodesplitter=None
    )
    assert [s["__key__"] for s in reader] == [LONG_KEY, "k" * 99 + "j"]


def test_single_members_can_be_read(tmp_path: Path) -> None:
    corpus = Corpus.open(write(tmp_path, [sample("a"), sample("b", audio_flac=b"other")]))
    read = corpus.read("train", 0, names=["audio.wav"])
    assert read.members == {"audio.wav": b"sound"} and read.meta["scene"] == "scene-a"
    assert corpus.read("train", 1).members == {"audio.flac": b"other"}
    assert corpus.table("train")["shard"].to_pylist() == ["shards/train-00000.tar"] * 2
    assert corpus.table("train")["classes"].to_pylist() == [["bell"]] * 2


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "ü", "a b", "k" * 101, "a\n"])
def test_a_key_outside_the_format_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="no corpus key"):
        write(tmp_path, [sample(key)])
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["frame.png", "frame0.gif", "mask0.jpg", "audio.mp3", "json", "x.pkl", "../frame0.png"]
)
def test_a_member_name_outside_the_format_is_refused(tmp_path: Path, name: str) -> None:
    wrong = Sample(key="a", members={name: b""}, meta=sample().meta)
    with pytest.raises(ValueError, match="no member name"):
        write(tmp_path, [wrong])
    assert files(tmp_path) == {}


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a' is given twice in shards/train-00000\.tar"):
        write(tmp_path, [sample("a"), sample("b"), sample("a")])
    assert files(tmp_path) == {}


def test_what_was_refused_on_the_way_is_kept_with_its_reason(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    torn = Refused(id="clip-2", source="made", reason="unreadable: cut short")
    uri = write(tmp_path, [sample("a"), torn])
    assert len(Corpus.open(uri).table("train")) == 1
    assert Corpus.open(uri).manifest["refused"] == 1
    found = standing(uri, plan="plan")
    assert found is not None and found[1] == [torn] and found[0].refused == 1
    assert pq.read_table(tmp_path / "refused.parquet").to_pylist() == [asdict(torn)]


def test_a_corpus_that_was_not_committed_does_not_open(tmp_path: Path) -> None:
    write_shard(str(tmp_path), "train", 0, [sample()], plan="p")
    with pytest.raises(FileNotFoundError, match=r"no corpus stands at .*corpus\.json is missing"):
        Corpus.open(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_a_torn_manifest_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    uri = write(tmp_path, [sample()])
    path = tmp_path / "corpus.json"
    path.write_bytes(path.read_bytes()[:keep].rstrip())
    with_garbage = [path.read_bytes().rstrip(b"}"), b"\xff\x00garbage", b"[]", b"{}", b'"text"']
    for data in with_garbage:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"corpus\.json is damaged"):
            Corpus.open(uri)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../../etc/passwd"},
        {"path": "/etc/passwd"},
        {"path": "shards/../../x.tar"},
        {"sha256": "../../../escape"},
        {"unknown": 1},
    ],
)
def test_a_manifest_cannot_lead_out_of_the_corpus_or_the_cache(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    uri = write(tmp_path, [sample()])
    manifest = json.loads((tmp_path / "corpus.json").read_bytes())
    manifest["shards"][0].update(change)
    commit(uri, manifest)
    with pytest.raises(ValueError, match=r"corpus\.json .*damaged"):
        Corpus.open(uri)


def test_a_corpus_of_another_format_version_is_told_so(tmp_path: Path) -> None:
    uri = write(tmp_path, [sample()])
    manifest = json.loads((tmp_path / "corpus.json").read_bytes())
    commit(uri, {**manifest, "format_version": 99})
    with pytest.raises(ValueError, match="has corpus format 99, this reads 2"):
        Corpus.open(uri)


def test_a_torn_tar_or_index_is_refused_by_name(tmp_path: Path) -> None:
    uri = write(tmp_path, [sample()])
    tar, index = (tmp_path / f"shards/train-00000.{kind}" for kind in ("tar", "parquet"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    with pytest.raises(ValueError, match=r"train-00000\.tar is missing or cut short"):
        Corpus.open(uri).read("train", 0)
    tar.unlink()
    with pytest.raises(ValueError, match=r"train-00000\.tar is missing or cut short"):
        Corpus.open(uri).read("train", 0)
    tar.write_bytes(whole)
    assert Corpus.open(uri).read("train", 0).members
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-00000\.parquet does not match its checksum"):
        Corpus.open(uri).table("train")
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00000\.parquet does not exist"):
        Corpus.open(uri).table("train")


def test_only_a_whole_shard_of_the_same_plan_is_reused(tmp_path: Path) -> None:
    uri = str(tmp_path)
    record, _ = write_shard(uri, "train", 0, [sample()], plan="p")
    assert standing(uri, "train", 0, plan="p") == (record, [])
    assert standing(uri, "train", 0, plan="other") is None
    assert standing(uri, "train", 1, plan="p") is None
    assert standing(uri, "val", 0, plan="p") is None
    kept = files(tmp_path)
    for name, data in kept.items():
        for torn in (data[:-2], b"", b"\xff\xfe\x00"):
            (tmp_path / name).write_bytes(torn)
            assert standing(uri, "train", 0, plan="p") is None, (name, torn[:9])
        (tmp_path / name).unlink()
        assert standing(uri, "train", 0, plan="p") is None, name
        (tmp_path / name).write_bytes(data)
    assert standing(uri, "train", 0, plan="p") == (record, [])


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_shard_that_dies_while_it_is_made_anew_does_not_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    uri = str(tmp_path)
    torn = Refused(id="clip-2", source="made", reason="unreadable: cut short")
    old, _ = write_shard(uri, "train", 0, [sample(frame0_png=b"old"), torn], plan="p")
    left = [written]

    def mortal(write: Callable[..., None]) -> Callable[..., None]:
        def write_or_die(*what: Any) -> None:
            if not left[0]:
                raise ConnectionError("the storage is gone")
            left[0] -= 1
            write(*what)

        return write_or_die

    for name in ("upload", "write_bytes"):
        monkeypatch.setattr(storage, name, mortal(getattr(storage, name)))
    anew = [sample(frame0_png=b"new")]
    if written < 3:
        with pytest.raises(ConnectionError):
            write_shard(uri, "train", 0, anew, plan="p", anew=True)
        # Padded, the old tar and the new one have the same size.
        assert (tmp_path / old.path).stat().st_size == old.bytes
        assert standing(uri, plan="p") is None
    else:
        new, _ = write_shard(uri, "train", 0, anew, plan="p", anew=True)
        assert new.bytes == old.bytes and new.sha256 != old.sha256
        assert standing(uri, plan="p") == (new, [])


def test_a_committed_corpus_is_resumed_without_reading_a_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path)
    torn = Refused(id="clip-2", source="made", reason="unreadable: cut short")
    made = [
        write_shard(uri, "train", number, [sample(f"s{number}"), *more], plan=f"p{number}")
        for number, more in enumerate(([], [torn], []))
    ]
    plans = {("train", number): f"p{number}" for number in range(3)}
    everything = {shard: made[shard[1]] for shard in plans}
    asked: list[str] = []
    read_many = storage.read_many

    def watched(uris: Sequence[str], **more: Any) -> Iterator[bytes | None]:
        asked.extend(uri.rsplit("/", 1)[-1] for uri in uris)
        return read_many(uris, **more)

    monkeypatch.setattr(storage, "read_many", watched)
    assert standing_shards(uri, plans) == everything
    assert asked == [f"train-0000{number}.json" for number in range(3)]

    asked.clear()
    refused = [row for _, rows in made for row in rows]
    commit(uri, build_manifest(**manifest_of(), shards=[r for r, _ in made], refused=refused))
    assert standing_shards(uri, plans) == everything
    # Only the one that knows what was refused.
    assert asked == ["train-00001.json"]

    (tmp_path / "shards/train-00000.json").unlink()
    (tmp_path / "shards/train-00002.parquet").write_bytes(b"torn")
    assert standing_shards(uri, plans) == {("train", 1): made[1]}
    assert standing_shards(uri, {("train", 1): "other"}) == {}


def test_the_index_tells_mask_area_and_loudness_where_samples_do(tmp_path: Path) -> None:
    told = replace(sample("a"), meta={**sample("a").meta, "mask_area": 0.25, "loudness_db": -20.0})
    table = Corpus.open(write(tmp_path, [told, sample("b")])).table("train")
    assert table["mask_area"].to_pylist() == [0.25, None]
    assert table["loudness_db"].to_pylist() == [-20.0, None]
    assert {str(table.schema.field(n).type) for n in ("mask_area", "loudness_db")} == {"double"}


@pytest.mark.parametrize("part", ["recipe", "seed", "sources"])
def test_another_corpus_is_not_written_over(tmp_path: Path, part: str) -> None:
    uri = write(tmp_path, [sample()])
    ours = {"recipe": {"size": 64}, "seed": 0, "sources": {"made": "1"}}
    check_free(uri, **ours)  # type: ignore[arg-type]
    check_free(str(tmp_path / "elsewhere"), **ours)  # type: ignore[arg-type]
    other = {"recipe": {"size": 32}, "seed": 1, "sources": {"made": "2"}}[part]
    says = "made" if part == "sources" else part
    with pytest.raises(ValueError, match=rf"another corpus stands at .*\(its {says} differs\)"):
        check_free(uri, **{**ours, part: other})  # type: ignore[arg-type]


def test_an_unknown_split_is_named_beside_those_there_are(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 2, "val": 2})
    assert corpus.splits == ["train", "val"]
    with pytest.raises(ValueError, match="no split 'trian', only train, val"):
        corpus.table("trian")


def test_an_open_corpus_travels_to_other_processes(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 3})
    first = corpus.read("train", 2)
    again = pickle.loads(pickle.dumps(corpus))
    assert again.read("train", 2) == first and again.sha256 == corpus.sha256


def test_more_shards_than_files_a_process_may_open_can_be_read(tmp_path: Path) -> None:
    import resource

    corpus = write_made_corpus(str(tmp_path), samples={"train": 40}, size=16, shard_samples=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 16, hard))
    try:
        assert len({corpus.read("train", row).key for row in range(40)}) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_manifest_counts_what_the_shards_hold(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 10, "val": 4}, shard_samples=4)
    manifest = corpus.manifest
    assert [s["path"] for s in manifest["shards"]] == sorted(s["path"] for s in manifest["shards"])
    for split, rows in (("train", 10), ("val", 4)):
        counts = manifest["splits"][split]
        assert counts["samples"] == rows == len(corpus.table(split))
        sounding = [c for row in corpus.table(split)["classes"].to_pylist() for c in row]
        assert counts["classes"] == {c: sounding.count(c) for c in set(sounding)}
        sizes = [s["bytes"] for s in manifest["shards"] if s["split"] == split]
        assert counts["bytes"] == sum(sizes)
