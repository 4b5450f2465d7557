"""What the switches of the synthesis job promise: rehearsing, growing, stopping."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from infra.commit import standing_shards
from infra.config import canonical_json
from infra.corpus import Corpus
from infra.media import encode_png, encode_wav
from pipelines import synthesize
from pipelines.catalog import MediaConfig
from pipelines.synthesize import SynthesizeConfig
from synth.catalog import Catalog
from synth.recipe import Recipe, Samples
from tests.integration.test_synthesis import command, environment
from tests.made_media import background, cut_out, tone, write_made_media

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

RECIPE = Recipe(
    image_size=64, samples=Samples(train=7, val=2, test=2, unseen=2), samples_per_shard=2
)
SHARDS = 7
MORE = Samples(train=12, val=2, test=4, unseen=2)
MORE_SHARDS = 4
# Written anew with every commit.
SUMMARIES = {
    *("corpus.json", "index.html", "refused.parquet"),
    *(f"index/{split}.parquet" for split in ("train", "val", "test", "unseen")),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_made_media(tmp_path_factory.mktemp("made") / "media"))


@pytest.fixture(scope="module")
def standing(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus; whoever changes it takes a copy."""
    uri = tmp_path_factory.mktemp("standing") / "corpus"
    made(uri, media)
    return uri


def made(uri: Path, media: Path, recipe: Recipe = RECIPE, **more: Any) -> dict[str, Any]:
    job = {"uri": str(uri), "media": MediaConfig(folder=str(media)), "corpus": recipe, **more}
    return synthesize.run(SynthesizeConfig(**job))


def grown(recipe: Recipe = RECIPE, samples: Samples = MORE) -> Recipe:
    return dataclasses.replace(recipe, samples=samples)


def files(uri: Path) -> dict[str, bytes]:
    found = (path for path in uri.rglob("*") if path.is_file())
    return {str(path.relative_to(uri)): path.read_bytes() for path in found}


def times(uri: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (uri / "shards").iterdir()}


def refused(uri: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in pq.read_table(uri / "refused.parquet").to_pylist()}


def own_media(folder: Path, seed: int) -> Path:
    """Media like no other test's: a worker keeps what it has decoded once."""
    write_made_media(folder)
    for number, picture in enumerate(sorted((folder / "backgrounds").iterdir())):
        picture.write_bytes(encode_png(background(seed + number)))
    (folder / "sounds" / "drum" / "0.wav").write_bytes(encode_wav(tone(200.0 + seed, seconds=1.5)))
    (folder / "objects" / "siren" / "0.png").write_bytes(encode_png(cut_out((230, seed, 20))))
    return folder


def write_some(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The next job loses its storage after ``count`` more shards than stand."""
    whole = synthesize.write_shards

    def some(uri: str, tasks: list[Any], make: Any, **more: Any) -> Any:
        stand = standing_shards(uri, {(t.split, t.number): t.plan for t in tasks})
        missing = [task for task in tasks if (task.split, task.number) not in stand]
        monkeypatch.setattr(synthesize, "write_shards", whole)
        whole(uri, missing[:count], make, **more)
        raise ConnectionError("the storage is gone")

    monkeypatch.setattr(synthesize, "write_shards", some)


def test_a_rehearsal_writes_nothing_and_tells_what_the_job_then_makes(
    media: Path, standing: Path, tmp_path: Path
) -> None:
    uri = tmp_path / "nowhere" / "corpus"
    ended = subprocess.run(
        command(uri, f"--media.folder={media}", "--dry-run", recipe=RECIPE),
        env=environment(RAY_ADDRESS=ray.get_runtime_context().gcs_address),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not uri.parent.exists()
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["dry_run"] and told["uri"] == str(uri)
    assert told["expected_seconds"] > 0 and told["licences"] == ["not stated"]
    manifest = Corpus.open(str(standing)).manifest
    for split, counts in manifest["splits"].items():
        assert told["splits"][split]["samples"] == counts["samples"]
        assert told["splits"][split]["classes"] == (2 if split == "unseen" else 4)
    assert (told["samples"], told["shards"]) == (13, SHARDS)
    written = sum(shard["bytes"] + shard["index_bytes"] for shard in manifest["shards"])
    assert written / 1.5 < told["expected_bytes"] < written * 1.5


def test_a_rehearsal_counts_the_time_of_looking_at_the_media(
    standing: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = synthesize.look_at_media

    def slow(*what: Any, **more: Any) -> Catalog:
        time.sleep(3)
        return look(*what, **more)

    monkeypatch.setattr(synthesize, "look_at_media", slow)
    told = made(standing, media, dry_run=True)
    assert told["samples"] == 0 and told["expected_seconds"] >= 3


def test_the_summary_and_the_log_say_what_the_work_was(
    media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        told = made(tmp_path / "corpus", media)
        again = made(tmp_path / "corpus", media)
    spent = told["stage_seconds"]
    assert {"decode", "compose", "encode", "write"} <= spent.keys() and min(spent.values()) > 0
    assert told["samples_made"] == 13 and told["samples_per_second"] > 0
    shards = Corpus.open(told["uri"]).shards
    assert told["bytes_made"] == sum(shard.bytes + shard.index_bytes for shard in shards)
    assert (told["refused"], told["retries"]) == (0, 0)
    first, second = (r.getMessage() for r in caplog.records if r.name == "synth.publish")
    assert first.startswith(f"13 samples in {SHARDS} shards made in ")
    assert all(f"{name} {seconds:.2f}" in first for name, seconds in spent.items())
    assert "0 inputs refused, 0 requests sent again" in first
    assert second.startswith("0 samples in 0 shards made in ") and again["stage_seconds"] == {}


@pytest.mark.parametrize("published", [False, True])
def test_a_job_that_lost_its_lease_writes_no_more(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    uri = tmp_path / "corpus"

    def stolen(step: Any) -> Any:
        def run(where: str, *what: Any, **more: Any) -> Any:
            (uri / "lease.json").write_bytes(b"another job's")
            return step(where, *what, **more)

        return run

    if published:
        monkeypatch.setattr(synthesize, "publish", stolen(synthesize.publish))
    else:
        monkeypatch.setattr(synthesize, "publish", lambda *_, **__: pytest.fail("it went on"))
        monkeypatch.setattr(synthesize, "write_shards", stolen(synthesize.write_shards))
    with pytest.raises(ValueError, match=r"the lease on .* was lost"):
        made(uri, media)
    assert {path.name for path in uri.iterdir()} == {"catalog", "lease.json", "shards"}


def test_a_rehearsal_counts_what_is_missing_and_changes_nothing(
    media: Path, standing: Path, tmp_path: Path
) -> None:
    before, when = files(standing), times(standing)
    again = made(standing, media, dry_run=True)
    assert (again["samples"], again["shards"], again["shards_standing"]) == (0, 0, SHARDS)
    assert again["expected_bytes"] == 0
    more = made(standing, media, grown(), dry_run=True, extend=True)
    assert (more["samples"], more["shards"]) == (7, MORE_SHARDS)
    assert more["shards_standing"] == SHARDS
    with pytest.raises(ValueError, match="another corpus stands"):
        made(standing, media, grown(), dry_run=True)
    assert files(standing) == before and times(standing) == when


def test_an_extended_corpus_keeps_what_stood_and_is_the_one_made_at_once(
    media: Path, standing: Path, tmp_path: Path
) -> None:
    uri = tmp_path / "extended"
    shutil.copytree(standing, uri)
    before, when = files(uri), times(uri)
    summary = made(uri, media, grown(), extend=True)
    assert (summary["shards_made"], summary["samples_made"]) == (MORE_SHARDS, 7)
    assert summary["splits"] == {"train": 12, "val": 2, "test": 4, "unseen": 2}
    after = files(uri)
    kept = before.keys() - SUMMARIES
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert {name: at for name, at in times(uri).items() if name in when} == when

    at_once = dataclasses.replace(grown(), grown_from=(RECIPE.samples,))
    whole = made(tmp_path / "at once", media, at_once)
    assert files(tmp_path / "at once") == after
    assert whole["manifest_sha256"] == summary["manifest_sha256"]
    corpus = Corpus.open(str(uri))
    keys = corpus.table("train").column("key").to_pylist()
    assert keys == [f"train-{number:08d}" for number in range(12)]

    # Once more with the same words makes nothing, and with others grows on.
    assert made(uri, media, grown(), extend=True)["shards_made"] == 0
    assert files(uri) == after
    third = made(uri, media, grown(samples=Samples(train=13, val=2, test=4, unseen=2)), extend=True)
    assert third["shards_made"] == 1 and third["splits"]["train"] == 13
    assert len(Corpus.open(str(uri)).manifest["recipe"]["grown_from"]) == 2


def test_an_extension_that_dies_leaves_the_corpus_there_was_and_a_rerun_finishes_it(
    media: Path, standing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "dying"
    shutil.copytree(standing, uri)
    write_some(monkeypatch, 2)
    with pytest.raises(ConnectionError, match="the storage is gone"):
        made(uri, media, grown(), extend=True)
    assert len(list(uri.glob("shards/*.json"))) == SHARDS + 2
    corpus = Corpus.open(str(uri))
    assert corpus.sha256 == Corpus.open(str(standing)).sha256
    for split in corpus.splits:
        for row in range(len(corpus.table(split))):
            assert corpus.read(split, row).members["audio.flac"]

    summary = made(uri, media, grown(), extend=True)
    assert summary["shards_made"] == MORE_SHARDS - 2
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(standing, undisturbed)
    made(undisturbed, media, grown(), extend=True)
    assert files(uri) == files(undisturbed)


def test_shards_of_a_larger_run_that_was_stopped_are_told_of_and_left_alone(
    media: Path,
    standing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri = tmp_path / "corpus"
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        write_some(patch, 9)
        made(uri, media, grown())
    larger = files(uri / "shards")
    summary = made(uri, media)
    ours = files(standing / "shards")
    strays = larger.keys() - ours.keys()
    assert len(strays) == 9 and summary["splits"]["train"] == 7
    (told,) = [r.getMessage() for r in caplog.records if "not of this corpus" in r.getMessage()]
    assert f"{uri}/shards holds 9 files" in told and f"shards/{min(strays)}" in told
    assert files(uri / "shards") == ours | {name: larger[name] for name in strays}
    assert files(uri)["corpus.json"] == files(standing)["corpus.json"]


def test_only_more_of_the_same_extends_a_corpus(
    media: Path, standing: Path, tmp_path: Path
) -> None:
    other = own_media(tmp_path / "other", seed=31)
    before = files(standing)
    fewer = grown(samples=Samples(train=5, val=2, test=2, unseen=2))
    for folder, recipe, seed, says in (
        (media, dataclasses.replace(grown(), silence=0.5), 0, r"its silence is 0\.05, not 0\.5"),
        (media, grown(), 3, "has seed 0, not 3"),
        (other, grown(), 0, "the media are not those"),
        (media, fewer, 0, "never gets smaller"),
    ):
        for rehearsal in (True, False):
            with pytest.raises(ValueError, match=says) as told:
                made(standing, folder, recipe, seed=seed, extend=True, dry_run=rehearsal)
            assert "\n" not in str(told.value)
    with pytest.raises(FileNotFoundError, match="no corpus stands at"):
        made(tmp_path / "none", media, grown(), extend=True)
    assert files(standing) == before
    assert not list(tmp_path.glob("none/shards/*"))


def test_an_extension_may_allow_more_refusals(media: Path, standing: Path, tmp_path: Path) -> None:
    uri = tmp_path / "extended"
    shutil.copytree(standing, uri)
    lenient = grown(dataclasses.replace(RECIPE, max_refused=0.9))
    assert made(uri, media, lenient, extend=True)["shards_made"] == MORE_SHARDS


def test_a_corpus_does_not_stand_for_a_list_that_holds_out_others(tmp_path: Path) -> None:
    media, uri = own_media(tmp_path / "media", seed=31), tmp_path / "corpus"
    table = tmp_path / "s4_meta_data.csv"
    table.write_text("name,category,split\naaaaaaaaaaa,dog,test\n")
    recipe = dataclasses.replace(RECIPE, held_out_tables=(str(table),))
    assert made(uri, media, recipe)["shards_made"] == SHARDS
    before = files(uri)
    table.write_text("name,category,split\nbbbbbbbbbbb,dog,test\n")
    with pytest.raises(ValueError, match=r"another corpus stands .*held_out_videos differs"):
        made(uri, media, recipe)
    assert files(uri) == before


def test_a_corpus_of_an_earlier_version_is_told_of_before_any_media_are_looked_at(
    media: Path, standing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "corpus"
    shutil.copytree(standing, uri)
    manifest = json.loads((uri / "corpus.json").read_bytes())
    del manifest["sources"]["held_out_videos"]
    (uri / "corpus.json").write_bytes(canonical_json(manifest))
    monkeypatch.delattr(synthesize, "look_at_media")
    for recipe, extend in ((RECIPE, False), (grown(), True)):
        with pytest.raises(ValueError, match="is of an earlier version"):
            made(uri, media, recipe, extend=extend)
