"""Masks of what sounds, in one's own video or in a photo with a sound.

A video is looked at once a second, as AVSBench does: second l is answered from the frame that
``infra.video.frames_a_second`` takes and the 0.96 s of sound that begin nearest to it. A photo is
answered with the loudest example of its sound.

Shapes: T seconds, H x W pixels, S the side of the model's input, N samples of sound, M mels of an
example (96), F mel bands (64).
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from infra import media, registry, storage
from infra.config import main
from infra.video import frames_a_second, read_video, write_video
from model import SAVE
from training.evaluation import predict_clip
from training.models import load_model
from training.overlay import overlay
from training.samples import EXAMPLE_HOP, EXAMPLE_SAMPLES, clip_log_mel, normalise_image

log = logging.getLogger("predict")

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
# The overlay video is scaled down to this; masks keep the video's own size.
OVERLAY_SIDE = 640
PADDING = (124, 116, 104)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What is looked at, with which model, and where the answer goes."""

    model: str
    """A model folder (path or s3://), models:/name@alias, or runs:/<run id>/model."""
    input: str
    """A video, or a photo together with ``sound``."""
    output: str
    """The folder that the masks and the overlay are written to."""
    sound: str | None = None
    """The sound of a photo; for a video, in place of its own."""
    fit: Literal["squash", "letterbox"] = "squash"
    """How a frame becomes square: squashed, as in training, or padded, its shape kept."""
    max_seconds: float = 300.0
    """Longer videos and sounds are refused."""
    tracking: str | None = None
    """The registry of models:/ and runs:/; $MLFLOW_TRACKING_URI or sqlite:///runs/mlflow.db."""
    sam_checkpoint: str | None = None
    """SAM's published weights (path or URI), for a model that stands on them."""
    vggish_checkpoint: str | None = None
    """VGGish's published weights, likewise."""


def predict(config: PredictConfig) -> dict[str, Any]:
    """Write the masks of what sounds, and an overlay, for a video or a photo with a sound.

    Raises:
        ValueError: an input cannot be read, or a photo comes without a sound.
        FileNotFoundError: an input or the model does not exist.
    """
    is_video = Path(config.input).suffix.lower() in VIDEOS
    if not is_video and config.sound is None:
        raise ValueError(
            f"{config.input} is no video ({', '.join(VIDEOS)}); for a photo, name its sound too "
            "with --sound"
        )
    with _local(config.input) as source:
        if is_video:
            (pictures, frame_rate), (wave_N, rate) = read_video(
                source, max_seconds=config.max_seconds
            )
            frames = frames_a_second(pictures, rate=frame_rate)
        else:
            frames = iter([_photo(config.input)])
        if config.sound is not None:
            wave_N, rate = _sound(config.sound, config.max_seconds)
        wave_N = media.resample(wave_N, rate)
        if is_video and not wave_N.size:
            log.warning("%s has no sound: answered as for silence", config.input)
        elif not is_video:
            wave_N = loudest_example(wave_N)
        model = load_model(
            registry.resolve(config.model, config.tracking),
            sam_checkpoint=config.sam_checkpoint,
            vggish_checkpoint=config.vggish_checkpoint,
        ).to("cuda" if torch.cuda.is_available() else "cpu")
        return _answer(config, model, frames, wave_N, is_video=is_video)


def _answer(
    config: PredictConfig,
    model: SAVE,
    frames: Iterable[np.ndarray],
    wave_N: np.ndarray,
    *,
    is_video: bool,
) -> dict[str, Any]:
    count = max(0, len(wave_N) - EXAMPLE_SAMPLES) // EXAMPLE_HOP + 1
    log_mel_T1MF = clip_log_mel(wave_N, count)
    covered: list[float] = []
    shown: list[np.ndarray] = []
    forward_seconds = 0.0
    for second, image_HW3 in enumerate(frames):
        # The last example stands in for the seconds that the sound does not reach.
        log_mel_1MF = log_mel_T1MF[min(example_of(second), len(log_mel_T1MF) - 1)]
        started = time.monotonic()
        mask_HW = predict_frame(model, image_HW3, log_mel_1MF, config.fit)
        forward_seconds += time.monotonic() - started
        path = storage.join(config.output, f"mask{second:05d}.png")
        storage.write_bytes(path, media.encode_png(mask_HW))
        covered.append(round(float(mask_HW.mean()), 4))
        image_HW3 = overlay(image_HW3, mask_HW)
        shown.append(_even(image_HW3) if is_video else image_HW3)
    if not shown:
        raise ValueError(f"{config.input} holds no frame: give another video")
    target = storage.join(config.output, "overlay.mp4" if is_video else "overlay.png")
    if is_video:
        with tempfile.TemporaryDirectory() as folder:
            video = Path(folder) / "overlay.mp4"
            write_video(video, shown, rate=1, wave_N=wave_N if wave_N.size else None)
            storage.upload(video, target)
    else:
        storage.write_bytes(target, media.encode_png(shown[0]))
    return {
        "input": config.input,
        "model": config.model,
        "frames": len(covered),
        "covered": covered,
        "silent": not bool(np.any(wave_N)),
        "masks": storage.normalise(config.output),
        "overlay": target,
        "forward_seconds": round(forward_seconds, 3),
        "frames_per_second": round(len(covered) / max(forward_seconds, 1e-9), 2),
    }


def example_of(second: int) -> int:
    """The example of the sound that a second is answered with: that which begins nearest to it.

    In the first twelve seconds, so in all of AVSBench, it has the second's own number; examples
    are 0.96 s apart, and would be heard ever earlier.
    """
    return round(second * media.SAMPLE_RATE / EXAMPLE_HOP)


def loudest_example(wave_N: np.ndarray) -> np.ndarray:
    """The stretch of one example (0.975 s) that holds the most energy, on the examples' grid."""
    starts = range(0, max(1, len(wave_N) - EXAMPLE_SAMPLES + 1), EXAMPLE_HOP)
    loudest = max(starts, key=lambda first: _energy(wave_N[first : first + EXAMPLE_SAMPLES]))
    return wave_N[loudest : loudest + EXAMPLE_SAMPLES]


def _energy(wave_N: np.ndarray) -> float:
    return float(np.square(wave_N, dtype=np.float64).sum())


def predict_frame(
    model: SAVE, image_HW3: np.ndarray, log_mel_1MF: Tensor, fit: Literal["squash", "letterbox"]
) -> np.ndarray:
    """The mask of what sounds in a frame of any size, bool ``[H, W]``."""
    height, width = image_HW3.shape[:2]
    # Padded at the right and below, with the grey that normalisation turns into nearly 0.
    square = (max(height, width),) * 2 if fit == "letterbox" else (height, width)
    filled_HW3 = np.full((*square, 3), PADDING, np.uint8)
    filled_HW3[:height, :width] = image_HW3
    image_3SS = normalise_image(filled_HW3, model.config.image_size)
    logits_1HW = predict_clip(model, image_3SS[None], log_mel_1MF[None], square)
    return np.asarray(logits_1HW[0, :height, :width].sigmoid() > 0.5)


def _even(image_HW3: np.ndarray) -> np.ndarray:
    """At most ``OVERLAY_SIDE`` pixels and even sides, as H.264 wants them."""
    height, width = image_HW3.shape[:2]
    scale = min(1.0, OVERLAY_SIDE / max(height, width))
    sides = (max(2, round(side * scale / 2) * 2) for side in (height, width))
    return media.resize_image(image_HW3, *sides)


def _photo(uri: str) -> np.ndarray:
    try:
        return media.decode_image(storage.read_bytes(uri))[..., :3]
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from None


def _sound(uri: str, max_seconds: float) -> tuple[np.ndarray, int]:
    try:
        return media.decode_audio(storage.read_bytes(uri), max_seconds=max_seconds)
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from None


@contextmanager
def _local(uri: str) -> Iterator[Path]:
    """The input as a local file."""
    if not storage.exists(uri):
        raise FileNotFoundError(f"{uri} does not exist: check the path or URI")
    place = storage.normalise(uri)
    if not place.startswith("s3://"):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / place.rsplit("/", 1)[-1]
        storage.download(place, local)
        yield local


if __name__ == "__main__":
    main(predict, PredictConfig)
