"""Making a soundtrack from clips: cutting, looping, levels and mixing at 16 kHz.

Shape: N samples, float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infra.media import SAMPLE_RATE

# Clips come at every loudness; they are brought to this RMS before a drawn gain is applied.
REFERENCE_RMS = 0.1
_SILENCE_BELOW = 0.02


def prepare(wave_N: np.ndarray) -> np.ndarray:
    """A clip without its silent ends, at the reference loudness.

    Raises:
        ValueError: the clip is silent throughout.
    """
    peak = float(np.abs(wave_N).max(initial=0.0))
    if peak < 1e-4:
        raise ValueError("the sound is silent throughout")
    loud = np.flatnonzero(np.abs(wave_N) > _SILENCE_BELOW * peak)
    kept = wave_N[loud[0] : loud[-1] + 1]
    rms = float(np.sqrt(np.mean(np.square(kept, dtype=np.float64))))
    return (kept * (REFERENCE_RMS / rms)).astype(np.float32)


def stretch(wave_N: np.ndarray, samples: int, *, start: float) -> np.ndarray:
    """``samples`` of a prepared clip from the relative position ``start`` in [0, 1].

    A clip that is too short is repeated, which keeps every second of the track sounding.
    """
    if wave_N.size >= samples:
        first = round(start * (wave_N.size - samples))
        return wave_N[first : first + samples]
    first = round(start * wave_N.size)
    return np.resize(np.roll(wave_N, -first), samples)


def mix(
    tracks: Sequence[tuple[np.ndarray, float]], samples: int, *, noise_db: float, seed: int
) -> np.ndarray:
    """Sum of tracks, each with its gain in dB, over a floor of white noise.

    Args:
        tracks: ``(float32 [samples], gain in dB)``.
        noise_db: level of the noise below the reference loudness, in dB (negative).
        seed: of the noise.

    Returns:
        float32 ``[samples]``; scaled down where it would clip.
    """
    noise = np.random.default_rng(seed).standard_normal(samples, dtype=np.float32)
    total = noise * np.float32(REFERENCE_RMS * 10 ** (noise_db / 20))
    for wave_N, gain_db in tracks:
        total += wave_N * np.float32(10 ** (gain_db / 20))
    peak = float(np.abs(total).max(initial=0.0))
    return total / max(peak, 1.0)


def samples_of(seconds: float) -> int:
    """Number of samples in ``seconds`` at 16 kHz."""
    return round(seconds * SAMPLE_RATE)
