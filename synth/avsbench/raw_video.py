"""Frames of a raw video, chosen as AVSBench chose them.

``infra.video.frames_a_second`` says which they are. The benchmark squashes them to 224x224 by
OpenCV (preprocess_scripts/preprocess_*.py); here it is Pillow, whose averaging is smoother by a
little.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from infra import media, video


def frames_of(
    data: bytes, path: str, count: int, *, side: int | None, max_seconds: float
) -> list[bytes]:
    """PNGs of ``count`` frames, one a second.

    Args:
        path: for the errors.
        side: height and width that they are squashed to; None keeps the video's own size.

    Raises:
        ValueError: begins with ``unreadable:``. The video cannot be decoded or has no pictures.
    """
    with tempfile.NamedTemporaryFile(prefix="save-", suffix=".mp4") as file:
        file.write(data)
        file.flush()
        try:
            (pictures, rate), _ = video.read_video(Path(file.name), max_seconds=max_seconds)
            frames = []
            for image_HW3 in video.frames_a_second(pictures, count, rate=rate):
                if side is not None:
                    image_HW3 = media.resize_image(image_HW3, side, side)
                frames.append(media.encode_png(image_HW3))
        except ValueError as error:
            # The name of the temporary file is another one in every run.
            raise ValueError(f"unreadable: {str(error).replace(file.name, path)}") from None
    if not frames:
        raise ValueError(f"unreadable: {path} has no pictures")
    return frames
