"""Making a soundtrack from clips: cutting, looping, levels and mixing at 16 kHz.

Shape: N samples, float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infra.media import SAMPLE_RATE
from synth.tables import Clip

# Clips come at every loudness; they are brought to this RMS before a drawn gain is applied.
REFERENCE_RMS = 0.1
DIGITAL_SILENCE_DB = -120.0
"""Level of a sound of zeros; 16-bit noise alone has -101."""
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
    return level(wave_N[loud[0] : loud[-1] + 1])


def level(wave_N: np.ndarray) -> np.ndarray:
    """The sound at the reference loudness, float32; digital silence stays silent."""
    rms = float(np.sqrt(np.mean(np.square(wave_N, dtype=np.float64))))
    return (wave_N * (REFERENCE_RMS / rms)).astype(np.float32) if rms else wave_N


def loudest_second(wave_N: np.ndarray, rate: int) -> float:
    """Where the second with the most energy begins, in seconds to a tenth; 0 in a shorter sound."""
    hop = max(1, rate // 10)
    blocks = np.square(wave_N[: wave_N.size // hop * hop], dtype=np.float64).reshape(-1, hop)
    if len(blocks) <= 10:
        return 0.0
    total = np.concatenate([[0.0], np.cumsum(blocks.sum(1))])
    return int(np.argmax(total[10:] - total[:-10])) * hop / rate


def window(clip: Clip, seconds: float, start: float) -> float:
    """Where a stretch of ``seconds`` begins that holds the clip's loudest second.

    Args:
        start: which of the possible ones, 0 the earliest to 1 the latest.
    """
    first = max(0.0, clip.loudest + 1.0 - seconds)
    last = min(clip.loudest, clip.seconds - seconds)
    return max(0.0, min(first, last) + start * abs(last - first))


def loudness_db(wave_N: np.ndarray) -> float:
    """RMS in dB of full scale, ``DIGITAL_SILENCE_DB`` at the least."""
    rms = float(np.sqrt(np.mean(np.square(wave_N, dtype=np.float64))))
    return max(20.0 * float(np.log10(max(rms, 1e-9))), DIGITAL_SILENCE_DB)


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
