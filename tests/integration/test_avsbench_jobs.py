"""The AVSBench job with real parts: Ray, an S3 server, the command line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.corpus import Corpus
from pipelines import shard_avsbench
from pipelines.shard_avsbench import ShardAvsbenchConfig
from synth import avsbench
from synth.avsbench import files
from tests import made_avsbench as made
from tests.benchmarks import avsbench as skeleton
from tests.integration.conftest import ROOT, ObjectStore

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avsbench")
    made.write_tree(folder, made.small())
    pickled = "Multi-sources/ms3_data/audio_log_mel/train/Fgh-ijk0123.pkl"
    made.write_files(folder, {pickled: made.contents()["pickle"]})
    return folder


def shard(tree: str | Path, subset: str, uri: str | Path, **how: Any) -> dict[str, Any]:
    return shard_avsbench.run(
        ShardAvsbenchConfig(tree=str(tree), subset=subset, uri=str(uri), **how)  # type: ignore[arg-type]
    )


def test_zip_files_on_s3_give_the_bytes_of_folders_on_a_disk(
    tree: Path, seaweedfs: ObjectStore, ray_local: None, tmp_path: Path
) -> None:
    made.pack(tree, tmp_path / "packed.zip", prefix="avsbench_data/")
    packed = f"{seaweedfs.uri}/avsbench/packed.zip"
    storage.upload(tmp_path / "packed.zip", packed)
    for subset in ("ms3", "avss"):
        on_disk = shard(tree, subset, tmp_path / subset)
        on_s3 = shard(packed, subset, f"{seaweedfs.uri}/sharded/{subset}")
        assert on_s3["manifest_sha256"] == on_disk["manifest_sha256"]
    corpus = Corpus.open(str(tmp_path / "avss"))
    assert corpus.manifest["label_classes"][0] == "background"
    assert corpus.table("val")["mask_area"].to_pylist() == [0.375, 0.375]
    assert corpus.table("val")["loudness_db"].to_pylist() == pytest.approx([-15.05] * 2, abs=0.01)


def test_loose_files_on_s3_have_the_content_of_those_on_a_disk(
    tree: Path, seaweedfs: ObjectStore
) -> None:
    folder, uri = tree / "Multi-sources/ms3_data/gt_masks", f"{seaweedfs.uri}/avsbench/loose"
    on_disk = files.read_many(list(files.list_folder(str(folder)).values())[:12])
    for path, data in on_disk.items():
        storage.write_bytes(f"{uri}/{path}", data)
    on_s3 = list(files.list_folder(uri).values())
    assert len(on_s3) == 12 and files.read_many(on_s3) == on_disk
    storage.remove(on_s3[5].uri)
    with pytest.raises(FileNotFoundError, match=on_s3[5].path):
        files.read_many(on_s3)


def test_a_corpus_says_which_splits_it_has_and_its_log_what_was_left_out(
    ray_local: None, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipelines.shard_avsbench"):
        published = shard(tree, "ms3", tmp_path / "published")
    assert avsbench.pickles_note(1) in caplog.messages
    clean = shard(tree, "ms3", tmp_path / "clean", splits="clean")
    assert published["splits"] == {"train": 3, "val": 1, "test": 1}
    assert clean["splits"] == {"train": 2, "val": 1, "test": 1}
    assert clean["refused_by_reason"] == {"leak": 1}
    notes = [Corpus.open(found["uri"]).manifest["notes"][-1] for found in (published, clean)]
    assert notes[0].startswith("Splits as published: 1 of 1 val and 0 of 1 test clips share")
    assert notes[1].startswith("Clean splits: 1 train clips")
    with pytest.raises(ValueError, match="another corpus stands"):
        shard(tree, "ms3", tmp_path / "clean")


def test_a_clip_whose_file_was_fetched_again_is_taken_in_on_request(
    ray_local: None, tmp_path: Path
) -> None:
    made.write_tree(tmp_path / "tree", made.small())
    sound = tmp_path / "tree/Multi-sources/ms3_data/audio_wav/train/Fgh-ijk0123.wav"
    whole = sound.read_bytes()
    made.own_copy(sound, bytes(len(whole)))
    damaged = shard(tmp_path / "tree", "ms3", tmp_path / "corpus")
    assert damaged["refused_by_reason"] == {"unreadable": 1} and damaged["splits"]["train"] == 2
    sound.write_bytes(whole)
    assert shard(tmp_path / "tree", "ms3", tmp_path / "corpus")["splits"]["train"] == 2
    mended = shard(tmp_path / "tree", "ms3", tmp_path / "corpus", retry_refused=True)
    assert mended["refused_by_reason"] == {} and mended["splits"]["train"] == 3
    assert mended["shards_made"] == 1
    assert Corpus.open(str(tmp_path / "corpus")).manifest["refused"] == 0


def test_check_alone_on_the_command_line_reports_and_writes_nothing(tmp_path: Path) -> None:
    made.write_tree(tmp_path, made.small())
    (tmp_path / "Multi-sources/ms3_data/audio_wav/train/Fgh-ijk0123.wav").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    ended = check(tmp_path)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["usable"] == {"train": 2, "val": 1, "test": 1}
    assert summary["refused_by_reason"] == {"sound": 1}
    assert "ms3/train/Fgh-ijk0123  refused: sound: 1 of 1 missing" in ended.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_check_fails_only_where_nothing_can_be_used(tmp_path: Path) -> None:
    made.write_tree(tmp_path, made.small())
    for path in (tmp_path / "Multi-sources/ms3_data/audio_wav").rglob("*.wav"):
        path.unlink()
    made.write_files(tmp_path, {"Multi-sources/ms3_data/audio_wav/other.wav": b""})
    ended = check(tmp_path)
    assert ended.returncode == 1
    assert "can be used: sound: 1 of 1 missing" in ended.stderr.splitlines()[-1]


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.shard_avsbench", "--check"]
    return subprocess.run(
        [*command, "--tree", str(tree), "--subset", "ms3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_100th_clip_of_the_real_tables_is_sharded_and_read(
    ray_local: None, tmp_path: Path
) -> None:
    if not skeleton.LABELS.is_dir():
        pytest.skip("the real tables are not at hand")
    clips = made.published(skeleton.LABELS)
    assert len(clips) == 4932 + 424 + 11356
    clips = clips[::100]
    skeleton.build(tmp_path / "tree", clips)
    for subset, below in (("s4", ""), ("ms3", ""), ("avss", "semantic")):
        shard(tmp_path / "tree" / below, subset, tmp_path / subset)
        corpus = Corpus.open(str(tmp_path / subset))
        skeleton.verify(corpus, subset, [asdict(clip) for clip in clips])
