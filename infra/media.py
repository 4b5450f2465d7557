"""Decoding and encoding of pictures, sound and video, in one place.

Decoding is bounded: size, pixels and seconds are checked from the header before anything is
unpacked, and whatever a decoder does not like becomes a ``ValueError`` that says so. Encoding is
pinned: the same input gives the same bytes on every machine with the same package versions.

Shapes: H, W height and width in pixels; N samples; T frames.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SAMPLE_RATE = 16_000

MAX_PIXELS = 64_000_000
MAX_SECONDS = 3_600.0
# Of all channels together: a few kilobytes of FLAC can hold hours in eight channels.
_MAX_SAMPLES_PER_SECOND = 2 * 192_000
_VIDEO_FORMATS = {"mp4", "mov", "matroska", "webm", "avi", "mpeg", "mpegts"}
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture as uint8 ``[H, W, 3]``, or ``[H, W, 4]`` where the file has transparency.

    Raises:
        ValueError: not a picture, damaged, or more than ``max_pixels``.
    """
    with _open_image(data, max_pixels) as image:
        has_alpha = "A" in image.getbands() or "transparency" in image.info
        return np.asarray(image.convert("RGBA" if has_alpha else "RGB"))


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mask as bool ``[H, W]``: what is at least 128 of 255 in grey is inside."""
    with _open_image(data, max_pixels) as image:
        return np.asarray(image.convert("L")) >= 128


def _open_image(data: bytes, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise ValueError(
                    f"the picture has {image.width}x{image.height} pixels, "
                    f"more than the {max_pixels} allowed"
                )
            image.load()
            return image
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ValueError(f"the picture cannot be decoded: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """A decoder's complaint in one line, without the addresses that no two runs share."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "it", " ".join(str(error).split()))
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


def encode_jpeg(array: np.ndarray, *, quality: int = 95) -> bytes:
    """JPEG (4:4:4) of a uint8 ``[H, W, 3]`` picture."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def decode_audio(
    data: bytes, *, max_seconds: float = MAX_SECONDS, seconds: tuple[float, float] | None = None
) -> tuple[np.ndarray, int]:
    """Sound as float32 ``[N]``, channels averaged, and its sample rate in Hz.

    Args:
        seconds: decode only this stretch ``(start, end)`` of the file.

    Raises:
        ValueError: not a sound, damaged, empty, or longer than ``max_seconds``.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            length = file.frames / max(rate, 1)
            if length > max_seconds:
                raise ValueError(
                    f"the sound lasts {length:.0f} s, more than the {max_seconds:.0f} s allowed"
                )
            if file.frames * file.channels > max_seconds * _MAX_SAMPLES_PER_SECOND:
                raise ValueError(
                    f"the sound has {file.frames} samples in each of {file.channels} channels, "
                    "more than are allowed"
                )
            first, last = 0, file.frames
            if seconds is not None:
                first = min(int(seconds[0] * rate), file.frames)
                last = min(math.ceil(seconds[1] * rate), file.frames)
            file.seek(first)
            wave_NC = file.read(last - first, dtype="float32", always_2d=True)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the sound cannot be decoded: {_reason(error)}") from None
    if wave_NC.shape[0] == 0:
        raise ValueError("the sound has no samples")
    wave_N = wave_NC.mean(axis=1, dtype=np.float32)
    if not np.isfinite(wave_N).all():
        raise ValueError("the sound has samples that are no finite numbers")
    return wave_N, rate


def resample(wave_N: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Polyphase resampling to ``target`` Hz, float32."""
    if rate == target:
        return wave_N.astype(np.float32, copy=False)
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, target)
    return np.asarray(resample_poly(wave_N, target // divisor, rate // divisor), dtype=np.float32)


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


def encode_mask_rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths: ``{"size": [h, w], "counts": str}``."""
    from pycocotools import mask as coco_mask

    run_lengths = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(n) for n in mask_HW.shape], "counts": run_lengths["counts"].decode()}


def decode_mask_rle(run_lengths: dict[str, Any]) -> np.ndarray:
    """bool ``[H, W]`` from COCO's compressed run lengths.

    Raises:
        ValueError: they are no run lengths of a mask of that size.
    """
    from pycocotools import mask as coco_mask

    height, width = run_lengths["size"]
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a mask of {height}x{width} pixels is out of bounds")
    coded = {"size": [height, width], "counts": run_lengths["counts"].encode()}
    mask_HW = np.asarray(coco_mask.decode(coded)).astype(bool)
    # Runs that end too early leave the decoder's memory as it was.
    if encode_mask_rle(mask_HW)["counts"] != run_lengths["counts"]:
        raise ValueError(f"the run lengths do not fill a mask of {height}x{width} pixels")
    return mask_HW


def read_video(
    source: str | Path, *, max_seconds: float = MAX_SECONDS
) -> tuple[Iterator[tuple[float, np.ndarray]], tuple[np.ndarray, int]]:
    """Frames and sound of a video file.

    Returns:
        an iterator of ``(time in seconds, uint8 [H, W, 3])``, and ``(float32 [N], rate)``; a
        video without sound has N = 0.

    Raises:
        ValueError: not a video, or longer than ``max_seconds``.
    """
    import av

    try:
        with _open_video(source) as container:
            if not container.streams.video:
                raise ValueError(f"{source} has no pictures: give a video file")
            picture = container.streams.video[0]
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"{source} has frames of {picture.width}x{picture.height} pixels, more than "
                    f"the {MAX_PIXELS} allowed"
                )
            length = (container.duration or 0) / 1_000_000
            if length > max_seconds:
                raise ValueError(
                    f"{source} lasts {length:.0f} s, more than the {max_seconds:.0f} s allowed"
                )
            sound = _read_video_sound(container, max_seconds)
    except av.FFmpegError as error:
        raise ValueError(f"{source} cannot be decoded as a video: {error.strerror}") from None
    return _video_frames(source, max_seconds), sound


def _open_video(source: str | Path) -> Any:
    """A container that is a file of its own: a playlist could lead to other files or hosts."""
    import av

    container = av.open(str(source), options={"protocol_whitelist": "file"})
    kinds = set(container.format.name.split(","))
    if not kinds & _VIDEO_FORMATS:
        container.close()
        raise ValueError(
            f"{source} is a {container.format.name} file: give one of "
            + ", ".join(sorted(_VIDEO_FORMATS))
        )
    return container


def _read_video_sound(container: Any, max_seconds: float) -> tuple[np.ndarray, int]:
    import av

    if not container.streams.audio:
        return np.zeros(0, np.float32), SAMPLE_RATE
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    pieces: list[np.ndarray] = []
    budget = int(max_seconds * SAMPLE_RATE)
    for frame in container.decode(container.streams.audio[0]):
        for piece in resampler.resample(frame):
            pieces.append(piece.to_ndarray().reshape(-1))
            budget -= pieces[-1].size
        if budget < 0:
            break
    pieces += [piece.to_ndarray().reshape(-1) for piece in resampler.resample(None)]
    wave_N = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return wave_N.astype(np.float32), SAMPLE_RATE


def _video_frames(source: str | Path, max_seconds: float) -> Iterator[tuple[float, np.ndarray]]:
    import av

    try:
        with _open_video(source) as container:
            for frame in container.decode(container.streams.video[0]):
                if frame.time is not None and frame.time > max_seconds:
                    return
                yield float(frame.time or 0.0), frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise ValueError(f"{source} is damaged in the middle: {error.strerror}") from None


def write_video(
    target: Path, frames: Sequence[np.ndarray], *, rate: int, wave_N: np.ndarray | None = None
) -> None:
    """An H.264 mp4 of uint8 ``[H, W, 3]`` frames (even sides) at ``rate`` frames a second.

    ``wave_N``: 16 kHz mono sound to lay under it.
    """
    import av

    target.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"video frames need even sides, got {width}x{height}")
    with av.open(str(target), "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound: Any = None
        if wave_N is not None:
            sound = container.add_stream("aac", rate=SAMPLE_RATE)
            sound.layout = "mono"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None and wave_N is not None:
            block = av.AudioFrame.from_ndarray(
                to_pcm16(wave_N)[None, :], format="s16", layout="mono"
            )
            block.sample_rate = SAMPLE_RATE
            container.mux(sound.encode(block))
            container.mux(sound.encode(None))
