"""Sound at another rate."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

SAMPLE_RATE = 16_000
"""Hz, of every sound in a corpus."""


def resample(wave_N: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Polyphase resampling to ``target`` Hz, float32."""
    if rate == target:
        return wave_N.astype(np.float32, copy=False)
    from scipy.signal import resample_poly

    up, down = target // math.gcd(rate, target), rate // math.gcd(rate, target)
    wave_N = wave_N.astype(np.float32, copy=False)
    return np.asarray(resample_poly(wave_N, up, down, window=_low_pass(max(up, down))))


@lru_cache(maxsize=8)
def _low_pass(ratio: int) -> np.ndarray:
    """scipy's own filter, whose design takes as long as resampling a second with it."""
    from scipy.signal import firwin

    return firwin(20 * ratio + 1, 1 / ratio, window=("kaiser", 5.0)).astype(np.float32)
