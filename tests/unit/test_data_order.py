"""The order of samples: whole epochs, any number of ranks and workers, a start at any step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.corpus import Corpus
from tests.batches import equal, joined
from tests.made_corpus import write_made_corpus
from training.augmentation import Augmentation
from training.data import FrameSamples
from training.order import Window, epoch_order, sample_order
from training.prefetch import batches

SIZES = (4, 4, 4, 3)
WINDOWS = [None, Window(shards=2, sizes=SIZES)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    uri = tmp_path_factory.mktemp("order") / "corpus"
    told = {"samples": {"train": 12}, "size": 32, "frames": 2, "shard_samples": 5}
    return write_made_corpus(str(uri), **told)


def frame_samples(corpus: Corpus, *, window: int | None = None) -> FrameSamples:
    return FrameSamples(
        corpus, "train", image_size=32, seed=4, augmentation=Augmentation(), window=window
    )


@pytest.mark.parametrize("window", WINDOWS)
def test_no_sample_is_lost_or_doubled_in_an_epoch(window: Window | None) -> None:
    samples, batch = sum(SIZES), 4
    seen = Counter(
        place
        for step in range(3 * samples // batch + 1)
        for place in sample_order(samples=samples, batch=batch, seed=1, step=step, window=window)
    )
    assert set(seen.values()) == {1}
    for epoch in range(3):
        assert sorted(i for e, i in seen if e == epoch) == list(range(samples))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1)])
def test_no_sample_is_lost_or_doubled_in_what_is_loaded(
    corpus: Corpus, window: int | None, world: int, workers: int
) -> None:
    # No two pictures of the corpus are alike: each tells which sample it is.
    samples = FrameSamples(corpus, "train", image_size=32, seed=4, augmentation=None, window=window)
    whole = samples.load([(0, index) for index in range(len(samples))])
    number_of = {image_3SS.numpy().tobytes(): n for n, image_3SS in enumerate(whole.image_B3SS)}
    assert len(number_of) == len(samples) == 24
    # Steps that neither the epochs nor the ranks divide.
    told = {"batch": 9, "first": 0, "last": 8, "world": world, "workers": workers}
    ranks = [batches(samples, rank=rank, **told) for rank in range(world)]  # type: ignore[arg-type]
    seen = []
    for parts in zip(*ranks, strict=True):
        step = joined(parts)
        numbers = [number_of[image_3SS.numpy().tobytes()] for image_3SS in step.image_B3SS]
        assert equal(step, samples.load([(0, number) for number in numbers]))
        seen += numbers
    for epoch in range(3):
        assert sorted(seen[epoch * 24 : epoch * 24 + 24]) == list(range(24))
    assert len(seen) == 3 * 24


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("world", [2, 4, 8])
def test_every_rank_gets_as_many_samples_and_all_of_them_the_same_batch(
    world: int, window: Window | None
) -> None:
    for step in range(6):
        told = {"samples": sum(SIZES), "batch": 8, "seed": 2, "step": step, "window": window}
        shares = [sample_order(**told, rank=rank, world=world) for rank in range(world)]  # type: ignore[arg-type]
        assert {len(share) for share in shares} == {8 // world}
        assert [place for share in shares for place in share] == sample_order(**told)  # type: ignore[arg-type]


def test_a_window_keeps_a_stretch_of_the_epoch_within_its_shards() -> None:
    window = Window(shards=2, sizes=SIZES)
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    orders = [epoch_order(sum(SIZES), 3, epoch, window) for epoch in range(4)]
    for order in orders:
        needed = [set(shard_of[order][shard_of[order] == s]) for s in range(4)]
        assert len(needed) == 4
        stretches = [np.flatnonzero(shard_of[order] == shard) for shard in range(4)]
        # Each shard is needed for no longer than its window lasts, and every window mixes two.
        assert all(found.max() - found.min() < 8 for found in stretches)
        assert sum(len(set(shard_of[order][at : at + 4])) > 1 for at in range(0, 12, 4)) >= 2
    assert len({tuple(order) for order in orders}) == 4
    with pytest.raises(ValueError, match="at least 1 shard"):
        Window(shards=0, sizes=SIZES)


def test_resuming_at_every_step_of_an_epoch_gives_the_rest_of_it(corpus: Corpus) -> None:
    steps = len(frame_samples(corpus)) // 4
    whole = list(batches(frame_samples(corpus), batch=4, first=0, last=steps))
    for first in range(steps):
        rest = list(batches(frame_samples(corpus), batch=4, first=first, last=steps))
        assert len(rest) == steps - first
        assert all(equal(a, b) for a, b in zip(whole[first:], rest, strict=True))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_order_does_not_depend_on_ranks_or_workers(corpus: Corpus, workers: int) -> None:
    samples = frame_samples(corpus, window=2)
    alone = list(batches(samples, batch=4, first=1, last=7))
    before = torch.get_rng_state()
    shares = [
        list(batches(samples, batch=4, first=1, last=7, rank=rank, world=2, workers=workers))
        for rank in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    for whole, *parts in zip(alone, *shares, strict=True):
        assert equal(whole, joined(parts))


def test_what_fails_in_a_worker_process_fails_in_the_loop(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 4}, size=32)
    samples = frame_samples(corpus)
    (tmp_path / "shards/train-00000.tar").unlink()
    with pytest.raises(ValueError, match=r"train-00000\.tar is missing"):
        next(batches(samples, batch=2, first=0, last=3, workers=1))


def test_a_million_samples_are_ordered_without_a_million_objects() -> None:
    epoch_order.cache_clear()
    order = epoch_order(1_000_000, 0, 0)
    places = sample_order(samples=1_000_000, batch=16, seed=0, step=62_499)
    assert order.nbytes == 8_000_000 and len(places) == 16
    assert [i for _, i in places] == order[-16:].tolist()
