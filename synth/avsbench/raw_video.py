"""Frames of a raw video, chosen as AVSBench chose them.

Of second l it takes frame ``int((l + 15/16) * rate)``, the rate rounded to a whole number, and the
last frame where the video ends before (preprocess_scripts/preprocess_*.py). It squashes them to
224x224 by OpenCV; here it is Pillow, whose averaging is smoother by a little.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from infra import media, video

# The last of 16 equal parts of a second.
_PART = 15 / 16


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
            pictures, _ = video.read_video(Path(file.name), max_seconds=max_seconds)
            frames = []
            for image_HW3 in chosen(pictures, count):
                if side is not None:
                    image_HW3 = media.resize_image(image_HW3, side, side)
                frames.append(media.encode_png(image_HW3))
        except ValueError as error:
            # The name of the temporary file is another one in every run.
            raise ValueError(f"unreadable: {str(error).replace(file.name, path)}") from None
    if not frames:
        raise ValueError(f"unreadable: {path} has no pictures")
    return frames


def chosen(pictures: Iterable[tuple[float, np.ndarray]], count: int) -> Iterator[np.ndarray]:
    """One picture for each of ``count`` seconds; none where there are no pictures.

    Args:
        pictures: time in seconds and picture, in the order of time. No more are taken than are
            needed, and one is held at a time.
    """
    second = 0
    first = 0.0
    held: np.ndarray | None = None
    for number, (moment, image_HW3) in enumerate(pictures):
        if held is None:
            first = moment
        elif moment > first:
            rate = max(round(number / (moment - first)), 1)
            # Taken once the one behind it has come: only then is the rate known at the start.
            while second < count and number > int((second + _PART) * rate):
                yield held
                second += 1
        if second == count:
            return
        held = image_HW3
    if held is not None:
        for _ in range(count - second):
            yield held
