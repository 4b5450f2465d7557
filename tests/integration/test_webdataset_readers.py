"""Shards are plain WebDataset: other people's readers get the same samples out of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image

from infra import media
from infra.corpus import Corpus, Sample
from tests.made_corpus import write_made_corpus

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    uri = str(tmp_path_factory.mktemp("readers") / "corpus")
    return write_made_corpus(uri, samples={"train": 7}, size=48, frames=2, shard_samples=3)


def tars(corpus: Corpus) -> list[str]:
    return [f"{corpus.uri}/{record.path}" for record in corpus.shards]


def ours(corpus: Corpus) -> dict[str, Sample]:
    samples = [corpus.read("train", row) for row in range(len(corpus.table("train")))]
    return {sample.key: sample for sample in samples}


def test_the_webdataset_package_decodes_the_same_samples(corpus: Corpus) -> None:
    # It knows no FLAC: sound stays bytes.
    reader = webdataset.WebDataset(tars(corpus), shardshuffle=False).decode("rgb8")
    seen = {sample["__key__"]: sample for sample in reader}
    wanted = ours(corpus)
    assert list(seen) == list(wanted) and len(seen) == 7
    for key, sample in wanted.items():
        theirs = seen[key]
        assert set(theirs) - {"__key__", "__url__", "__local_path__"} == {*sample.members, "json"}
        assert theirs["json"] == sample.meta
        assert theirs["audio.flac"] == sample.members["audio.flac"]
        for frame in range(2):
            image_HWC = media.decode_image(sample.members[f"frame{frame}.png"])
            assert np.array_equal(theirs[f"frame{frame}.png"], image_HWC)
            mask_HW = media.decode_mask(sample.members[f"mask{frame}.png"])
            assert np.array_equal(theirs[f"mask{frame}.png"][..., 0] > 0, mask_HW)


def test_a_webdataset_pipeline_makes_the_arrays_that_ours_makes(corpus: Corpus) -> None:
    def arrays(theirs: dict[str, Any]) -> tuple[str, np.ndarray, np.ndarray]:
        wave_N, _ = soundfile.read(io.BytesIO(theirs["audio.flac"]), dtype="float32")
        image_HWC = np.asarray(Image.open(io.BytesIO(theirs["frame1.png"])).convert("RGB"))
        return theirs["__key__"], image_HWC, wave_N

    wanted = ours(corpus)
    reader = webdataset.WebDataset(tars(corpus), shardshuffle=False).map(arrays)
    for key, image_HWC, wave_N in reader:
        members = wanted[key].members
        assert np.array_equal(image_HWC, media.decode_image(members["frame1.png"]))
        assert np.array_equal(wave_N, media.decode_audio(members["audio.flac"])[0])


def test_ray_data_reads_the_same_samples(corpus: Corpus, ray_local: None) -> None:
    import ray.data

    wanted = ours(corpus)
    # What its decoder does to pictures and JSON is its own; the bytes are ours.
    rows = ray.data.read_webdataset(tars(corpus), decoder=None).take_all()
    assert sorted(row["__key__"] for row in rows) == sorted(wanted)
    for row in rows:
        sample = wanted[row["__key__"]]
        assert json.loads(row["json"]) == sample.meta
        assert {name: row[name] for name in sample.members} == sample.members
    decoded = ray.data.read_webdataset(tars(corpus)).take_all()
    for row in decoded:
        sample = wanted[row["__key__"]]
        assert row["audio.flac"] == sample.members["audio.flac"]
        image_HWC = media.decode_image(sample.members["frame0.png"])
        assert np.array_equal(np.asarray(row["frame0.png"])[..., :3], image_HWC)


def test_the_tar_command_lists_what_the_index_lists(corpus: Corpus, tmp_path: Path) -> None:
    import subprocess

    for record in corpus.shards:
        listed = subprocess.run(
            ["tar", "-tf", f"{corpus.uri}/{record.path}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        rows = [r for r in corpus.table("train").to_pylist() if r["shard"] == record.path]
        assert listed == [f"{r['key']}.{m['name']}" for r in rows for m in r["members"]]
