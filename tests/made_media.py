"""A small made media folder for tests, in the layout of a person's own media.

A class is the colour of a cut-out and the pitch of its tone. ``bell`` and ``horn`` have two
pictures and two sounds each and so fill the split ``unseen``; ``drum`` and ``siren`` have one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infra import media
from synth import sources
from synth.catalog import Catalog
from synth.looking import build_catalog

# class -> (pictures and sounds, colour, pitch in Hz)
CLASSES = {
    "bell": (2, (220, 40, 40), 440.0),
    "drum": (1, (40, 200, 60), 180.0),
    "horn": (2, (50, 80, 230), 300.0),
    "siren": (1, (230, 210, 40), 900.0),
}
BACKGROUNDS = 10


def cut_out(colour: tuple[int, int, int], number: int = 0, *, width: int = 48) -> np.ndarray:
    """uint8 ``[h, w, 4]``: an ellipse of one colour on full transparency."""
    height = width * 2 // 3 + 4 * number
    rows, columns = np.mgrid[:height, :width]
    across = (2 * columns + 1 - width) / width
    down = (2 * rows + 1 - height) / height
    image_HW4 = np.zeros((height, width, 4), np.uint8)
    image_HW4[..., :3] = colour
    image_HW4[..., 3] = np.where(across**2 + down**2 <= 1, 255, 0)
    return image_HW4


def tone(pitch: float, *, seconds: float, rate: int = media.SAMPLE_RATE) -> np.ndarray:
    """float32 ``[N]``."""
    times_N = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * pitch * times_N)).astype(np.float32)


def background(number: int) -> np.ndarray:
    """uint8 ``[80, 96, 3]``: coarse grey noise."""
    coarse_HWC = np.random.default_rng(number).integers(60, 200, (5, 6, 3)).astype(np.uint8)
    return np.kron(coarse_HWC, np.ones((16, 16, 1), np.uint8))


def write_made_media(folder: Path) -> str:
    """Write the folder and give its path back."""
    for name, (count, colour, pitch) in CLASSES.items():
        for number in range(count):
            picture = media.encode_png(cut_out(colour, number))
            _write(folder / "objects" / name / f"{number}.png", picture)
            # One shorter and one longer than a sample's sound, at another rate.
            seconds, rate = ((0.6, 16_000), (2.5, 22_050))[number]
            sound = media.encode_wav(tone(pitch * 1.02**number, seconds=seconds, rate=rate), rate)
            _write(folder / "sounds" / name / f"{number}.wav", sound)
    for number in range(BACKGROUNDS):
        picture = media.encode_png(background(number))
        _write(folder / "backgrounds" / f"{number}.png", picture)
    for number in range(2):
        picture = media.encode_png(cut_out((120, 90 + 60 * number, 120), number, width=30))
        _write(folder / "silent" / f"{number}.png", picture)
    return str(folder)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def made_catalog(folder: Path) -> Catalog:
    """The catalog of a made media folder, written there first if need be; no Ray."""
    where = write_made_media(folder)
    return build_catalog(where, list(sources.candidates(where)))
