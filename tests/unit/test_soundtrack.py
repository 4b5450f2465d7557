"""Soundtracks: levels, looping and mixing."""

from __future__ import annotations

import numpy as np
import pytest

from synth.soundtrack import REFERENCE_RMS, mix, prepare, samples_of, stretch


def sine(samples: int, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(np.arange(samples) * 0.2)).astype(np.float32)


def rms(wave_N: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave_N, dtype=np.float64))))


@pytest.mark.parametrize("level", [0.001, 0.3, 2.0])
def test_every_clip_comes_to_the_same_loudness_without_its_silent_ends(level: float) -> None:
    quiet = np.zeros(3_000, np.float32)
    prepared_N = prepare(np.concatenate([quiet, sine(8_000, level), quiet]))
    assert prepared_N.dtype == np.float32
    assert 7_990 <= prepared_N.size <= 8_000
    assert rms(prepared_N) == pytest.approx(REFERENCE_RMS, rel=1e-4)


@pytest.mark.parametrize("wave_N", [np.zeros(100, np.float32), np.full(100, 5e-5, np.float32)])
def test_a_silent_clip_is_refused(wave_N: np.ndarray) -> None:
    with pytest.raises(ValueError, match="silent throughout"):
        prepare(wave_N)


def test_a_long_clip_is_cut_and_a_short_one_repeated() -> None:
    long_N = np.arange(100, dtype=np.float32)
    assert stretch(long_N, 40, start=0.0).tolist() == list(range(40))
    assert stretch(long_N, 40, start=1.0).tolist() == list(range(60, 100))
    assert stretch(long_N, 100, start=0.7).tolist() == list(range(100))
    short_N = np.arange(3, dtype=np.float32)
    assert stretch(short_N, 7, start=0.0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert stretch(short_N, 4, start=1 / 3).tolist() == [1, 2, 0, 1]
    assert stretch(short_N, 4, start=1.0).tolist() == [0, 1, 2, 0]


def test_gains_and_noise_have_the_levels_that_were_asked_for() -> None:
    track_N = sine(16_000, REFERENCE_RMS * 2**0.5)
    louder_N = mix([(track_N, 6.0)], 16_000, noise_db=-120.0, seed=0)
    assert rms(louder_N) == pytest.approx(REFERENCE_RMS * 10**0.3, rel=1e-3)
    noise_N = mix([], 16_000, noise_db=-20.0, seed=0)
    assert rms(noise_N) == pytest.approx(REFERENCE_RMS * 0.1, rel=0.03)
    assert noise_N.dtype == np.float32


def test_a_mix_is_the_sum_of_its_tracks() -> None:
    first_N, second_N = sine(500, 0.1), sine(500, 0.05)[::-1]
    alone = mix([], 500, noise_db=-40, seed=3)
    both = mix([(first_N, 0.0), (second_N, 0.0)], 500, noise_db=-40, seed=3)
    assert np.allclose(both, alone + first_N + second_N, atol=1e-6)


def test_nothing_clips() -> None:
    loud_N = mix([(sine(1_000, 5.0), 4.0)], 1_000, noise_db=-30, seed=0)
    assert np.abs(loud_N).max() == pytest.approx(1.0)


def test_noise_is_a_function_of_its_seed() -> None:
    once, again, other = (mix([], 200, noise_db=-30, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_seconds_are_whole_numbers_of_samples() -> None:
    assert samples_of(1.0) == 16_000
    assert samples_of(0.975) == 15_600
