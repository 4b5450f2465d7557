"""The codecs alone: what a run of synthesis decodes and encodes, again and without the rest."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import soundfile
from PIL import Image

from infra import media


def bare_decode_image(data: bytes, **_: Any) -> Callable[[], object]:
    return lambda: Image.open(io.BytesIO(data)).load()


def bare_decode_audio(
    data: bytes, *, seconds: tuple[float, float] | None = None, **_: Any
) -> Callable[[], object]:
    def decode() -> None:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            begin, end = seconds or (0.0, file.frames / file.samplerate)
            file.seek(int(begin * file.samplerate))
            file.read(math.ceil((end - begin) * file.samplerate), dtype="float32")

    return decode


def bare_encode_jpeg(image: np.ndarray | Image.Image, *, quality: int) -> Callable[[], object]:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return lambda: picture.save(io.BytesIO(), "JPEG", quality=quality, subsampling=0)


def bare_encode_png(array: np.ndarray) -> Callable[[], object]:
    picture = Image.fromarray(array.astype(np.uint8) * 255)
    return lambda: picture.save(io.BytesIO(), "PNG", compress_level=6)


def bare_encode_flac(wave_N: np.ndarray) -> Callable[[], object]:
    pcm_N = media.to_pcm16(wave_N)
    return lambda: soundfile.write(
        io.BytesIO(), pcm_N, media.SAMPLE_RATE, format="FLAC", subtype="PCM_16"
    )


BARE: dict[str, Callable[..., Callable[[], object]]] = {
    "load_image": bare_decode_image,
    "decode_audio": bare_decode_audio,
    "encode_jpeg": bare_encode_jpeg,
    "encode_png": bare_encode_png,
    "encode_flac": bare_encode_flac,
}


@contextmanager
def recorded(*, whole: bool = False) -> Iterator[list[Callable[[], object]]]:
    """The bare forms of whatever is decoded and encoded while it lasts.

    Args:
        whole: where a stretch of a file is decoded, decode all of it.
    """
    calls: list[Callable[[], object]] = []

    def noted(name: str) -> Callable[..., Any]:
        real, bare = getattr(media, name), BARE[name]

        def note(*args: Any, **more: Any) -> Any:
            told = {key: value for key, value in more.items() if key != "seconds" or not whole}
            calls.append(bare(*args, **told))
            return real(*args, **more)

        return note

    with ExitStack() as stack:
        for name in BARE:
            stack.enter_context(mock.patch.object(media, name, noted(name)))
        yield calls
