"""Video files: reading their frames and sound, a frame for each second, and writing H.264.

Shapes: H, W height and width in pixels; N samples.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from infra import mp4
from infra.media import MAX_PIXELS, MAX_SECONDS, SAMPLE_RATE, to_pcm16

# FFmpeg's names: of what begins as an MP4, and of the rest.
_MP4, _OTHERS = ("mov", "mp4"), ("avi", "matroska", "mpeg", "mpegts", "webm")

# Of the 16 equally spaced frames of a second, AVSBench keeps the last.
_PART = 15 / 16


def read_video(
    source: str | Path, *, max_seconds: float = MAX_SECONDS
) -> tuple[tuple[Iterator[tuple[float, np.ndarray]], float | None], tuple[np.ndarray, int]]:
    """Frames and sound of a video file, each with its rate.

    Returns:
        ``(iterator of (time in seconds, uint8 [H, W, 3]), frames a second)``, the rate being None
        where the file does not tell; and ``(float32 [N], samples a second)``, where a video
        without sound has N = 0.

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
            rate = float(picture.guessed_rate) if picture.guessed_rate else None
            sound = _read_video_sound(container, max_seconds)
    except av.FFmpegError as error:
        raise ValueError(f"{source} cannot be decoded as a video: {error.strerror}") from None
    return (_video_frames(source, max_seconds), rate), sound


def _open_video(source: str | Path) -> Any:
    """A container that is a file of its own: a play list could lead to other files or hosts."""
    import av

    formats = _MP4 if _is_mp4(source) else _OTHERS
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(formats)}
    try:
        # What the tags say does not matter, so neither does how it is spelled.
        return av.open(str(source), options=options, metadata_errors="ignore")
    except av.FFmpegError as error:
        raise ValueError(
            f"{source} cannot be opened as a video ({error.strerror}): give one of "
            + ", ".join(sorted((*_MP4, *_OTHERS)))
        ) from None


def _is_mp4(source: str | Path) -> bool:
    """Whether it begins as one; ValueError where it claims more packets than are made room for."""
    try:
        with Path(source).open("rb") as file:
            if not mp4.begins(file.read(8)):
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                claimed = mp4.packets_claimed(data)
    except OSError as error:
        raise ValueError(f"{source} cannot be opened as a video ({error.strerror})") from None
    if claimed > mp4.MAX_PACKETS:
        raise ValueError(f"{source} claims more than the {mp4.MAX_PACKETS} packets allowed")
    return True


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


def frames_a_second(
    pictures: Iterable[tuple[float, np.ndarray]],
    count: int | None = None,
    *,
    rate: float | None = None,
) -> Iterator[np.ndarray]:
    """One frame for each second, the one that AVSBench takes.

    Of second l that is frame ``int((l + 15/16) * rate)``, and the last one where the video ends
    before (its preprocess_scripts/preprocess_s4.py). AVSBench, which knows how many seconds it
    wants, rounds the rate: with ``count``, 24 s at 12.5 frames a second are 26 of 12. It reads
    through FFmpeg, which makes the rate constant: where frames are left out, the one before stands
    in.

    Args:
        pictures: time in seconds and picture, in the order of time. No more are taken than are
            needed, and one is held at a time.
        count: of AVSBench's seconds. By default as many real ones as the video has, the last one
            if at least half of it is there.
        rate: frames a second, as ``read_video`` gives it; by default, that of the frames so far.
    """
    second = number = 0
    first, whole = 0.0, 1.0
    held: np.ndarray | None = None
    for order, (moment, image_HW3) in enumerate(pictures):
        if held is None:
            first = moment
        elif moment > first:
            pace = rate or order / (moment - first)
            # AVSBench rounds what FFmpeg prints, two decimals: 12.5 is 12, however it was counted.
            whole = pace if count is None else max(round(round(pace, 2)), 1)
            number = round((moment - first) * pace)
            # Taken once one behind it has come: only then is it known that none comes in between.
            while number > int((second + _PART) * whole):
                yield held
                second += 1
                if second == count:
                    return
        held = image_HW3
    if held is None:
        return
    if count is None:
        half_there = 2 * (number + 1 - second * whole) >= whole
        count = second + 1 if half_there or second == 0 else second
    for _ in range(count - second):
        yield held


def write_video(
    target: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: int | Fraction,
    wave_N: np.ndarray | None = None,
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
