"""One sample: the second of sound that a frame needs, parts of pictures, and sounds drawn anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra import media
from infra.commit import build_manifest, commit
from infra.corpus import Corpus, Sample, write_shard
from tests.batches import STILL
from tests.made_corpus import tone, write_made_corpus
from training import samples
from training.augmentation import WHOLE, Augmentation, crop, draw
from training.data import FrameSamples
from training.samples import EXAMPLE_SAMPLES, example_window, sample_sound, sample_window


def with_sound(name: str, data: bytes) -> Sample:
    return Sample(key="a", members={name: data}, meta={})


@pytest.mark.parametrize("length", [1, 400, 15_599, 15_600, 30_959, 30_960, 77_040, 80_000, 83_333])
@pytest.mark.parametrize("form", ["flac", "wav"])
def test_a_frames_second_alone_is_that_of_the_whole_sound(length: int, form: str) -> None:
    wave_N = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    encode = media.encode_flac if form == "flac" else media.encode_wav
    sample = with_sound(f"audio.{form}", encode(wave_N))
    whole_N = sample_sound(sample)
    for frame in range(11):
        window_N = sample_window(sample, frame)
        assert window_N.dtype == np.float32 and len(window_N) == EXAMPLE_SAMPLES
        assert np.array_equal(window_N, example_window(whole_N, frame)), frame


def test_a_sound_of_another_rate_is_heard_whole() -> None:
    wave_N = np.random.default_rng(0).uniform(-1, 1, 44_100 * 2).astype(np.float32)
    sample = with_sound("audio.wav", media.encode_wav(wave_N, 44_100))
    assert np.array_equal(sample_window(sample, 1), example_window(sample_sound(sample), 1))


def test_no_more_than_the_second_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = media.decode_audio

    def watched(*told: Any, **more: Any) -> tuple[np.ndarray, int]:
        wave_N, rate = decode(*told, **more)
        decoded.append(len(wave_N))
        return wave_N, rate

    monkeypatch.setattr(media, "decode_audio", watched)
    sample_window(with_sound("audio.flac", media.encode_flac(tone(0, 10))), 7)
    assert decoded == [EXAMPLE_SAMPLES]


def test_a_damaged_or_missing_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        sample_window(with_sound("audio.flac", b"fLaC" + bytes(100)), 0)
    with pytest.raises(ValueError, match="a has no sound"):
        sample_window(Sample(key="a", members={}, meta={}), 0)


def test_a_part_is_within_the_picture_and_another_in_each_epoch() -> None:
    change = Augmentation(scale=3.0)
    parts = [draw(change, 1, epoch, 5).part for epoch in range(200)]
    assert len(set(parts)) == 200 and parts == [draw(change, 1, e, 5).part for e in range(200)]
    for top, left, side in parts:
        assert 1 / 3 <= side <= 1 and min(top, left) >= 0 and max(top, left) + side <= 1 + 1e-9
    assert draw(Augmentation(), 1, 0, 5).part == WHOLE
    array_HW = np.arange(60 * 40).reshape(60, 40)
    assert crop(array_HW, WHOLE) is array_HW
    assert np.array_equal(crop(array_HW, (0.5, 0.25, 0.5)), array_HW[30:, 10:30])
    assert crop(np.ones((2, 2)), (0.9, 0.9, 0.1)).shape == (1, 1)


def test_an_enlarged_sample_shows_one_part_in_picture_mask_and_labels(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 8}, size=64)
    told = {"image_size": 64, "seed": 3}
    plain = FrameSamples(corpus, "train", augmentation=STILL, **told)  # type: ignore[arg-type]
    zoomed = FrameSamples(
        corpus, "train", augmentation=dataclasses.replace(STILL, scale=2.0), **told  # type: ignore[arg-type]
    )  # fmt: skip
    places = [(0, i) for i in range(8)]
    whole, part = plain.load(places), zoomed.load(places)
    assert torch.equal(whole.log_mel_B1MF, part.log_mel_B1MF)
    assert torch.equal(whole.class_BC, part.class_BC)
    assert not torch.equal(whole.image_B3SS, part.image_B3SS)
    for mask_1SS, cell_GG, image_3SS in zip(
        part.mask_B1SS, part.cell_BGG, part.image_B3SS, strict=True
    ):
        centres_GG = mask_1SS[0, 8::16, 8::16] > 0
        assert bool((cell_GG[centres_GG] < len(zoomed.classes)).all())
        if mask_1SS.any():
            # The squares are pure colours on grey: the mask lies where the colour is.
            inside = image_3SS[:, mask_1SS[0] > 0]
            outside = image_3SS[:, mask_1SS[0] == 0]
            assert (inside.amax(0) - inside.amin(0)).mean() > (
                outside.amax(0) - outside.amin(0)
            ).mean()


@pytest.fixture(scope="module")
def sounding(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Sounds of constant level, which tells the row: 8 dogs, a mixture, an off-screen, a silent."""
    uri = str(tmp_path_factory.mktemp("sounding"))
    picture = media.encode_png(np.zeros((32, 32, 3), np.uint8))
    mask = media.encode_png(np.zeros((32, 32), bool))

    def rows() -> Iterator[Sample]:
        heard = [(["dog"], [])] * 8 + [
            (["cat", "dog"], []),
            (["dog"], ["cat"]),
            ([], []),
            (["cat"], []),
        ]
        for row, (classes, off_screen) in enumerate(heard):
            meta = {
                "scene": f"s{row}", "classes": classes, "off_screen": off_screen, "frames": 1
            }  # fmt: skip
            sound = media.encode_flac(np.full(15_600, (row + 1) / 32, np.float32))
            members = {"frame0.png": picture, "mask0.png": mask, "audio.flac": sound}
            yield Sample(key=f"k{row:02d}", members=members, meta=meta)

    record, _ = write_shard(uri, "train", 0, rows(), plan="p")
    commit(
        uri,
        build_manifest(
            kind="made", seed=0, recipe={}, sources={}, licences=[], shards=[record], refused=[]
        ),
    )
    return Corpus.open(uri)


def heard_rows(
    corpus: Corpus,
    augmentation: Augmentation,
    row: int,
    monkeypatch: pytest.MonkeyPatch,
    rows: np.ndarray | None = None,
) -> list[int]:
    """Whose sound a row, or a place among ``rows``, hears in 60 epochs."""
    levels: list[float] = []

    def watched(window_N: np.ndarray) -> torch.Tensor:
        levels.append(float(np.median(window_N)))
        return torch.zeros(1, 1, 96, 64)

    monkeypatch.setattr("training.data.example_log_mel", watched)
    loader = FrameSamples(
        corpus, "train", image_size=32, seed=5, augmentation=augmentation, rows=rows
    )
    loader.load([(epoch, row) for epoch in range(60)])
    return [round(level * 32) - 1 for level in levels]


def test_a_sound_drawn_anew_is_of_the_same_class_alone(
    sounding: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    redrawn = dataclasses.replace(STILL, redraw_sound=True)
    heard = heard_rows(sounding, redrawn, 2, monkeypatch)
    assert set(heard) == set(range(8)), "every dog that is heard alone, and nothing else"
    assert heard == heard_rows(sounding, redrawn, 2, monkeypatch)
    assert heard != heard_rows(sounding, redrawn, 3, monkeypatch)
    assert set(heard_rows(sounding, redrawn, 11, monkeypatch)) == {11}
    assert set(heard_rows(sounding, STILL, 2, monkeypatch)) == {2}


def test_of_few_shots_a_sound_is_drawn_from_their_rows_alone(
    sounding: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    redrawn = dataclasses.replace(STILL, redraw_sound=True)
    shots = np.array([1, 4, 6, 8, 9])
    for place in range(3):
        assert set(heard_rows(sounding, redrawn, place, monkeypatch, shots)) == {1, 4, 6}
    assert set(heard_rows(sounding, redrawn, 1, monkeypatch, np.array([8, 4]))) == {8}


@pytest.mark.parametrize("row", [8, 9, 10])
def test_mixtures_off_screen_and_silent_samples_keep_their_sound(
    sounding: Corpus, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    redrawn = dataclasses.replace(STILL, redraw_sound=True)
    assert set(heard_rows(sounding, redrawn, row, monkeypatch)) == {row}


def test_options_that_are_off_leave_the_batches_as_they_are(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 6}, size=32)
    told = {"image_size": 32, "seed": 1}
    plain = FrameSamples(corpus, "train", augmentation=Augmentation(), **told)  # type: ignore[arg-type]
    drawn = FrameSamples(
        corpus, "train", augmentation=Augmentation(redraw_sound=True), **told  # type: ignore[arg-type]
    )  # fmt: skip
    places = [(1, i) for i in range(6)]
    assert torch.equal(plain.load(places).image_B3SS, drawn.load(places).image_B3SS)


def test_masks_are_resized_without_new_values() -> None:
    mask_HW = np.zeros((8, 8), bool)
    mask_HW[2:5, 3:7] = True
    assert samples.resize_mask(mask_HW, 16).sum() == 48
    with pytest.raises(ValueError, match=r"augmentation\.scale"):
        Augmentation(scale=0.5)
