"""Video files: reading their frames and sound, and writing H.264.

Shapes: H, W height and width in pixels; N samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.media import MAX_PIXELS, MAX_SECONDS, SAMPLE_RATE, to_pcm16

_FORMATS = ("avi", "matroska", "mov", "mp4", "mpeg", "mpegts", "webm")


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
            if picture.codec_context is None:
                raise ValueError(f"{source} has pictures of an unknown codec: save it as H.264")
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
    """A container that is a file of its own: a play list could lead to other files or hosts."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
    try:
        # What the tags say does not matter, so neither does how it is spelled.
        return av.open(str(source), options=options, metadata_errors="ignore")
    except av.FFmpegError as error:
        raise ValueError(
            f"{source} cannot be opened as a video ({error.strerror}): give one of "
            + ", ".join(_FORMATS)
        ) from None


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
            picture = container.streams.video[0]
            # The size may change on the way, whatever the header says.
            picture.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for frame in container.decode(picture):
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
