"""Training samples: order, resumption, labels and sound."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from infra.corpus import Corpus
from tests.batches import equal
from tests.made_corpus import write_made_corpus
from training.augmentation import Augmentation
from training.batch import IGNORED_CELL, Batch
from training.data import FrameSamples
from training.order import sample_order
from training.prefetch import batches
from training.samples import (
    EXAMPLE_HOP,
    EXAMPLE_SAMPLES,
    example_window,
    load_clip,
    load_sound,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    uri = tmp_path_factory.mktemp("data") / "corpus"
    return write_made_corpus(str(uri), samples={"train": 10, "val": 4}, size=48, frames=3)


def frame_samples(
    corpus: Corpus, augmentation: Augmentation | None = None, size: int = 48
) -> FrameSamples:
    return FrameSamples(corpus, "train", image_size=size, seed=3, augmentation=augmentation)


def content(batch: Batch) -> str:
    """sha256 of everything in a batch."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(batch):
        digest.update(np.ascontiguousarray(getattr(batch, field.name)).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("augmentation", "size", "step", "sha256"),
    [
        (None, 48, 0, "0a8f558dc4cabff03ba7030b0e8022e9f88ac9f0ea589eb66450c4988ee94559"),
        (None, 32, 5, "a539860e85e11196fa3e8d0e15754dc941fe96421590abaf5ef51bc738ca398f"),
        (Augmentation(), 48, 0, "85d417e34ffddbf43d1782baa2826100e87a00660bd2a32a2bcfe02e11887532"),
        (Augmentation(), 32, 5, "707f25128be644a411975d2abdd83b98655ffe969688583d363ab5ca4044c2e6"),
    ],
)
def test_batches_stay_the_same_to_the_last_bit(
    corpus: Corpus, augmentation: Augmentation | None, size: int, step: int, sha256: str
) -> None:
    # With the pinned packages: another Pillow, libsndfile or torch may round otherwise.
    samples = frame_samples(corpus, augmentation, size)
    assert content(samples.load(samples.order(step, batch=8))) == sha256


@pytest.mark.parametrize(("samples", "batch"), [(10, 4), (3, 8), (16, 16), (7, 1)])
def test_every_sample_comes_once_in_each_epoch_whatever_the_batch(samples: int, batch: int) -> None:
    epochs = 4
    steps = samples * epochs // batch
    seen = [p for s in range(steps) for p in sample_order(
        samples=samples, batch=batch, seed=1, step=s
    )]  # fmt: skip
    for epoch in range(steps * batch // samples):
        assert sorted(i for e, i in seen if e == epoch) == list(range(samples))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_global_batch_does_not_depend_on_the_number_of_workers(world: int) -> None:
    for step in range(4):
        told = {"samples": 11, "batch": 8, "seed": 2, "step": step}
        alone = sample_order(**told)
        shared = [p for rank in range(world) for p in sample_order(**told, rank=rank, world=world)]
        assert shared == alone


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(i for _, i in sample_order(samples=50, batch=50, seed=seed, step=step))
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len(orders) == 4


def test_a_resumed_loader_gives_the_batches_that_were_left(corpus: Corpus) -> None:
    samples = frame_samples(corpus, Augmentation())
    whole = list(batches(samples, batch=4, first=0, last=9))
    resumed = list(batches(frame_samples(corpus, Augmentation()), batch=4, first=6, last=9))
    assert len(resumed) == 3
    assert all(equal(a, b) for a, b in zip(whole[6:], resumed, strict=True))


def test_only_frames_with_a_mask_are_samples(tmp_path: Path) -> None:
    told = {"samples": {"train": 6}, "size": 32, "frames": 3}
    first = write_made_corpus(str(tmp_path / "s4"), **told, first_mask_only=True)
    every = write_made_corpus(str(tmp_path / "ms3"), **told)
    assert frame_samples(first).places_P2.tolist() == [[row, 0] for row in range(6)]
    assert len(frame_samples(every)) == 18


def test_of_some_rows_their_frames_alone_are_samples(corpus: Corpus) -> None:
    told = {"image_size": 48, "seed": 3, "augmentation": None}
    few = FrameSamples(corpus, "train", rows=np.array([1, 6]), **told)  # type: ignore[arg-type]
    assert few.places_P2.tolist() == [[row, frame] for row in (1, 6) for frame in range(3)]
    whole = frame_samples(corpus).load([(0, i) for i in (3, 4, 5, 18, 19, 20)])
    assert equal(few.load([(0, i) for i in range(6)]), whole)
    with pytest.raises(ValueError, match="nothing to learn"):
        FrameSamples(corpus, "train", rows=np.array([], int), **told)  # type: ignore[arg-type]


def test_cells_are_labelled_with_the_object_that_lies_there(corpus: Corpus) -> None:
    samples = frame_samples(corpus)
    batch = samples.load([(0, i) for i in range(len(samples))])
    background = len(samples.classes)
    heard = batch.class_BC.argmax(1)
    for shares_C, cell_GG, mask_1SS, index in zip(
        batch.class_BC, batch.cell_BGG, batch.mask_B1SS, heard, strict=True
    ):
        if shares_C.any():
            centres_GG = mask_1SS[0, 8::16, 8::16] > 0
            assert bool((cell_GG[centres_GG] == index).all())
        assert set(cell_GG.flatten().tolist()) <= set(range(background + 1))


def test_without_object_masks_no_cell_is_labelled(tmp_path: Path) -> None:
    bare = write_made_corpus(str(tmp_path), samples={"train": 2}, size=32, with_objects=False)
    assert bool((frame_samples(bare, size=32).load([(0, 0)]).cell_BGG == IGNORED_CELL).all())


def test_a_frame_hears_its_own_second_and_the_last_one_where_sound_ends() -> None:
    wave_N = np.arange(3 * EXAMPLE_HOP, dtype=np.float32)
    assert example_window(wave_N, 1)[0] == EXAMPLE_HOP
    # 46080 samples hold two whole examples: AVSBench repeats the last one.
    assert np.array_equal(example_window(wave_N, 4), example_window(wave_N, 1))


def test_a_sound_too_short_for_an_example_is_filled_with_silence() -> None:
    window_N = example_window(np.ones(100, np.float32), 2)
    assert len(window_N) == EXAMPLE_SAMPLES and window_N.sum() == 100


def test_a_clip_keeps_its_masks_at_their_own_size(tmp_path: Path) -> None:
    corpus = write_made_corpus(
        str(tmp_path), samples={"train": 2}, size=48, frames=3, first_mask_only=True
    )
    clip = load_clip(corpus, "train", 1, 32)
    assert clip.images_T3SS.shape == (3, 3, 32, 32)
    assert clip.log_mel_T1MF.shape == (3, 1, 96, 64)
    assert clip.masks[0] is not None and clip.masks[0].shape == (48, 48)
    assert clip.masks[1:] == (None, None)
    assert load_sound(corpus, "train", 1).dtype == np.float32


def test_what_fails_while_loading_fails_in_the_loop(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = frame_samples(corpus)

    def damaged(order: object) -> Batch:
        raise ValueError("the shard is damaged")

    monkeypatch.setattr(samples, "load", damaged)
    with pytest.raises(ValueError, match="damaged"):
        next(batches(samples, batch=2, first=0, last=3))


def test_a_loader_that_is_left_early_leaves_no_thread_behind(corpus: Corpus) -> None:
    loader = batches(frame_samples(corpus), batch=2, first=0, last=1000)
    next(loader)
    loader.close()  # type: ignore[attr-defined]
    assert "batches" not in {thread.name for thread in threading.enumerate()}


def test_a_split_without_masks_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="no split 'tests'"):
        FrameSamples(corpus, "tests", image_size=32, seed=0, augmentation=None)
