"""Decoding and encoding of pictures and sound, in one place. Video is in ``video``.

Decoding is bounded: pixels, seconds and samples are checked from the header before anything is
unpacked, and once more while it is where a header can lie. Whatever a decoder does not like
becomes a ``ValueError`` of one line that is the same in every run. Nothing in a file leads to
another file or host. Encoding is pinned: the same input gives the same bytes on every machine
with the same package versions.

Shapes: H, W height and width in pixels; N samples; C channels.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from infra import mp4
from infra.resampling import SAMPLE_RATE as SAMPLE_RATE
from infra.resampling import resample as resample

MAX_PIXELS = 64_000_000
MAX_SECONDS = 3_600.0
# Of each channel: an hour at 48 kHz. What is held is one channel, 4 bytes a sample.
MAX_SAMPLES = 3_600 * 48_000
MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 1_000, 384_000
# Of all channels together, 64 MB. Large, because an MP3 rounds anew at the edge of each.
_BLOCK = 1 << 24
# After a jump into a file a decoder needs some packets until it is exact; Opus asks for 80 ms.
_SETTLING = 0.25

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_SOUND_FORMATS = {"WAV", "WAVEX", "FLAC", "OGG", "MP3"}
# As FFmpeg names its decoders. Those of the pictures are never opened.
_SOUND_CODECS = {"aac", "alac", "flac", "mp3", "mp3float", "opus", "libopus", "vorbis"}

# EXIF's orientation (tag 0x0112) -> what brings the picture upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> np.ndarray:
    """A picture as uint8 ``[H, W, 3]``, or ``[H, W, 4]`` where the file has transparency.

    As ``load_image``, which also says what is refused.
    """
    return np.asarray(load_image(data, max_pixels=max_pixels, upright=upright))


def load_image(data: bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """A picture for Pillow, RGB, or RGBA where the file has transparency.

    For what is cut out of or scaled: to an array and back takes half as long as decoding a JPEG.

    Of 16 bits the upper 8 are kept, of an animation the first frame; a colour profile is not
    applied.

    Args:
        upright: turn the picture as its EXIF orientation says. Masks and boxes that are published
            beside a photograph count its pixels as they are stored, so such photographs are read
            with False. COCO's format knows no orientation, and its tools never look at EXIF. Of
            Open Images 2.6% lie on their side; the ``Rotation`` in its tables turns pictures and
            boxes alike (storage.googleapis.com/openimages/web/2018-05-17-rotation-information).

    Raises:
        ValueError: not a PNG, JPEG, WebP, GIF or BMP, damaged, or more than ``max_pixels``.
    """
    image = _open_image(data, max_pixels)
    with _decoding("picture"):
        turn = _UPRIGHT.get(_orientation(image)) if upright else None
        # A 16-bit PNG gives its transparent colour in 16 bits and its pixels here in 8.
        key = image.info.get("transparency")
        if _is_deep_png(data) and key is not None:
            image.info["transparency"] = (
                key >> 8 if isinstance(key, int) else tuple(part >> 8 for part in key)
            )
        if image.mode.startswith("I;16"):
            info = image.info
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image.info = info
        has_alpha = "A" in image.getbands() or "transparency" in image.info
        mode = "RGBA" if has_alpha else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        return image if turn is None else image.transpose(turn)


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mask as bool ``[H, W]``, as it is stored: EXIF does not turn it.

    What is at least 128 of 255 in grey is inside. A file whose largest value (in a palette
    file, the largest index) is 1 and that shows nothing so bright counts 0 and 1: 1 is inside.

    Raises:
        ValueError: as for ``decode_image``.
    """
    image = _open_image(data, max_pixels)
    with _decoding("picture"):
        is_deep = image.mode.startswith("I;16")
        # Pillow copies what is grey already.
        grey = image if is_deep or image.mode == "L" else image.convert("L")
        grey_HW = np.asarray(grey)
        value_HW = np.asarray(image) if image.mode == "P" else grey_HW
        grey_HW = grey_HW >> 8 if is_deep else grey_HW
    if value_HW.max() == 1 and grey_HW.max() < 128:
        return value_HW == 1
    return grey_HW >= 128


def _open_image(data: bytes, max_pixels: int) -> Image.Image:
    with _decoding("picture"):
        image = Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"the picture has {image.width}x{image.height} pixels, "
            f"more than the {max_pixels} allowed"
        )
    with _decoding("picture"):
        image.load()
    if image.width * image.height == 0:
        raise ValueError("the picture has no pixels")
    return image


def _orientation(image: Image.Image) -> int:
    # Many a good photograph carries a damaged EXIF block: then it is shown as it is stored.
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _is_deep_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG") and data[24] == 16


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Decoders raise nearly anything on damaged files: here it becomes a ``ValueError``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except Exception as error:
        raise ValueError(f"the {what} cannot be decoded: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """A decoder's complaint in one line, without the addresses that no two runs share."""
    # FFmpeg's errors add to strerror what was logged last, by whichever thread.
    text = getattr(error, "strerror", None) or str(error)
    text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "it", " ".join(text.split()))
    return text[:120] or type(error).__name__


def resize_image(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of a uint8 picture (Pillow's, antialiased)."""
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    picture = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def encode_png(array: np.ndarray) -> bytes:
    """PNG of a uint8 ``[H, W]`` or ``[H, W, 3|4]`` picture, or of a bool mask as 0 and 255."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def encode_jpeg(picture: np.ndarray | Image.Image, *, quality: int = 95) -> bytes:
    """JPEG (4:4:4) of an RGB picture, uint8 ``[H, W, 3]`` or Pillow's."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    # Of the file that a picture comes from Pillow would take over the comment.
    image.save(buffer, format="JPEG", quality=quality, subsampling=0, comment=None)
    return buffer.getvalue()


def decode_audio(
    data: bytes, *, max_seconds: float = MAX_SECONDS, seconds: tuple[float, float] | None = None
) -> tuple[np.ndarray, int]:
    """Sound as float32 ``[N]``, channels averaged, and its sample rate in Hz.

    WAV, FLAC, Ogg and MP3 by libsndfile; the sound of MP4 (also m4a, mov) and of WebM and
    Matroska files by FFmpeg.

    Args:
        seconds: decode only this stretch ``(start, end)`` of the file.

    Raises:
        ValueError: not a sound, damaged, empty, or longer than ``max_seconds``; more than
            ``MAX_CHANNELS`` or ``MAX_SAMPLES``; a rate out of bounds; samples that are no finite
            numbers.
    """
    container = _container(data)
    with np.errstate(all="ignore"):
        if container:
            wave_N, rate = _decode_container(data, container, max_seconds, seconds)
        else:
            wave_N, rate = _decode_sound_file(data, max_seconds, seconds)
    if wave_N.size == 0:
        raise ValueError("the sound has no samples")
    if not np.isfinite(wave_N).all():
        raise ValueError("the sound has samples that are no finite numbers")
    return wave_N, rate


def _container(data: bytes) -> str:
    """FFmpeg's name of the container; empty for a file of sound alone."""
    if mp4.begins(data):
        return "mp4"
    return "matroska" if data[:4] == b"\x1a\x45\xdf\xa3" else ""


def _is_sound_file(data: bytes) -> bool:
    if data[:4] == b"RIFF":
        return data[8:12] == b"WAVE"
    is_mp3 = data[:3] == b"ID3" or (data[:1] == b"\xff" and data[1:2] >= b"\xe0")
    return is_mp3 or data[:4] in (b"fLaC", b"OggS")


def _check_sound(rate: int, channels: int, length: float, max_seconds: float) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(
            f"the sound has a rate of {rate} Hz, out of the {MIN_RATE} to {MAX_RATE} Hz allowed"
        )
    if channels > MAX_CHANNELS:
        raise ValueError(f"the sound has {channels} channels, more than the {MAX_CHANNELS} allowed")
    if length > max_seconds:
        raise ValueError(
            f"the sound lasts {length:.0f} s, more than the {max_seconds:.0f} s allowed"
        )


def _check_samples(count: int) -> None:
    if count > MAX_SAMPLES:
        raise ValueError(
            f"the sound has more than the {MAX_SAMPLES} samples allowed: read a stretch of it"
        )


def _decode_sound_file(
    data: bytes, max_seconds: float, seconds: tuple[float, float] | None
) -> tuple[np.ndarray, int]:
    import soundfile

    # libsndfile would also guess at many an old format that nobody needs here.
    if not _is_sound_file(data):
        raise ValueError(
            "the sound cannot be decoded: it is no WAV, FLAC, Ogg, MP3, MP4 or WebM file"
        )
    with _decoding("sound"):
        file = soundfile.SoundFile(io.BytesIO(data))
    with file:
        if file.format not in _SOUND_FORMATS:
            raise ValueError(f"the sound cannot be decoded: {file.format} files are not read")
        rate = int(file.samplerate)
        _check_sound(rate, file.channels, file.frames / max(rate, 1), max_seconds)
        first, last = 0, file.frames
        if seconds is not None:
            first = min(int(seconds[0] * rate), file.frames)
            last = min(math.ceil(seconds[1] * rate), file.frames)
        _check_samples(last - first)
        pieces: list[np.ndarray] = []
        block = _BLOCK // file.channels
        with _decoding("sound"):
            file.seek(first)
            # In blocks, because a header may promise more than there is.
            while first < last:
                block_NC = file.read(min(last - first, block), dtype="float32", always_2d=True)
                if not len(block_NC):
                    break
                # The mean of one channel takes a while, and is that channel.
                is_mono = file.channels == 1
                pieces.append(
                    block_NC[:, 0] if is_mono else block_NC.mean(axis=1, dtype=np.float32)
                )
                first += len(block_NC)
    return _joined(pieces), rate


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _decode_container(
    data: bytes, container: str, max_seconds: float, seconds: tuple[float, float] | None
) -> tuple[np.ndarray, int]:
    import av

    if container == "mp4" and mp4.packets_claimed(data) > mp4.MAX_PACKETS:
        raise ValueError(f"the sound has more than the {mp4.MAX_PACKETS} packets allowed")
    # The container is named, so no play list is opened; no protocol is allowed; and looking for
    # streams opens no decoder but those of sound.
    options = {"protocol_whitelist": "none", "codec_whitelist": ",".join(sorted(_SOUND_CODECS))}
    with _decoding("sound"):
        # What the tags say does not matter, so neither does how it is spelled.
        file: Any = av.open(
            io.BytesIO(data), format=container, options=options, metadata_errors="ignore"
        )
    with file:
        if not file.streams.audio:
            raise ValueError("the sound cannot be decoded: the file holds no sound")
        stream = file.streams.audio[0]
        with _decoding("sound"):
            codec, length = stream.codec_context, (file.duration or 0) / av.time_base
        if codec is None or codec.name not in _SOUND_CODECS:
            raise ValueError("the sound cannot be decoded: its codec is not read here")
        rate = codec.sample_rate
        _check_sound(rate, codec.channels, length, max_seconds)
        start, end = seconds or (0.0, math.inf)
        if start > _SETTLING:
            with _decoding("sound"):
                file.seek(int((start - _SETTLING) / stream.time_base), stream=stream)
        decoded, pieces = 0, []
        for time, rate, block_N in _container_blocks(file, stream):
            decoded += block_N.size
            # The last packet is padded: a second more than the header says is nothing.
            _check_sound(rate, 1, decoded / rate - 1, max_seconds)
            _check_samples(decoded)
            if time >= end:
                break
            if seconds is not None:
                at = round(time * rate)
                first, last = int(start * rate), math.ceil(end * rate)
                block_N = block_N[max(first - at, 0) : max(last - at, 0)]
            pieces.append(block_N)
    return _joined(pieces), rate


def _container_blocks(file: Any, stream: Any) -> Iterator[tuple[float, int, np.ndarray]]:
    """``(time in seconds of the first sample, rate, float32 [N])`` for each packet's sound."""
    import av

    with _decoding("sound"):
        resampler = None
        for frame in file.decode(stream):
            # Only to floats: rate and channels stay. A file that changes them midway is refused.
            resampler = resampler or av.AudioResampler("fltp", frame.layout, frame.sample_rate)
            for piece in resampler.resample(frame):
                block_CN = piece.to_ndarray()
                yield piece.time or 0.0, piece.sample_rate, block_CN.mean(axis=0, dtype=np.float32)


def to_pcm16(wave_N: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] as int16; what lies outside is clipped."""
    if wave_N.dtype == np.int16:
        return wave_N
    return np.rint(np.clip(wave_N, -1.0, 1.0) * 32767.0).astype(np.int16)


def encode_flac(wave_N: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    """FLAC, one channel, 16 bit."""
    return _encode_sound(wave_N, rate, "FLAC")


def encode_wav(wave_N: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    """WAV, one channel, 16 bit."""
    return _encode_sound(wave_N, rate, "WAV")


def _encode_sound(wave_N: np.ndarray, rate: int, container: str) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, to_pcm16(wave_N), rate, format=container, subtype="PCM_16")
    return buffer.getvalue()
