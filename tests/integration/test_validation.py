"""What a stage finds on its val split does not depend on how its ranks share the clips."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from infra import media
from infra.commit import build_manifest, commit
from infra.corpus import Corpus, write_shard
from model import build_save
from tests import worlds
from tests.made_corpus import write_made_corpus
from training.clips import FRAMES_PER_BATCH
from training.evaluation import score

pytestmark = pytest.mark.integration

Found = tuple[dict[str, float], Path]

JPEG = b"\xff\xd8"
# The side at which a forward pass takes FRAMES_PER_BATCH frames.
SIDE = 256
# Annotated frames of each clip; two ranks take every other one.
ANNOTATED = {"val": (5, 5, 5, 3, 5, 0, 4), "one": (3,)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    uri, whole = (str(tmp_path_factory.mktemp(name)) for name in ("corpus", "whole"))
    counts = {split: len(frames) for split, frames in ANNOTATED.items()}
    made = write_made_corpus(whole, samples=counts, frames=5)
    shards = []
    for split, annotated in ANNOTATED.items():
        samples = [made.read(split, row) for row in range(len(annotated))]
        for sample, count in zip(samples, annotated, strict=True):
            for frame in range(count, 5):
                del sample.members[f"mask{frame}.png"]
        shards.append(write_shard(uri, split, 0, samples, plan=split)[0])
    kept = {name: made.manifest[name] for name in ("kind", "seed", "recipe", "sources", "licences")}
    commit(uri, build_manifest(**kept, shards=shards, refused=[]))
    return Corpus.open(uri)


@pytest.fixture(scope="module")
def alone(corpus: Corpus) -> dict[str, dict[str, float]]:
    """The scores of each split, by one process that goes through all of it."""
    torch.manual_seed(0)
    save = build_save("save_tiny", image_size=SIDE)
    return {split: score(save, corpus, split) for split in ANNOTATED}


@pytest.fixture(scope="module")
def pair(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Found]:
    """What two ranks find with the same weights, and the folder of what they show.

    Ranks that wait for each other are ended after some minutes.
    """
    ways = [(1, "val"), (3, "val"), (3, "one")]
    shown = [tmp_path_factory.mktemp("shown") for _ in ways]
    scenarios = [
        {
            "zero_stage": stage,
            "image_size": SIDE,
            "validate": {"corpus": corpus.uri, "split": split, "shown": str(folder)},
        }
        for (stage, split), folder in zip(ways, shown, strict=True)
    ]
    found = worlds.run(2, scenarios)
    return dict(zip(ways, zip(found, shown, strict=True), strict=True))


def test_ranks_find_together_what_one_finds_that_has_all_clips(
    pair: dict[Any, Found], alone: dict[str, dict[str, float]]
) -> None:
    assert pair[1, "val"][0] == close(alone["val"])


@pytest.mark.parametrize(("split", "passes"), [("val", [2, 1]), ("one", [1, 0])])
def test_under_zero_3_a_rank_may_need_fewer_forward_passes_than_another(
    pair: dict[Any, Found],
    alone: dict[str, dict[str, float]],
    split: str,
    passes: list[int],
) -> None:
    frames = [sum(ANNOTATED[split][rank::2]) for rank in range(2)]
    assert [math.ceil(count / FRAMES_PER_BATCH) for count in frames] == passes
    assert pair[3, split][0] == close(alone[split])


def test_the_same_few_clips_are_shown_each_time(pair: dict[Any, Found], corpus: Corpus) -> None:
    keys = [corpus.index("val").key(row) for row in range(worlds.OVERLAYS)]
    for way in ((1, "val"), (3, "val")):
        shown = sorted(pair[way][1].iterdir())
        assert [path.stem for path in shown] == keys, way
        for path in shown:
            assert path.read_bytes().startswith(JPEG), path
            picture_HW3 = media.decode_image(path.read_bytes())
            # The true mask, and beside it the predicted one.
            assert picture_HW3.shape == (64, 2 * 64, 3), path


def close(scores: dict[str, float]) -> dict[str, Any]:
    # Rounding depends on the batch and may move a pixel over the threshold.
    return {name: pytest.approx(scores[name], abs=1e-4) for name in ("m_j", "m_f")}
