"""A video gives back what was written, and leads to no other file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra import media, video
from tests.damaged_media import container, damaged, drawn, tone


def test_a_video_gives_its_frames_and_its_sound_back(tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), 40 * k, np.uint8) for k in range(6)]
    wave_N = tone(3.0)
    video.write_video(tmp_path / "deep" / "clip.mp4", frames, rate=2, wave_N=wave_N)
    pictures, (heard_N, rate) = video.read_video(tmp_path / "deep" / "clip.mp4")
    shown = list(pictures)
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
                frames, (wave_N, _) = video.read_video(path)
                shapes = {image_HWC.shape[2:] for _, image_HWC in frames}
            except ValueError as error:
                assert "damaged.mp4" in str(error) and "\n" not in str(error)
            else:
                assert shapes <= {(3,)} and wave_N.dtype == np.float32
