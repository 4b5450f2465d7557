"""The last steps of a job: nothing is written once it must not be, and all is accounted for."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra import media, retrying
from infra.config import canonical_json
from infra.corpus import Corpus, Refused, Sample, write_shard
from synth.distribute import Written
from synth.publish import publish
from tests.made_media import background, tone


def written(uri: str) -> Written:
    """A shard of one sample, as if two workers had made it."""
    members = {
        "frame0.png": media.encode_png(background(0)),
        "mask0.png": media.encode_png(
            np.where(background(0)[..., 0] > 128, 255, 0).astype(np.uint8)
        ),
        "audio.wav": media.encode_wav(tone(440.0, seconds=1.0)),
    }
    meta = {"scene": "a", "classes": ["bell"], "frames": 1}
    sample = Sample(key="a", members=members, meta=meta)
    record, refused = write_shard(uri, "train", 0, [sample], plan="p")
    return Written(
        records=[record],
        refused=refused,
        made=1,
        samples=1,
        bytes=3_400_000,
        retries=2,
        seconds=0.5,
        timings={"decode": 0.25, "compose": 0.15, "encode": 0.4, "write": 0.05},
    )


def published(uri: str, what: Written, **more: Any) -> dict[str, Any]:
    refused = [Refused(id="b", source="made", reason="silent: rms 0")]
    return publish(
        uri,
        what,
        kind="made",
        seed=0,
        recipe={},
        sources={},
        licences=[],
        notes=[],
        refused=refused,
        **more,
    )


def test_the_log_and_the_summary_say_what_was_made_and_where_the_time_went(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def stumbling() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionResetError("once")

    def before_commit() -> None:
        retrying.retrying(stumbling, what="the lease")

    uri = str(tmp_path)
    what = written(uri)
    with caplog.at_level(logging.INFO):
        told = published(uri, what, before_commit=before_commit, earlier_retries=4)
    assert (told["samples_made"], told["samples_per_second"]) == (1, 2.0)
    assert told["bytes_made"] == what.bytes and told["refused"] == 1
    assert told["stage_seconds"] == what.timings
    # Those before the shards, those of writing them, and the one of publishing.
    assert told["retries"] == 4 + 2 + 1
    (line,) = [r.getMessage() for r in caplog.records if r.name == "synth.publish"]
    assert "1 samples in 1 shards made in 0.5 s (2.0 a second, 3.4 MB)" in line
    assert "1 inputs refused, 7 requests sent again" in line
    assert line.endswith("decode 0.25, compose 0.15, encode 0.40, write 0.05")

    nothing = replace(what, made=0, samples=0, bytes=0, timings={})
    with caplog.at_level(logging.INFO):
        published(uri, nothing)
    assert caplog.records[-1].getMessage().endswith("all workers together: none")


@pytest.mark.parametrize("lost_after", [0, 1, 2, 3])
def test_a_job_that_must_not_write_any_more_writes_nothing(tmp_path: Path, lost_after: int) -> None:
    checks = []

    def check() -> None:
        checks.append(1)
        if len(checks) > lost_after:
            raise ValueError("the lease was lost")

    uri = str(tmp_path)
    what = written(uri)
    with pytest.raises(ValueError, match="the lease was lost"):
        published(uri, what, before_commit=check)
    there = ["refused.parquet", "index.html", "index"][:lost_after]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["shards", *there])


def test_what_stands_is_not_written_again(tmp_path: Path) -> None:
    uri = str(tmp_path)
    what = written(uri)
    first = published(uri, what)
    stand = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    nothing = replace(what, made=0, samples=0, bytes=0, timings={})

    def no_more() -> None:
        raise AssertionError("nothing is to be written")

    again = published(uri, nothing, before_commit=no_more)
    assert again["manifest_sha256"] == first["manifest_sha256"]
    assert stand == {path: path.stat().st_mtime_ns for path in stand}
    for name in ("index.html", "refused.parquet", "index/train.parquet"):
        for damage in (b"", None):
            whole = (tmp_path / name).read_bytes()
            (tmp_path / name).unlink()
            if damage is not None:
                (tmp_path / name).write_bytes(damage)
            published(uri, nothing)
            assert (tmp_path / name).read_bytes() == whole


def test_what_a_job_that_died_has_left_is_put_right(tmp_path: Path) -> None:
    uri = str(tmp_path)
    what = written(uri)
    published(uri, what)
    stood = contents(tmp_path)
    nothing = replace(what, made=0, samples=0, bytes=0, timings={})
    more = replace(nothing, refused=[Refused(id="c", source="made", reason="silent: rms 0")])
    for dies_at in range(4):
        checks = []

        def die(dies_at: int = dies_at, checks: list[int] = checks) -> None:
            checks.append(1)
            if len(checks) > dies_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            published(uri, more, about={"usage": {}}, before_commit=die)
        assert (contents(tmp_path) != stood) == (dies_at > 0)
        published(uri, nothing)
        assert contents(tmp_path) == stood


def test_what_a_manifest_says_of_its_files_is_not_trusted_blindly(tmp_path: Path) -> None:
    uri = str(tmp_path)
    what = written(uri)
    first = published(uri, what)
    stood = contents(tmp_path)
    told = Corpus.open(uri).manifest
    nothing = replace(what, made=0, samples=0, bytes=0, timings={})
    for files in ({name: None for name in told["files"]}, {name: {} for name in told["files"]}, {}):
        (tmp_path / "corpus.json").write_bytes(canonical_json({**told, "files": files}))
        assert published(uri, nothing)["manifest_sha256"] == first["manifest_sha256"]
        assert contents(tmp_path) == stood


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_was_committed_otherwise_is_committed_anew(tmp_path: Path) -> None:
    uri = str(tmp_path)
    what = written(uri)
    published(uri, what)
    nothing = replace(what, made=0, samples=0, bytes=0, timings={})
    published(uri, nothing, about={"usage": {"made": {"objects": 1}}})
    assert Corpus.open(uri).manifest["usage"] == {"made": {"objects": 1}}
