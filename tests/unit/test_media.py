"""Decoding is bounded and says why it refuses; encoding gives the same bytes every time."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from infra import media
from tests.damaged_media import container, drawn, png, saved, sound_file, tone


def picture(channels: int = 3, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    shape = (*size, channels)
    return np.random.default_rng(channels).integers(0, 256, shape, dtype=np.uint8)


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


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (4, lambda image: image[::-1]),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: image.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda image: np.rot90(image)),
        (9, lambda image: image),
    ],
)
def test_a_photograph_is_shown_upright_and_read_as_stored_beside_its_mask(
    orientation: int, upright: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image_HWC = drawn()
    for kind in ("PNG", "WEBP"):
        data = saved(Image.fromarray(image_HWC), kind, exif=exif, lossless=True)
        assert np.array_equal(media.decode_image(data), upright(image_HWC))
        assert np.array_equal(media.decode_image(data, upright=False), image_HWC)
        assert media.decode_mask(data).shape == image_HWC.shape[:2]
    data = saved(Image.fromarray(image_HWC), "JPEG", exif=exif, quality=98, subsampling=0)
    turned = media.decode_image(data)
    assert np.abs(turned.astype(int) - upright(image_HWC)).mean() < 3


def test_a_damaged_exif_block_does_not_cost_the_photograph() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40
    data = saved(Image.fromarray(drawn()), "JPEG", exif=exif)
    assert media.decode_image(data).shape == (40, 56, 3)


def test_a_photograph_for_print_keeps_its_colours() -> None:
    image_HWC = drawn()
    cmyk = saved(Image.fromarray(image_HWC).convert("CMYK"), "JPEG", quality=98)
    assert np.abs(media.decode_image(cmyk).astype(int) - image_HWC).mean() < 4
    # YCCK is the same but for Adobe's marker. Planes are stored inverted: Y 0, Cb and Cr 128
    # and K 255 are a sheet without ink.
    planes = saved(Image.new("CMYK", (16, 16), (255, 127, 127, 0)), "JPEG", quality=98)
    kind = planes.index(b"Adobe") + 11
    ycck = planes[:kind] + b"\x02" + planes[kind + 1 :]
    assert media.decode_image(ycck).min() > 250 and media.decode_image(planes).min() < 50


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(drawn()).quantize(16)
    assert np.array_equal(media.decode_image(saved(image, "PNG")), np.asarray(image.convert("RGB")))
    see_through = media.decode_image(saved(image, "PNG", transparency=bytes([0] * 8 + [255] * 8)))
    assert np.array_equal(see_through[..., 3] > 0, np.asarray(image) >= 8)


def test_of_sixteen_bits_the_upper_eight_are_kept() -> None:
    value_N = np.array([0, 255, 256, 32_768, 65_535])
    for colours, kind in ((1, 0), (2, 4), (3, 2), (4, 6)):
        row = b"\0" + np.repeat(value_N, colours).astype(">u2").tobytes()
        image_1NC = media.decode_image(
            png(5, 1, (b"IDAT", zlib.compress(row)), depth=16, kind=kind)
        )
        assert image_1NC[0, :, :3].tolist() == [[value >> 8] * 3 for value in value_N]
        assert image_1NC.shape[2] == (4 if kind in (4, 6) else 3)
    # Its one transparent colour is given in 16 bits too.
    for colours, kind in ((1, 0), (3, 2)):
        row = zlib.compress(b"\0" + np.repeat(value_N, colours).astype(">u2").tobytes())
        key = struct.pack(">H", 32_768) * colours
        data = png(5, 1, (b"tRNS", key), (b"IDAT", row), depth=16, kind=kind)
        assert media.decode_image(data)[0, :, 3].tolist() == [255, 255, 255, 0, 255]


def test_one_bit_a_grey_and_a_transparency_are_told_apart() -> None:
    grey = Image.fromarray(drawn()).convert("L")
    assert set(np.unique(media.decode_image(saved(grey.convert("1"), "PNG")))) == {0, 255}
    grey_alpha_HW4 = media.decode_image(saved(grey.convert("LA"), "PNG"))
    assert np.array_equal(grey_alpha_HW4[..., 1], np.asarray(grey))
    assert grey_alpha_HW4[..., 3].min() == 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "MPO"])
def test_of_an_animation_the_first_frame_is_kept(kind: str) -> None:
    first, second = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    data = saved(first, kind, save_all=True, append_images=[second], lossless=True)
    red = media.decode_image(data)[5, 10]
    assert red[0] > 200 and red[2] < 50


def test_a_colour_profile_is_not_applied() -> None:
    image = Image.fromarray(drawn())
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for written in (profile, b"no profile"):
        data = saved(image, "PNG", icc_profile=written)
        assert np.array_equal(media.decode_image(data), np.asarray(image))


def test_a_mask_is_what_is_at_least_half() -> None:
    grey_HW = np.array([[0, 127], [128, 255]], np.uint8)
    assert media.decode_mask(media.encode_png(grey_HW)).tolist() == [[False, False], [True, True]]
    mask_HW = np.random.default_rng(0).random((9, 7)) > 0.5
    assert np.array_equal(media.decode_mask(media.encode_png(mask_HW)), mask_HW)


def test_a_mask_of_zeros_and_ones_counts_them() -> None:
    mask_HW = np.random.default_rng(0).random((9, 7)) > 0.5
    ones_HW = mask_HW.astype(np.uint8)
    in_colour = Image.fromarray(np.repeat(ones_HW[..., None], 3, axis=2))
    dark = Image.fromarray(ones_HW, mode="P")
    dark.putpalette([0, 0, 0, 128, 0, 0])
    deep_rows = np.insert(mask_HW.astype(">u2").view(np.uint8).reshape(9, 14), 0, 0, axis=1)
    deep = png(7, 9, (b"IDAT", zlib.compress(deep_rows.tobytes())), depth=16, kind=0)
    for data in (
        saved(Image.fromarray(ones_HW), "PNG"),
        saved(Image.fromarray(mask_HW), "PNG"),
        saved(in_colour, "PNG"),
        saved(dark, "PNG"),
        deep,
    ):
        assert np.array_equal(media.decode_mask(data), mask_HW)
    # What a palette shows bright is inside, whatever its index.
    bright = Image.fromarray(ones_HW, mode="P")
    bright.putpalette([255, 255, 255, 0, 0, 0])
    assert np.array_equal(media.decode_mask(saved(bright, "PNG")), ~mask_HW)
    # Neither an empty mask nor a faint one is one of zeros and ones.
    for value in (0, 2, 127):
        assert not media.decode_mask(media.encode_png(np.full((4, 4), value, np.uint8))).any()


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


def test_a_jpeg_says_nothing_of_the_file_that_its_picture_comes_from() -> None:
    image_HW3 = drawn()
    said = {"comment": b"mine", "exif": b"Exif\0\0MM\0*", "dpi": (300, 300), "icc_profile": b"x"}
    from_file = media.load_image(saved(Image.fromarray(image_HW3), "PNG"))
    from_file.info.update(said)
    assert media.encode_jpeg(from_file) == media.encode_jpeg(image_HW3)


def test_encoded_bytes_are_the_same_every_time() -> None:
    image_HWC, wave_N = picture(size=(64, 48)), tone()
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
    stereo_NC = np.stack([tone(2.0), np.zeros(32_000, np.float32)], axis=1)
    data = sound_file(stereo_NC, "WAV", "FLOAT")
    wave_N, _ = media.decode_audio(data)
    assert np.allclose(wave_N, tone(2.0) / 2)
    part_N, _ = media.decode_audio(data, seconds=(0.5, 1.0))
    assert np.array_equal(part_N, wave_N[8_000:16_000])
    with pytest.raises(ValueError, match="no samples"):
        media.decode_audio(data, seconds=(5.0, 6.0))


@pytest.mark.parametrize("data", [b"", b"RIFF....WAVEfmt ", media.encode_flac(tone(1.0))[:4_000]])
def test_what_is_no_whole_sound_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"the sound cannot be decoded|has no samples"):
        media.decode_audio(data)


def test_seconds_and_samples_are_counted_before_anything_is_unpacked() -> None:
    data = media.encode_flac(np.zeros(16_000 * 20, np.int16))
    assert media.decode_audio(data, max_seconds=20)[0].size == 320_000
    with pytest.raises(ValueError, match=r"lasts 20 s, more than the 19 s"):
        media.decode_audio(data, max_seconds=19)
    with pytest.raises(ValueError, match="9 channels, more than the 8 allowed"):
        media.decode_audio(sound_file(np.zeros((99, 9)), "WAV", "PCM_16"))
    # An hour at 96 kHz, claimed by a few bytes.
    fast = bytearray(sound_file(np.zeros(96_000), "FLAC", "PCM_16", rate=96_000))
    fast[22:26] = (96_000 * 3_599).to_bytes(4, "big")
    with pytest.raises(ValueError, match="more than the 172800000 samples allowed"):
        media.decode_audio(bytes(fast))


def test_a_long_sound_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    stereo_NC = np.stack([tone(2.0), tone(2.0, pitch=660.0)], axis=1)
    for kind, subtype in (("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "FLOAT")):
        data = sound_file(stereo_NC, kind, subtype)
        whole_N, _ = media.decode_audio(data, seconds=(0.3, 1.9))
        with monkeypatch.context() as patch:
            patch.setattr(media, "_BLOCK", 1_001)
            assert np.array_equal(media.decode_audio(data, seconds=(0.3, 1.9))[0], whole_N)


@pytest.mark.parametrize("rate", [0, 999, 384_001, 655_350])
def test_a_rate_out_of_bounds_is_refused(rate: int) -> None:
    wav = sound_file(tone(), "WAV", "PCM_16")
    with pytest.raises(ValueError, match=r"out of the 1000 to 384000 Hz allowed|cannot be decoded"):
        media.decode_audio(wav[:24] + rate.to_bytes(4, "little") + wav[28:])
    for kept in (1_000, 384_000):
        assert media.decode_audio(sound_file(tone(rate=kept), "WAV", "PCM_16", kept))[1] == kept


CONTAINERS = [
    ("mp4", "aac", 44_100),
    ("mov", "alac", 44_100),
    ("mp4", "flac", 48_000),
    ("matroska", "flac", 44_100),
    ("matroska", "aac", 44_100),
    ("webm", "libopus", 48_000),
]


@pytest.mark.parametrize(("kind", "codec", "rate"), CONTAINERS)
def test_the_sound_of_a_container_is_heard(kind: str, codec: str, rate: int) -> None:
    stereo_CN = np.stack([tone(3.0, rate), np.zeros(3 * rate, np.float32)])
    data = container(stereo_CN, kind, codec, rate=rate, pictures=kind == "mp4")
    wave_N, heard_rate = media.decode_audio(data)
    assert heard_rate == rate and wave_N.dtype == np.float32
    # Lossy coders pad the end.
    assert 3 * rate <= wave_N.size < 3.1 * rate
    # Lossy coders ring where the tone sets in.
    inside = slice(rate // 10, 3 * rate - rate // 10)
    assert np.abs(wave_N[inside] - tone(3.0, rate)[inside] / 2).max() < 0.02


@pytest.mark.parametrize(("kind", "codec", "rate"), CONTAINERS)
def test_a_stretch_of_a_container_is_that_of_the_whole(kind: str, codec: str, rate: int) -> None:
    # A tone that rises, so that no two stretches are alike. (AAC may replace noise by its own.)
    rising_N = (0.5 * np.sin(2 * np.pi * 200 * (np.arange(5 * rate) / rate) ** 2)).astype("f4")
    data = container(rising_N[None], kind, codec, rate=rate)
    whole_N, _ = media.decode_audio(data)
    # Matroska counts milliseconds.
    slack = 0 if kind in ("mp4", "mov") else rate // 1_000
    for start, end in ((0.0, 1.0), (0.1, 0.2), (2.5, 3.75), (4.0, 4.9)):
        first, last = int(start * rate), int(np.ceil(end * rate))
        part_N, _ = media.decode_audio(data, seconds=(start, end))
        assert abs(part_N.size - (last - first)) <= slack
        shifts = range(max(first - slack, 0), first + slack + 1)
        assert min(np.abs(part_N - whole_N[k : k + part_N.size]).max() for k in shifts) < 1e-3
    with pytest.raises(ValueError, match="no samples"):
        media.decode_audio(data, seconds=(9.0, 9.5))


def test_a_container_is_bounded_by_what_it_holds_not_by_what_it_says() -> None:
    data = container(np.zeros((1, 48_000 * 6), np.float32), "matroska", "libopus")
    with pytest.raises(ValueError, match=r"lasts 6 s, more than the 3 s"):
        media.decode_audio(data, max_seconds=3)
    duration = data.index(b"\x44\x89\x88") + 3
    says_nothing = data[:duration] + struct.pack(">d", 1.0) + data[duration + 8 :]
    with pytest.raises(ValueError, match=r"more than the 3 s"):
        media.decode_audio(says_nothing, max_seconds=3)
    surround = container(np.zeros((6, 4_800), np.float32), "mp4", "aac")
    assert not media.decode_audio(surround)[0].any()


def test_a_container_of_pictures_alone_is_no_sound() -> None:
    data = container(np.zeros((0, 0)), "mp4", "", pictures=True)
    with pytest.raises(ValueError, match="the file holds no sound"):
        media.decode_audio(data)


def test_resampling_keeps_length_pitch_and_level() -> None:
    wave_N = media.resample(tone(1.0, rate=44_100), 44_100)
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
