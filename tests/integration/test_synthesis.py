"""Synthesis on a real Ray: the same corpus whoever makes it, and none from bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from infra import config
from infra.corpus import Corpus
from infra.media import encode_png, encode_wav
from pipelines.catalog import MediaConfig
from pipelines.synthesize import SynthesizeConfig, run
from synth.looking import build_catalog
from synth.recipe import Recipe, Samples
from synth.sources import candidates
from tests.integration.conftest import ROOT, end_session
from tests.made_media import background, cut_out, made_catalog, tone, write_made_media

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

RECIPE = Recipe(
    image_size=64,
    samples=Samples(train=12, val=4, test=4, unseen=4),
    samples_per_shard=4,
)
SHARDS = 6
MANY = Recipe(
    image_size=64, samples=Samples(train=60, val=0, test=0, unseen=0), samples_per_shard=2
)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "media"
    made_catalog(folder).write(str(folder.parent / "catalog"))
    return folder


@pytest.fixture(scope="module")
def one_worker(media: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(media, tmp_path_factory.mktemp("one"), parallelism=1)


def made(media: Path, uri: Path, *, recipe: Recipe = RECIPE, **more: Any) -> dict[str, Any]:
    job = SynthesizeConfig(
        uri=str(uri), media=MediaConfig(folder=str(media)), corpus=recipe, **more
    )
    return run(job)


def command(uri: Path | str, *more: str, recipe: Recipe = RECIPE) -> list[str]:
    """The real command line for a recipe."""
    values = config.to_dict(recipe)
    flags = [
        f"--corpus.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    ]
    script = str(ROOT / "pipelines" / "synthesize.py")
    return [sys.executable, script, f"--uri={uri}", *flags, *more]


def environment(**more: str) -> dict[str, str]:
    dropped = ("SAVE_TRACEBACK", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def tars(uri: Path) -> dict[str, tuple[int, bytes]]:
    shards = sorted((uri / "shards").iterdir())
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in shards}


def test_corpus_bytes_do_not_depend_on_worker_count(
    one_worker: dict[str, Any], media: Path, tmp_path: Path
) -> None:
    two = made(media, tmp_path, parallelism=2)
    assert two["manifest_sha256"] == one_worker["manifest_sha256"]
    assert two["shards_made"] == one_worker["shards_made"] == SHARDS
    first, second = (tars(Path(summary["uri"])) for summary in (one_worker, two))
    assert {n: data for n, (_, data) in first.items()} == {n: d for n, (_, d) in second.items()}
    page = [(Path(s["uri"]) / "index.html").read_bytes() for s in (one_worker, two)]
    assert page[0] == page[1]


def test_another_seed_makes_another_corpus(
    one_worker: dict[str, Any], media: Path, tmp_path: Path
) -> None:
    other = made(media, tmp_path, seed=1)
    assert other["manifest_sha256"] != one_worker["manifest_sha256"]


def test_a_rerun_makes_nothing(one_worker: dict[str, Any], media: Path) -> None:
    uri = Path(one_worker["uri"])
    before = tars(uri)
    again = made(media, uri)
    assert again["shards_made"] == 0
    assert again["manifest_sha256"] == one_worker["manifest_sha256"]
    assert tars(uri) == before


def test_a_rerun_makes_damaged_shards_anew(one_worker: dict[str, Any], media: Path) -> None:
    shards = Path(one_worker["uri"]) / "shards"
    (shards / "train-00001.json").unlink()
    (shards / "val-00000.tar").write_bytes(b"torn")
    (shards / "test-00000.parquet").write_bytes(b"torn")
    again = made(media, Path(one_worker["uri"]))
    assert again["shards_made"] == 3
    assert again["manifest_sha256"] == one_worker["manifest_sha256"]


def test_a_driver_killed_half_way_leaves_no_corpus_and_the_rerun_makes_what_is_missing(
    media: Path, tmp_path: Path
) -> None:
    uri = tmp_path / "killed"
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(
            command(uri, f"--media.folder={media}", "--parallelism=1", recipe=MANY),
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        markers: list[Path] = []
        end = time.monotonic() + 120
        while len(markers) < 3 and driver.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
            markers = list(uri.glob("shards/train-*.json"))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    finally:
        end_session(driver.pid)  # its Ray, which takes a while to notice
    standing = len(list(uri.glob("shards/train-*.json")))
    assert 3 <= standing < 30, (tmp_path / "log").read_text()
    with pytest.raises(FileNotFoundError, match="no corpus stands at"):
        Corpus.open(str(uri))

    again = made(media, uri, recipe=MANY)
    assert again["shards_made"] == 30 - standing
    undisturbed = made(media, tmp_path / "undisturbed", recipe=MANY)
    assert undisturbed["shards_made"] == 30
    assert again["manifest_sha256"] == undisturbed["manifest_sha256"]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--corpus.classes=[bell,wolf]"], 1, "no class 'wolf' with both a picture and a sound"),
        (["--media.folder={empty}", "--catalog=null"], 1, "{empty} holds no media"),
        (["--uri=gs://bucket/corpus"], 1, "'gs://bucket/corpus' is no URI this can read"),
        (["--corpus.sampels=3"], 2, "--corpus.sampels=3"),
        (["--catalog={empty}"], 1, "no catalog stands at {empty}"),
        (["--uri={standing}", "--corpus.silence=0.5"], 1, "another corpus stands at {standing}"),
    ],
    ids=["class", "folder", "scheme", "key", "catalog", "another"],
)
def test_bad_input_ends_with_one_sentence_and_no_corpus(
    one_worker: dict[str, Any], media: Path, tmp_path: Path, more: list[str], code: int, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"empty": str(tmp_path / "empty"), "standing": one_worker["uri"]}
    uri = tmp_path / "corpus"
    flags = [f"--catalog={media.parent / 'catalog'}", *(flag.format(**names) for flag in more)]
    manifest = (Path(one_worker["uri"]) / "corpus.json").read_bytes()
    # The command joins the Ray of this module, which saves starting one for each.
    address = ray.get_runtime_context().gcs_address
    ended = subprocess.run(
        command(uri, *flags),
        env=environment(RAY_ADDRESS=address),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == code, ended.stderr
    assert last.startswith("error: ") and says.format(**names) in last, ended.stderr
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    assert not (uri / "corpus.json").exists()
    assert (Path(one_worker["uri"]) / "corpus.json").read_bytes() == manifest


def own_catalog(folder: Path, seed: int) -> str:
    """The catalog of media of their own: workers keep what they have decoded once."""
    write_made_media(folder)
    for number, picture in enumerate(sorted((folder / "backgrounds").iterdir())):
        picture.write_bytes(encode_png(background(seed + number)))
    (folder / "sounds" / "drum" / "0.wav").write_bytes(encode_wav(tone(210.0, seconds=1.5)))
    (folder / "objects" / "siren" / "0.png").write_bytes(encode_png(cut_out((230, 190, 20))))
    uri = str(folder.parent / "catalog")
    build_catalog(str(folder), candidates(str(folder))).write(uri)
    return uri


def refused(uri: Path) -> dict[str, str]:
    """Reasons by id."""
    rows = pq.read_table(uri / "refused.parquet").to_pylist()
    return {row["id"]: row["reason"] for row in rows}


def test_media_that_went_bad_since_the_catalog_are_refused_by_name(tmp_path: Path) -> None:
    folder, uri = tmp_path / "media", tmp_path / "corpus"
    catalog = own_catalog(folder, seed=100)
    (folder / "sounds" / "drum" / "0.wav").write_bytes(b"went bad")
    (folder / "objects" / "siren" / "0.png").unlink()
    recipe = dataclasses.replace(RECIPE, max_refused=0.9)
    summary = made(folder, uri, recipe=recipe, catalog=catalog)
    assert refused(uri) == {
        "sounds/drum/0.wav": "changed: the file is not the one that the catalog looked at",
        "objects/siren/0.png": "missing: the file is gone since the catalog was made",
    }
    assert summary["refused_by_reason"] == {"changed": 1, "missing": 1}
    corpus = Corpus.open(str(uri))
    assert 0 < summary["samples"] < 24
    for split in corpus.splits:
        for row in range(len(corpus.table(split))):
            meta = corpus.read(split, row, names=()).meta
            used = {*meta["sound"], *(shown["asset"] for shown in meta["objects"][0])}
            assert used.isdisjoint(refused(uri)), meta


def test_too_many_refused_samples_stop_the_job_with_a_report_and_no_corpus(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, uri = tmp_path / "media", tmp_path / "corpus"
    catalog = own_catalog(folder, seed=200)
    for picture in (folder / "backgrounds").iterdir():
        picture.write_bytes(b"went bad")
    argv = command(uri, f"--catalog={catalog}")[2:]
    with pytest.raises(SystemExit) as stopped:
        config.main(run, SynthesizeConfig, argv=argv)
    assert stopped.value.code == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.match(r"error: \d+ samples were refused \(\d+ changed\), more than the 5 ", last), (
        last
    )
    assert "the first is backgrounds/" in last and "raise max_refused" in last
    assert not (uri / "corpus.json").exists()


def test_the_summary_is_the_last_line_of_the_real_command(media: Path, tmp_path: Path) -> None:
    small = Recipe(image_size=64, samples=Samples(train=2, val=0, test=0, unseen=0))
    ended = subprocess.run(
        command(tmp_path / "corpus", f"--media.folder={media}", recipe=small),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["manifest_sha256"] == Corpus.open(str(tmp_path / "corpus")).sha256
    assert summary["samples"] == 2
