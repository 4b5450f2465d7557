"""Reader of OpenTTD's sound sets (``.cat``), the way OpenSFX ships its samples.

The layout follows OpenTTD ``src/sound.cpp``. All numbers are little endian. An index of pairs
(offset, length), whose first offset is also the index's own size; its top bit marks the newer
layout with complete WAVE records. At each offset stands a name (one byte of length, then that
many bytes, closed by a zero) and after it ``length`` bytes of RIFF WAVE. OpenSFX writes author
and licence into the name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAX_SAMPLES = 4096
MAX_SAMPLE_BYTES = 64 << 20

_NEW_LAYOUT = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sound of the set: its ``name`` as written in the file and its WAVE bytes."""

    name: str
    wave: bytes


def read_samples(data: bytes) -> list[Sample]:
    """All sounds of a set, in its order.

    Raises:
        ValueError: not a sound set, in the older layout without WAVE records, or damaged.
    """
    try:
        (first,) = struct.unpack_from("<I", data, 0)
        count, rest = divmod(first & ~_NEW_LAYOUT, 8)
        if not first & _NEW_LAYOUT or rest or not 0 < count <= MAX_SAMPLES:
            raise ValueError("not an OpenTTD sound set with WAVE records")
        return [_read_sample(data, number) for number in range(count)]
    except (struct.error, IndexError):
        raise ValueError("the sound set is damaged: an offset leads outside it") from None


def _read_sample(data: bytes, number: int) -> Sample:
    offset, length = struct.unpack_from("<II", data, 8 * number)
    offset &= ~_NEW_LAYOUT
    name_length = data[offset]
    start = offset + 1 + name_length
    wave = data[start : start + length]
    if length > MAX_SAMPLE_BYTES or len(wave) != length:
        raise ValueError(f"the sound set is damaged: sample {number} is cut off")
    if wave[:4] != b"RIFF" or wave[8:12] != b"WAVE":
        raise ValueError(f"the sound set is damaged: sample {number} is no WAVE record")
    name = data[offset + 1 : start].rstrip(b"\0").decode("utf-8", errors="replace")
    return Sample(name=name, wave=wave)
