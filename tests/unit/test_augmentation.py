"""Augmentation: what each option changes, within its bounds, and what it leaves as it is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from infra.corpus import Corpus
from tests.batches import STILL, equal
from tests.made_corpus import tone, write_made_corpus
from training.augmentation import IMAGE_MEAN, IMAGE_SPREAD, Augmentation, draw, resound
from training.batch import Batch
from training.data import FrameSamples
from training.samples import EXAMPLE_SAMPLES

DRAWS = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    uri = tmp_path_factory.mktemp("augmentation") / "corpus"
    return write_made_corpus(str(uri), samples={"train": 8}, size=48)


def load(corpus: Corpus, change: Augmentation | None, *, seed: int = 3, epochs: int = 1) -> Batch:
    """All samples."""
    samples = FrameSamples(corpus, "train", image_size=48, seed=seed, augmentation=change)
    return samples.load([(epoch, i) for epoch in range(epochs) for i in range(len(samples))])


def only(**told: object) -> Augmentation:
    """Nothing else changes."""
    return dataclasses.replace(STILL, **told)  # type: ignore[arg-type]


def heard(wave_N: np.ndarray, change: Augmentation) -> np.ndarray:
    """A sound as it is heard in many draws: float32 ``[draws, N]``."""
    random = np.random.default_rng(0)
    return np.stack([resound(wave_N, change, random) for _ in range(DRAWS)])


def pixels(batch: Batch) -> np.ndarray:
    """The pictures before they were normalised: float32 ``[B, 3, S * S]``, 0 to 1."""
    image_B3P = batch.image_B3SS.numpy().reshape(len(batch), 3, -1)
    return image_B3P * IMAGE_SPREAD[:, None] + IMAGE_MEAN[:, None]


def lines(before_B3P: np.ndarray, after_B3P: np.ndarray) -> np.ndarray:
    """Slope and offset from one to the other, of each picture's channels: ``[B, 3, 2]``.

    Every pixel that was not cut off at black or white must lie on the line.
    """
    found = np.empty((len(before_B3P), 3, 2))
    for image, channel in np.ndindex(found.shape[:2]):
        before_P, after_P = before_B3P[image, channel], after_B3P[image, channel]
        kept_P = (after_P > 1e-3) & (after_P < 1 - 1e-3)
        line = np.polyfit(before_P[kept_P], after_P[kept_P], 1)
        np.testing.assert_allclose(np.clip(np.polyval(line, before_P), 0, 1), after_P, atol=1e-4)
        found[image, channel] = line
    return found


def test_with_everything_off_samples_stay_as_they_are(corpus: Corpus) -> None:
    assert equal(load(corpus, STILL), load(corpus, None))


def test_changes_differ_between_epochs_and_not_between_workers(corpus: Corpus) -> None:
    samples = FrameSamples(corpus, "train", image_size=48, seed=3, augmentation=Augmentation())
    both = samples.load([(2, 5), (0, 1)])
    alone, again = samples.load([(0, 1)]), samples.load([(1, 1)])
    assert not torch.equal(alone.image_B3SS, again.image_B3SS)
    assert not torch.equal(alone.log_mel_B1MF, again.log_mel_B1MF)
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(both, field.name)[1:], getattr(alone, field.name))


def test_a_seed_draws_the_same_changes_again_and_another_seed_others(corpus: Corpus) -> None:
    first = load(corpus, Augmentation())
    assert equal(first, load(corpus, Augmentation()))
    other = load(corpus, Augmentation(), seed=4)
    assert not torch.equal(first.log_mel_B1MF, other.log_mel_B1MF)
    pairs = zip(first.image_B3SS, other.image_B3SS, strict=True)
    assert not any(torch.equal(left_3SS, right_3SS) for left_3SS, right_3SS in pairs)


def test_gain_multiplies_the_sound_by_a_number_within_its_bounds() -> None:
    wave_N = tone(0, 1)
    heard_DN = heard(wave_N, only(gain=(0.5, 1.5)))
    gain_D = heard_DN @ wave_N / (wave_N @ wave_N)
    np.testing.assert_allclose(heard_DN, gain_D[:, None] * wave_N, atol=1e-5)
    assert 0.5 <= gain_D.min() < 0.55 and 1.45 < gain_D.max() <= 1.5
    # Full scale is 1, here as in any file of sound.
    assert np.abs(heard(wave_N, only(gain=(4.0, 4.0)))).max() == 1.0


def test_noise_stays_within_its_spread_and_none_leaves_the_sound_as_it_is() -> None:
    noise_DN = heard(np.zeros(EXAMPLE_SAMPLES, np.float32), only(noise=0.01))
    spread_D = noise_DN.std(axis=1)
    assert spread_D.min() < 0.001 and 0.0095 < spread_D.max() < 0.0105
    assert np.abs(noise_DN.mean(axis=1)).max() < 0.0005
    # White: a sample tells nothing about the next one.
    likeness_D = (noise_DN[:, 1:] * noise_DN[:, :-1]).mean(axis=1) / spread_D**2
    assert np.abs(likeness_D).max() < 0.05
    wave_N = tone(0, 1)
    assert (heard(wave_N, only(noise=0.0)) == wave_N).all()


def test_a_shift_turns_the_sound_round_and_loses_nothing_of_it() -> None:
    wave_N = np.linspace(-1.0, 1.0, EXAMPLE_SAMPLES, dtype=np.float32)
    heard_DN = heard(wave_N, only(shift=True))
    starts = heard_DN.argmin(axis=1)
    for heard_N, start in zip(heard_DN, starts, strict=True):
        assert np.array_equal(heard_N, np.roll(wave_N, start))
    assert starts.min() < EXAMPLE_SAMPLES * 0.05 and starts.max() > EXAMPLE_SAMPLES * 0.95


def test_colour_multiplies_each_channel_by_a_number_within_its_bounds(corpus: Corpus) -> None:
    before, after = (load(corpus, change, epochs=8) for change in (STILL, only(colour=0.1)))
    line_B32 = lines(pixels(before), pixels(after))
    tint_B3 = line_B32[..., 0]
    np.testing.assert_allclose(line_B32[..., 1], 0, atol=1e-3)
    assert 0.9 - 1e-3 <= tint_B3.min() < 0.91 and 1.09 < tint_B3.max() <= 1.1 + 1e-3
    assert np.ptp(tint_B3, axis=1).min() > 1e-3, "each channel has a number of its own"
    assert equal(dataclasses.replace(after, image_B3SS=before.image_B3SS), before)


def test_light_changes_brightness_and_contrast_within_bounds_and_no_hue(corpus: Corpus) -> None:
    before, after = (load(corpus, change, epochs=8) for change in (STILL, only(light=0.2)))
    line_B32 = lines(pixels(before), pixels(after))
    np.testing.assert_allclose(line_B32, line_B32[:, :1].repeat(3, axis=1), atol=2e-3)
    slope_B, offset_B = line_B32[:, 0].T
    # The contrast is that around the mean, which brightness alone moves.
    mean_B = pixels(before).mean(axis=(1, 2))
    bright_B = (slope_B * mean_B + offset_B) / mean_B
    for factor_B in (bright_B, slope_B / bright_B):
        assert 0.8 - 2e-3 <= factor_B.min() < 0.83 and 1.17 < factor_B.max() <= 1.2 + 2e-3
    assert equal(dataclasses.replace(after, image_B3SS=before.image_B3SS), before)


def test_a_flip_mirrors_picture_mask_and_labels_together(corpus: Corpus) -> None:
    plain, flipped = load(corpus, STILL), load(corpus, only(flip=1.0))
    assert torch.equal(flipped.image_B3SS, plain.image_B3SS.flip(-1))
    assert torch.equal(flipped.mask_B1SS, plain.mask_B1SS.flip(-1))
    assert torch.equal(flipped.cell_BGG, plain.cell_BGG.flip(-1))
    assert not torch.equal(flipped.cell_BGG, plain.cell_BGG)
    assert torch.equal(flipped.log_mel_B1MF, plain.log_mel_B1MF)


def test_silent_samples_hear_nothing_and_have_nothing_to_mask(corpus: Corpus) -> None:
    plain, silent = load(corpus, STILL), load(corpus, only(silent_share=1.0))
    assert plain.mask_B1SS.any() and plain.class_BC.any()
    assert not silent.mask_B1SS.any() and not silent.class_BC.any()
    assert torch.allclose(silent.log_mel_B1MF, torch.tensor(math.log(0.01)), atol=1e-5)
    assert torch.equal(silent.image_B3SS, plain.image_B3SS)
    # Neither gain nor noise is heard where nothing is.
    loud = load(corpus, dataclasses.replace(Augmentation(), silent_share=1.0))
    assert torch.equal(loud.log_mel_B1MF, silent.log_mel_B1MF)


def test_flipped_and_silent_samples_have_the_share_that_is_asked_for() -> None:
    change = only(flip=0.5, silent_share=0.25)
    drawn = [draw(change, 1, epoch, sample) for epoch in range(20) for sample in range(200)]
    flipped, silent = ([getattr(one, name) for one in drawn] for name in ("flip", "silent"))
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.03)
    assert np.mean(silent) == pytest.approx(0.25, abs=0.03)
    assert np.mean(np.logical_and(flipped, silent)) == pytest.approx(0.125, abs=0.03)


@pytest.mark.parametrize("value", [-1.0, 1.5, math.nan])
@pytest.mark.parametrize("option", ["flip", "light", "colour", "noise", "silent_share"])
def test_a_share_or_spread_out_of_bounds_is_refused(option: str, value: float) -> None:
    said = rf"augmentation\.{option} must lie between 0 and 1, got {value}"
    with pytest.raises(ValueError, match=said):
        Augmentation(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "gain", [(2.0, 1.0), (0.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_a_gain_out_of_bounds_is_refused(gain: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"augmentation\.gain must be two rising positives"):
        Augmentation(gain=gain)
