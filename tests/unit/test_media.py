"""Decoding is bounded and says why it refuses; encoding gives the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra import media


def picture(channels: int = 3, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    shape = (*size, channels)
    return np.random.default_rng(channels).integers(0, 256, shape, dtype=np.uint8)


def sine(seconds: float = 1.0, rate: int = 16_000, pitch: float = 440.0) -> np.ndarray:
    times_N = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * times_N)).astype(np.float32)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
def test_png_gives_back_what_went_in(channels: int) -> None:
    image_HWC = picture(channels)
    assert np.array_equal(media.decode_image(media.encode_png(image_HWC)), image_HWC)


def test_transparency_is_kept_however_the_file_holds_it() -> None:
    grey_alpha = Image.new("LA", (4, 4), (9, 0))
    palette = Image.new("P", (4, 4), 0)
    for data in (saved(grey_alpha, "PNG"), saved(palette, "PNG", transparency=0)):
        image_HWC = media.decode_image(data)
        assert image_HWC.shape == (4, 4, 4)
        assert image_HWC[..., 3].max() == 0
    assert media.decode_image(saved(Image.new("L", (4, 4)), "PNG")).shape == (4, 4, 3)


def test_a_mask_is_what_is_at_least_half() -> None:
    grey_HW = np.array([[0, 127], [128, 255]], np.uint8)
    assert media.decode_mask(media.encode_png(grey_HW)).tolist() == [[False, False], [True, True]]
    mask_HW = np.random.default_rng(0).random((9, 7)) > 0.5
    assert np.array_equal(media.decode_mask(media.encode_png(mask_HW)), mask_HW)


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"no picture", media.encode_png(picture())[:200], b"\xff\xd8\xff" + bytes(99)],
)
def test_what_is_no_whole_picture_is_a_value_error(data: bytes) -> None:
    for decode in (media.decode_image, media.decode_mask):
        with pytest.raises(ValueError, match="the picture cannot be decoded"):
            decode(data)


def test_pixels_are_counted_before_anything_is_unpacked() -> None:
    with pytest.raises(ValueError, match=r"30x20 pixels, more than the 599 allowed"):
        media.decode_image(media.encode_png(picture()), max_pixels=599)
    header = bytearray(media.encode_png(picture()))
    header[16:24] = (9_000).to_bytes(4, "big") * 2  # IHDR: width and height
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match=r"9000x9000 pixels, more than"):
        media.decode_image(bytes(header))


def test_formats_that_run_programs_are_not_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"
    with pytest.raises(ValueError, match="cannot be decoded"):
        media.decode_image(postscript)


def test_encoded_bytes_are_the_same_every_time() -> None:
    image_HWC, wave_N = picture(size=(64, 48)), sine()
    for encode in (media.encode_png, media.encode_jpeg):
        assert encode(image_HWC) == encode(np.asfortranarray(image_HWC))
    for encode in (media.encode_flac, media.encode_wav):
        assert encode(wave_N) == encode(wave_N.copy())
    # A WAV has no encoder to vary: these bytes hold everywhere.
    assert hashlib.sha256(media.encode_wav(np.arange(-50, 50, dtype=np.int16))).hexdigest() == (
        "6af494359958174c3f5b4a453fc850c20ac9a430fcc6f8feca6b1398f2cd8662"
    )


@pytest.mark.parametrize("encode", [media.encode_flac, media.encode_wav])
def test_sound_comes_back_to_the_bit(encode: object) -> None:
    pcm_N = np.random.default_rng(0).integers(-32768, 32768, 5_000).astype(np.int16)
    wave_N, rate = media.decode_audio(encode(pcm_N))  # type: ignore[operator]
    assert rate == 16_000 and wave_N.dtype == np.float32
    assert np.array_equal(np.rint(wave_N * 32768).astype(int), pcm_N)


def test_channels_are_averaged_and_a_stretch_can_be_read() -> None:
    import soundfile

    stereo_NC = np.stack([sine(2.0), np.zeros(32_000, np.float32)], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo_NC, 16_000, format="WAV", subtype="FLOAT")
    wave_N, _ = media.decode_audio(buffer.getvalue())
    assert np.allclose(wave_N, sine(2.0) / 2)
    part_N, _ = media.decode_audio(buffer.getvalue(), seconds=(0.5, 1.0))
    assert np.array_equal(part_N, wave_N[8_000:16_000])
    with pytest.raises(ValueError, match="no samples"):
        media.decode_audio(buffer.getvalue(), seconds=(5.0, 6.0))


@pytest.mark.parametrize("data", [b"", b"RIFF....WAVEfmt ", media.encode_flac(sine())[:4_000]])
def test_what_is_no_whole_sound_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"the sound cannot be decoded|has no samples"):
        media.decode_audio(data)


def test_seconds_and_samples_are_counted_before_anything_is_unpacked() -> None:
    import soundfile

    data = media.encode_flac(np.zeros(16_000 * 20, np.int16))
    assert media.decode_audio(data, max_seconds=20)[0].size == 320_000
    with pytest.raises(ValueError, match=r"lasts 20 s, more than the 19 s"):
        media.decode_audio(data, max_seconds=19)
    # Silence packs well: 400 kB here, 30 million samples when unpacked.
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((655_350 * 2, 8), np.int16), 655_350, format="FLAC")
    with pytest.raises(ValueError, match="8 channels, more than are allowed"):
        media.decode_audio(buffer.getvalue(), max_seconds=2.5)


def test_resampling_keeps_length_pitch_and_level() -> None:
    wave_N = media.resample(sine(1.0, rate=44_100), 44_100)
    assert wave_N.shape == (16_000,) and wave_N.dtype == np.float32
    assert np.abs(np.fft.rfft(wave_N)).argmax() == 440
    assert np.sqrt(np.mean(wave_N**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_loud_sound_is_clipped_not_wrapped() -> None:
    assert media.to_pcm16(np.array([-3.0, -1.0, 0.0, 1.0, 3.0], np.float32)).tolist() == [
        -32767,
        -32767,
        0,
        32767,
        32767,
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_run_lengths_give_the_mask_back(share: float) -> None:
    mask_HW = np.random.default_rng(1).random((33, 17)) < share
    coded = media.encode_mask_rle(mask_HW)
    assert coded["size"] == [33, 17] and isinstance(coded["counts"], str)
    assert np.array_equal(media.decode_mask_rle(coded), mask_HW)


@pytest.mark.parametrize("size", [[3, 3], [5, 5], [100, 100], [0, 4], [1 << 20, 1 << 20]])
def test_run_lengths_of_another_size_are_refused(size: list[int]) -> None:
    coded = media.encode_mask_rle(np.eye(4, dtype=bool))
    with pytest.raises(ValueError):
        media.decode_mask_rle({**coded, "size": size})


def test_a_video_gives_its_frames_and_its_sound_back(tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), 40 * k, np.uint8) for k in range(6)]
    wave_N = sine(3.0)
    media.write_video(tmp_path / "deep" / "clip.mp4", frames, rate=2, wave_N=wave_N)
    pictures, (heard_N, rate) = media.read_video(tmp_path / "deep" / "clip.mp4")
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
    media.write_video(tmp_path / "mute.mp4", [picture(size=(32, 32))], rate=1)
    _, (wave_N, _) = media.read_video(tmp_path / "mute.mp4")
    assert wave_N.size == 0


def test_what_is_no_video_or_too_long_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    # A play list that would send the reader to other files.
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
    (tmp_path / "sound.mp4").write_bytes(media.encode_wav(sine()))
    for name in ("text.mp4", "list.mp4", "sound.mp4", "missing.mp4"):
        with pytest.raises(ValueError, match=name):
            media.read_video(tmp_path / name)
    media.write_video(tmp_path / "long.mp4", [picture(size=(32, 32))] * 4, rate=1)
    with pytest.raises(ValueError, match=r"long\.mp4 lasts 4 s, more than the 3 s"):
        media.read_video(tmp_path / "long.mp4", max_seconds=3)
    with pytest.raises(ValueError, match="even sides, got 31x32"):
        media.write_video(tmp_path / "odd.mp4", [picture(size=(32, 31))], rate=1)
