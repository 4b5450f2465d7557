"""A video gives back what was written, a frame for each second, and leads to no other file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra import media, video
from tests.damaged_media import container, damaged, drawn, tone


def test_a_video_gives_its_frames_and_its_sound_back(tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), 40 * k, np.uint8) for k in range(6)]
    wave_N = tone(3.0)
    video.write_video(tmp_path / "deep" / "clip.mp4", frames, rate=2, wave_N=wave_N)
    (pictures, pace), (heard_N, rate) = video.read_video(tmp_path / "deep" / "clip.mp4")
    shown = list(pictures)
    assert pace == 2
    assert [time for time, _ in shown] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    for (_, image_HWC), frame_HWC in zip(shown, frames, strict=True):
        assert image_HWC.shape == (48, 64, 3) and image_HWC.dtype == np.uint8
        assert np.abs(image_HWC.astype(int) - frame_HWC).mean() < 4
    assert rate == 16_000 and heard_N.size / rate == pytest.approx(3.0, abs=0.2)
    middle_N = heard_N[16_000:32_000]
    assert np.abs(np.fft.rfft(middle_N)).argmax() == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(middle_N**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def test_a_video_without_sound_has_no_samples(tmp_path: Path) -> None:
    video.write_video(tmp_path / "mute.mp4", [drawn(32, 32)], rate=1)
    _, (wave_N, _) = video.read_video(tmp_path / "mute.mp4")
    assert wave_N.size == 0


def test_what_is_no_video_or_too_long_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    # A play list that would send the reader to other files.
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
    (tmp_path / "sound.mp4").write_bytes(media.encode_wav(tone(1.0)))
    for name in ("text.mp4", "list.mp4", "sound.mp4", "missing.mp4"):
        with pytest.raises(ValueError, match=name):
            video.read_video(tmp_path / name)
    video.write_video(tmp_path / "long.mp4", [drawn(32, 32)] * 4, rate=1)
    with pytest.raises(ValueError, match=r"long\.mp4 lasts 4 s, more than the 3 s"):
        video.read_video(tmp_path / "long.mp4", max_seconds=3)
    with pytest.raises(ValueError, match="even sides, got 31x32"):
        video.write_video(tmp_path / "odd.mp4", [drawn(32, 31)], rate=1)


def test_a_damaged_video_is_read_or_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    stereo_CN = np.stack([tone(rate=48_000)] * 2)
    for kind, codec in (("mp4", "aac"), ("matroska", "flac")):
        for data in damaged(container(stereo_CN, kind, codec, pictures=True), seed=0, count=60):
            path.write_bytes(data)
            try:
                (frames, _), (wave_N, _) = video.read_video(path)
                shapes = {image_HWC.shape[2:] for _, image_HWC in frames}
            except ValueError as error:
                assert "damaged.mp4" in str(error) and "\n" not in str(error)
            else:
                assert shapes <= {(3,)} and wave_N.dtype == np.float32


NTSC = 30_000 / 1001


def numbered(rate: float, total: int) -> Iterator[tuple[float, np.ndarray]]:
    return ((number / rate, np.array(number)) for number in range(total))


def taken(
    rate: float, total: int, count: int | None = None, *, told: bool = True
) -> tuple[int, ...]:
    frames = video.frames_a_second(numbered(rate, total), count, rate=rate if told else None)
    return tuple(int(number) for number in frames)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("rate", "total", "wanted"),
    [
        (25, 125, (23, 48, 73, 98, 123)),
        (NTSC, 150, (28, 58, 88, 118, 148)),
        # Python's round, which AVSBench calls, makes 12 of 12.5.
        (12.5, 63, (11, 23, 35, 47, 59)),
        (8, 40, (7, 15, 23, 31, 39)),
        (1, 5, (0, 1, 2, 3, 4)),
    ],
)
def test_the_frame_of_a_second_is_the_one_that_avsbench_takes(
    rate: float, total: int, wanted: tuple[int, ...], told: bool
) -> None:
    assert wanted == tuple(int((second + 15 / 16) * round(rate)) for second in range(5))
    assert taken(rate, total, 5, told=told) == wanted
    assert taken(rate, total, 3, told=told) == wanted[:3]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("rate", [25, NTSC, 12.5, 8, 7.5, 1])
def test_the_frames_of_a_long_video_keep_up_with_its_time(rate: float, told: bool) -> None:
    numbers = taken(rate, round(300 * rate), told=told)
    assert numbers == tuple(int((second + 15 / 16) * rate) for second in range(300))


def test_a_frame_that_lasts_seconds_is_the_one_of_each_of_them() -> None:
    assert taken(0.5, 4) == (0, 0, 1, 1, 2, 2, 3)


@pytest.mark.parametrize("told", [True, False])
def test_the_last_frame_stands_in_where_a_video_ends_early(told: bool) -> None:
    assert taken(25, 60, 5, told=told) == (23, 48, 59, 59, 59)
    assert taken(NTSC, 149, 5, told=told) == (28, 58, 88, 118, 148)
    assert taken(NTSC, 140, 5, told=told) == (28, 58, 88, 118, 139)
    assert taken(12.5, 40, 5, told=told) == (11, 23, 35, 39, 39)
    assert taken(25, 1, 3, told=told) == (0, 0, 0) and taken(25, 0, 3, told=told) == ()


@pytest.mark.parametrize("told", [True, False])
def test_a_last_second_counts_that_is_at_least_half_there(told: bool) -> None:
    assert taken(25, 62, told=told) == (23, 48)
    assert taken(25, 63, told=told) == (23, 48, 62)
    assert taken(NTSC, 44, told=told) == (28,) and taken(NTSC, 45, told=told) == (28, 44)
    assert taken(12.5, 43, told=told) == (11, 24, 36)
    assert taken(12.5, 44, told=told) == (11, 24, 36, 43)
    assert taken(25, 1, told=told) == (0,) and taken(25, 0, told=told) == ()


def test_where_frames_are_left_out_the_one_before_stands_in() -> None:
    left_out = set(range(20, 60))
    pictures = (item for item in numbered(25, 125) if int(item[1]) not in left_out)
    frames = video.frames_a_second(pictures, rate=25)
    assert [int(number) for number in frames] == [19, 19, 73, 98, 123]


def test_no_more_frames_are_read_than_the_seconds_asked_for_need() -> None:
    pictures = numbered(25, 125)
    frames = video.frames_a_second(pictures, 2, rate=25)
    assert int(next(frames)) == 23 and int(next(pictures)[1]) == 25
    assert [int(number) for number in frames] == [48] and int(next(pictures)[1]) == 50


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30_000, 1001), Fraction(25, 2)])
def test_a_file_tells_its_rate(tmp_path: Path, rate: Fraction) -> None:
    video.write_video(tmp_path / "clip.mp4", [drawn(32, 32)] * 40, rate=rate)
    (pictures, told), _ = video.read_video(tmp_path / "clip.mp4")
    assert told == pytest.approx(float(rate)) and len(list(pictures)) == 40
