"""OpenTTD sound sets, made here byte by byte."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from infra import media
from synth.sources.openttd_sounds import read_samples


def made_set(samples: list[tuple[str, bytes]], *, flag: int = 1 << 31) -> bytes:
    index, body = b"", b""
    start = 8 * len(samples)
    for name, wave in samples:
        written = name.encode() + b"\0"
        index += struct.pack("<II", (start + len(body)) | flag, len(wave))
        body += bytes([len(written)]) + written + wave + bytes([1]) + b"\0"
    return index + body


def wave(seed: int) -> bytes:
    noise_N = np.random.default_rng(seed).uniform(-0.5, 0.5, 800).astype(np.float32)
    return media.encode_wav(noise_N, 8000)


def test_every_sample_is_read_with_its_name() -> None:
    waves = [wave(0), wave(1), wave(2)]
    data = made_set([("Cow", waves[0]), ('"Horse". By A.', waves[1]), ("", waves[2])])
    samples = read_samples(data)
    assert [sample.name for sample in samples] == ["Cow", '"Horse". By A.', ""]
    assert [sample.wave for sample in samples] == waves
    assert media.decode_audio(samples[1].wave)[1] == 8000


def test_what_is_no_sound_set_is_an_error() -> None:
    whole = made_set([("Cow", wave(0)), ("Dog", wave(1))])
    for data, words in (
        (b"", "damaged"),
        (b"RIFF0000WAVE", "not an OpenTTD sound set"),
        (made_set([("Cow", wave(0))], flag=0), "not an OpenTTD sound set"),
        (whole[:-700], "cut off"),
        (whole[:12], "damaged"),
        (made_set([("Cow", b"no wave at all")]), "no WAVE record"),
        (struct.pack("<II", 0xFFFFFFF8, 8), "not an OpenTTD sound set"),
    ):
        with pytest.raises(ValueError, match=words):
            read_samples(data)
