"""Whatever a file holds, decoding gives an array within bounds or refuses it in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from infra import media, video
from tests import damaged_media

ROOT = Path(__file__).parents[2]
PICTURES, SOUNDS = damaged_media.pictures(), damaged_media.sounds()
DAMAGES = 60


def look(decode: Callable[[bytes], np.ndarray], data: bytes) -> str:
    """What came of it, in words; anything but a ``ValueError`` escapes."""
    try:
        return str(hash(decode(data).tobytes()))
    except ValueError as error:
        return str(error)


def picture(data: bytes) -> np.ndarray:
    image_HWC = media.decode_image(data)
    assert image_HWC.dtype == np.uint8 and image_HWC.shape[2] in (3, 4)
    assert 0 < image_HWC.shape[0] * image_HWC.shape[1] <= media.MAX_PIXELS
    return image_HWC


def mask(data: bytes) -> np.ndarray:
    mask_HW = media.decode_mask(data)
    assert mask_HW.dtype == bool and 0 < mask_HW.size <= media.MAX_PIXELS
    return mask_HW


def sound(data: bytes) -> np.ndarray:
    wave_N, rate = media.decode_audio(data)
    assert wave_N.dtype == np.float32 and wave_N.ndim == 1 and np.isfinite(wave_N).all()
    assert media.MIN_RATE <= rate <= media.MAX_RATE
    assert 0 < wave_N.size <= min(media.MAX_SAMPLES, (media.MAX_SECONDS + 1) * rate)
    return wave_N


def part(data: bytes) -> np.ndarray:
    wave_N, rate = media.decode_audio(data, seconds=(0.2, 0.4))
    assert 0 < wave_N.size <= 0.2 * rate + 2
    return wave_N


def refusals(decode: Callable[[bytes], np.ndarray], files: Iterator[bytes]) -> int:
    """How many are refused; each is looked at twice and must come to the same."""
    count = 0
    for data in files:
        seen = look(decode, data)
        assert look(decode, data) == seen
        if not seen.lstrip("-").isdigit():
            count += 1
            assert seen.startswith(("the picture ", "the sound "))
            assert seen.isprintable() and len(seen) < 200 and " at 0x" not in seen
    return count


@pytest.mark.parametrize("name", PICTURES)
def test_a_damaged_picture_is_read_or_refused(name: str) -> None:
    files = list(damaged_media.damaged(PICTURES[name], seed=1, count=DAMAGES))
    for decode in (picture, mask):
        assert len(decode(PICTURES[name])) > 0
        assert refusals(decode, iter(files)) > 0


@pytest.mark.parametrize("name", SOUNDS)
def test_a_damaged_sound_is_read_or_refused(name: str) -> None:
    files = list(damaged_media.damaged(SOUNDS[name], seed=2, count=DAMAGES))
    for decode in (sound, part):
        assert len(decode(SOUNDS[name])) > 0
        assert refusals(decode, iter(files)) > 0


@pytest.mark.parametrize("name", [*PICTURES, *SOUNDS])
def test_a_file_that_is_cut_off_anywhere_is_read_or_refused(name: str) -> None:
    data = (PICTURES | SOUNDS)[name]
    decode = picture if name in PICTURES else sound
    ends = [*range(0, 64), *range(64, len(data), max(len(data) // 40, 1))]
    assert refusals(decode, (data[:end] for end in ends)) > 0


HOSTILE_PICTURES = {
    "wide-and-high.png": "4225000000 pixels",
    "wide.png": "65000x1000 pixels, more than",
    "text-bomb.png": "too large",
    "many-texts.png": "Too much memory used in text chunks",
    "late-text-bomb.png": "too large",
    "profile-bomb.png": "too large",
    # Inflated no farther than the picture is large.
    "pixel-bomb.png": "",
    "exif.png": "",
    "no-pixels.png": "cannot identify",
    "screen.gif": "4294836225 pixels",
    "frame.gif": "4294836225 pixels",
    "no-screen.gif": "cannot identify",
    "large.jpg": "4290250000 pixels",
    "large.webp": "268402689 pixels",
    "large.bmp": "3600000000 pixels",
    "tall.bmp": "pixels",
    "script.svg": "cannot identify",
    "program.eps": "cannot identify",
    "plain.tiff": "cannot identify",
}
HOSTILE_SOUNDS = {
    # The file ends before what its header claims: what there is is heard.
    "four-gigabytes.wav": "",
    "nan.wav": "no finite numbers",
    "inf.wav": "no finite numbers",
    "loud.wav": "no finite numbers",
    "slow.wav": "a rate of 1 Hz",
    "fast.wav": "cannot be decoded",
    "no-rate.wav": "cannot be decoded",
    "channels.wav": "Too many channels",
    "nine-channels.wav": "9 channels, more than the 8",
    "no-samples.wav": "no samples",
    "header.wav": "no samples",
    "many-samples.flac": "lasts 4294967 s",
    "an-hour-claimed.flac": "cannot be decoded",
    "fast.flac": "a rate of 655350 Hz",
    # Of a chain the first link is heard.
    "chained.ogg": "",
    "mixed-chain.ogg": "",
    "pictures-only.mp4": "holds no sound",
    "many-samples.mp4": "more than the 1000000 packets",
    "most-samples.mp4": "more than the 1000000 packets",
    "large-table.mp4": "more than the 1000000 packets",
    "large-fragment.mp4": "more than the 1000000 packets",
    "hidden-fragment.mp4": "more than the 1000000 packets",
    "packed-header.mp4": "more than the 1000000 packets",
    "list.m3u8": "it is no WAV",
    "text.mp4": "cannot be decoded",
    "old.au": "it is no WAV",
}


def test_a_picture_made_to_do_harm_is_refused_for_what_it_is() -> None:
    files = damaged_media.hostile_pictures()
    assert set(files) == set(HOSTILE_PICTURES)
    for name, says in HOSTILE_PICTURES.items():
        assert refusals(picture, iter([files[name]])) == bool(says), name
        assert not says or says in look(picture, files[name]), name
        assert refusals(mask, iter([files[name]])) == bool(says), name


def test_a_sound_made_to_do_harm_is_refused_for_what_it_is() -> None:
    files = damaged_media.hostile_sounds()
    assert set(files) == set(HOSTILE_SOUNDS)
    for name, says in HOSTILE_SOUNDS.items():
        assert refusals(sound, iter([files[name]])) == bool(says), name
        assert not says or says in look(sound, files[name]), name


def test_what_is_no_medium_is_refused_and_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    files = damaged_media.not_media(str(trap))
    for decode in (picture, mask, sound, part):
        assert refusals(decode, iter(files.values())) == len(files)
    # Of the wrong kind, too.
    assert refusals(picture, iter(SOUNDS.values())) == len(SOUNDS)
    assert refusals(sound, iter(PICTURES.values())) == len(PICTURES)
    assert not trap.exists()


def test_a_video_that_claims_more_packets_than_it_has_is_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    files = damaged_media.hostile_sounds()
    claims = [name for name, says in HOSTILE_SOUNDS.items() if "packets" in says]
    assert len(claims) == 6
    for name in claims:
        (tmp_path / name).write_bytes(files[name])
        with pytest.raises(ValueError, match=f"{name} claims more than the 1000000 packets"):
            video.read_video(tmp_path / name)


_MEASURE = """
import contextlib, json, pathlib, resource, sys
from infra import masks, media, video

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

decoders = (media.decode_image, media.decode_mask, media.decode_audio)
grown = {}
for folder in ("warm-up", "hostile"):
    before = peak()
    for path in sorted(pathlib.Path(sys.argv[1], folder).iterdir()):
        for decode in decoders:
            with contextlib.suppress(ValueError):
                decode(path.read_bytes())
        with contextlib.suppress(ValueError):
            video.read_video(path)
        grown[path.name] = peak() - before
before = peak()
masks.rle_from_segmentation(json.dumps([[0, 0, 7_999, 7_999] * 120 + [0, 7_999]]), 8_000, 8_000)
grown["outline"] = peak() - before
print(json.dumps(grown))
"""


def test_memory_stays_bounded_whatever_the_file_claims(tmp_path: Path) -> None:
    hostile = (
        damaged_media.hostile_pictures()
        | damaged_media.hostile_sounds()
        | damaged_media.not_media(str(tmp_path / "sprung"))
    )
    for folder, files in (("warm-up", PICTURES | SOUNDS), ("hostile", hostile)):
        (tmp_path / folder).mkdir()
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, check=True
    )
    megabytes = json.loads(done.stdout.splitlines()[-1])
    # Gigabytes are claimed, and each bomb would unpack to 64 MB.
    assert max(megabytes[name] for name in hostile) < 32, megabytes
    # The longest outline that is drawn takes this much for a moment.
    assert megabytes["outline"] < 320, megabytes
