"""Few-shot draws: seeded, alike in every class, and each share a part of every larger one."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.made_corpus import write_made_corpus
from training.few_shot import few_shot_rows, training_samples
from training.prefetch import batches
from training.recipe import ModelConfig, TrainConfig

# Clips of each set of classes: S4 in small, a rare pair, and clips in which nothing sounds.
SIZES = {("dog",): 305, ("cat",): 91, ("bell",): 62, ("cat", "dog"): 12, ("owl",): 3, (): 40}


class Corpus:
    """A split's table; ``few_shot_rows`` asks a corpus for nothing else."""

    def __init__(self, clips: list[tuple[str, tuple[str, ...]]]) -> None:
        keys, classes = zip(*clips, strict=True)
        self._table = pa.table(
            {"key": pa.array(keys), "classes": pa.array(classes, pa.list_(pa.string()))}
        )

    def table(self, split: str) -> pa.Table:
        assert split == "train"
        return self._table


CLIPS = [(f"{'-'.join(found)}-{n}", found) for found, size in SIZES.items() for n in range(size)]
CORPUS = Corpus(CLIPS)


def drawn(share: float, seed: int = 0, clips: list = CLIPS) -> list[tuple[str, tuple[str, ...]]]:
    rows = few_shot_rows(Corpus(clips), "train", share, seed)  # type: ignore[arg-type]
    assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
    return [clips[row] for row in rows]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.5])
def test_every_set_of_classes_keeps_its_share(share: float, seed: int) -> None:
    chosen = drawn(share, seed)
    assert len(chosen) == round(share * len(CLIPS))
    counts = Counter(found for _, found in chosen)
    for found, size in SIZES.items():
        # One clip of each class comes first, at the cost of the others' last one.
        assert abs(counts[found] - share * size) <= 2, found
    assert {name for found in counts for name in found} == {"dog", "cat", "bell", "owl"}


def test_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    shares = np.linspace(0.002, 1.0, 60)
    for smaller, larger in itertools.pairwise(shares):
        assert set(drawn(smaller)) <= set(drawn(larger))
    assert drawn(1.0) == CLIPS


def test_a_draw_depends_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    shuffled = [CLIPS[row] for row in np.random.default_rng(0).permutation(len(CLIPS))]
    assert sorted(drawn(0.1)) == sorted(drawn(0.1, clips=shuffled))
    overlap = set(drawn(0.1, seed=0)) & set(drawn(0.1, seed=1))
    assert 0 < len(overlap) < 0.3 * len(drawn(0.1))


def test_every_clip_is_drawn_about_as_often_as_every_other() -> None:
    clips = [(f"{found}{n}", (found,)) for found in "abcdefgh" for n in range(3)]
    often = Counter(key for seed in range(400) for key, _ in drawn(0.5, seed, clips))
    assert len(often) == 24 and all(140 < count < 260 for count in often.values())


def test_clips_without_classes_are_drawn_like_any_others() -> None:
    """MS3 names no classes."""
    clips: list[tuple[str, tuple[str, ...]]] = [(f"clip{n}", ()) for n in range(296)]
    assert len(drawn(0.1, clips=clips)) == 30
    assert len(drawn(0.1, clips=clips[:3])) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="few_shot is a share"):
        drawn(share)


def test_a_few_shot_stage_learns_from_the_drawn_clips_alone(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 20}, size=32)
    config = TrainConfig(
        stage="few",
        corpus=corpus.uri,
        few_shot=0.3,
        seed=3,
        epochs=1.0,
        batch=2,
        augmentation=None,
        model=ModelConfig(image_size=32),
    )
    few = training_samples(config, corpus)
    every = training_samples(dataclasses.replace(config, few_shot=None), corpus)
    # A clip is one frame here, so that a row of the table is a sample.
    rows = few_shot_rows(corpus, "train", 0.3, 3)
    drawn = every.load([(0, int(row)) for row in rows]).image_B3SS
    steps = config.total_steps(len(few))
    epoch = batches(few, batch=2, first=0, last=steps, rank=0, world=1, workers=0)
    seen = torch.cat([batch.image_B3SS for batch in epoch])
    assert len(every) == 20 and len(seen) == len(rows) == 6
    assert {image.numpy().tobytes() for image in seen} == {i.numpy().tobytes() for i in drawn}
