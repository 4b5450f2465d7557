"""Makes small media of every kind, the same damaged, and files that were made to do harm.

Everything is made when it is asked for, and the same every time.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

RATE = 16_000


def tone(seconds: float = 0.6, rate: int = RATE, pitch: float = 440.0) -> np.ndarray:
    times_N = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * times_N)).astype(np.float32)


def drawn(height: int = 40, width: int = 56) -> np.ndarray:
    """A picture whose four corners differ: uint8 [H, W, 3]."""
    y_HW, x_HW = np.mgrid[:height, :width]
    bands = (255 * x_HW / width, 255 * y_HW / height, 127 + 127 * np.sin(x_HW * y_HW / 90))
    return np.stack(bands, axis=2).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def sound_file(wave_N: np.ndarray, kind: str, subtype: str, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave_N, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def container(
    wave_CN: np.ndarray,
    kind: str,
    codec: str,
    *,
    rate: int = 48_000,
    pictures: bool = False,
    **options: str,
) -> bytes:
    """A container with the sound ``wave_CN`` if any, and with two black frames if asked."""
    buffer = io.BytesIO()
    layout = {0: "", 1: "mono", 2: "stereo", 6: "5.1"}[len(wave_CN)]
    with av.open(buffer, "w", format=kind, options=options) as file:
        video: Any = file.add_stream("libx264", rate=2) if pictures else None
        sound: Any = file.add_stream(codec, rate=rate) if layout else None
        if sound is not None:
            sound.layout = layout
        if video is not None:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for _ in range(2):
                black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
                file.mux(video.encode(black))
            file.mux(video.encode(None))
        if sound is not None:
            _write_sound(file, sound, wave_CN, layout, rate)
    return buffer.getvalue()


def _write_sound(file: Any, sound: Any, wave_CN: np.ndarray, layout: str, rate: int) -> None:
    wanted = sound.codec_context.format.name
    as_wanted = av.AudioResampler(format=wanted, layout=layout, rate=rate)
    block = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(wave_CN, np.float32), format="fltp", layout=layout
    )
    block.sample_rate, block.pts = rate, 0
    for piece in as_wanted.resample(block):
        file.mux(sound.encode(piece))
    file.mux(sound.encode(None))


def pictures() -> dict[str, bytes]:
    """One good picture of every kind that is read, and of some kinds that few expect."""
    image = Image.fromarray(drawn())
    grey, palette = image.convert("L"), image.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep_HW = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 29
    still = [image, image.transpose(Image.Transpose.ROTATE_180)]
    return {
        "rgb.png": saved(image, "PNG"),
        "palette.png": saved(palette, "PNG", transparency=3),
        "grey-alpha.png": saved(grey.convert("LA"), "PNG"),
        "grey-16.png": saved(Image.fromarray(deep_HW), "PNG"),
        "one-bit.png": saved(grey.convert("1"), "PNG"),
        "animated.png": saved(still[0], "PNG", save_all=True, append_images=still[1:]),
        "plain.jpg": saved(image, "JPEG"),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "turned.jpg": saved(image, "JPEG", exif=exif),
        "lossy.webp": saved(image, "WEBP"),
        "lossless.webp": saved(image.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        "animated.webp": saved(still[0], "WEBP", save_all=True, append_images=still[1:]),
        "animated.gif": saved(still[0], "GIF", save_all=True, append_images=still[1:]),
        "plain.bmp": saved(image, "BMP"),
    }


def sounds() -> dict[str, bytes]:
    """One good sound of every kind that is read and that this machine can write."""
    mono_N = tone()
    stereo_CN = np.stack([tone(rate=48_000), tone(rate=48_000, pitch=660.0)])
    made = {
        "pcm.wav": sound_file(mono_N, "WAV", "PCM_16"),
        "float.wav": sound_file(mono_N, "WAV", "FLOAT"),
        "adpcm.wav": sound_file(mono_N, "WAV", "MS_ADPCM"),
        "plain.flac": sound_file(mono_N, "FLAC", "PCM_16"),
        "vorbis.ogg": sound_file(mono_N, "OGG", "VORBIS"),
        "opus.ogg": sound_file(mono_N, "OGG", "OPUS"),
        "aac.mp4": container(stereo_CN, "mp4", "aac", pictures=True),
        "flac.mp4": container(stereo_CN, "mp4", "flac"),
        "fragmented.mp4": fragmented(),
        "opus.webm": container(stereo_CN, "webm", "libopus"),
        "flac.mkv": container(stereo_CN, "matroska", "flac"),
    }
    if "MP3" in soundfile.available_formats():
        made["plain.mp3"] = sound_file(mono_N, "MP3", "MPEG_LAYER_III")
    return made


def damaged(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """``count`` times the same file: cut off, bits turned, a stretch overwritten or doubled."""
    chance = random.Random(seed)
    for turn in range(count):
        at, piece = chance.randrange(len(data)), bytearray(data)
        match turn % 5:
            case 0:
                del piece[at:]
            case 1:
                piece[at] ^= 1 << chance.randrange(8)
            case 2:
                # Headers hold what a decoder believes.
                for _ in range(4):
                    piece[chance.randrange(min(len(data), 256))] = chance.randrange(256)
            case 3:
                piece[at : at + 4] = b"\xff\xff\xff\xff"
            case _:
                piece[at:at] = piece[at : at + chance.randrange(1, 64)]
        yield bytes(piece)


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, kind: int = 2
) -> bytes:
    """A PNG of just this header and these chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def hostile_pictures() -> dict[str, bytes]:
    """What must be refused, or be read within bounds."""
    bomb = zlib.compress(bytes(64 << 20), 9)
    row = (b"IDAT", zlib.compress(b"\0" * 31 * 10))
    gif = saved(Image.fromarray(drawn()), "GIF")
    frame = gif.index(b"\x2c\0\0\0\0") + 5
    jpeg = saved(Image.fromarray(drawn()), "JPEG")
    size = jpeg.index(b"\xff\xc0") + 5
    webp = saved(Image.fromarray(drawn()), "WEBP")
    bmp = saved(Image.fromarray(drawn()), "BMP")
    return {
        "wide-and-high.png": png(65_000, 65_000, row),
        "wide.png": png(65_000, 1_000, row),
        "text-bomb.png": png(10, 10, (b"zTXt", b"a\0\0" + bomb), row),
        "many-texts.png": png(
            10, 10, *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20), 9))] * 80, row
        ),
        "late-text-bomb.png": png(10, 10, row, (b"iTXt", b"a\0\1\0\0\0" + bomb)),
        "profile-bomb.png": png(10, 10, (b"iCCP", b"a\0\0" + bomb), row),
        "pixel-bomb.png": png(10, 10, (b"IDAT", bomb)),
        "no-pixels.png": png(0, 10, row),
        "exif.png": png(10, 10, (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40), row),
        "screen.gif": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "frame.gif": gif[:frame] + b"\xff\xff\xff\xff" + gif[frame + 4 :],
        "no-screen.gif": gif[:6] + bytes(4) + gif[10:frame] + bytes(4) + gif[frame + 4 :],
        "large.jpg": jpeg[:size] + struct.pack(">HH", 65_500, 65_500) + jpeg[size + 4 :],
        "large.webp": webp[:26] + b"\xff\x3f\xff\x3f" + webp[30:],
        "large.bmp": bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
        "tall.bmp": bmp[:18] + struct.pack("<ii", 60_000, -(1 << 31)) + bmp[26:],
        "script.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
        "plain.tiff": saved(Image.fromarray(drawn()), "TIFF"),
    }


def hostile_sounds() -> dict[str, bytes]:
    """What must be refused, or be read within bounds."""
    good = sounds()
    wav = sound_file(tone(), "WAV", "PCM_16")
    nan_N, inf_N = tone(), tone()
    nan_N[99], inf_N[99] = np.nan, np.inf
    flac, m4a = bytearray(good["plain.flac"]), good["flac.mp4"]
    flac[21] |= 0x0F
    flac[22:26] = b"\xff\xff\xff\xff"
    an_hour = bytearray(good["plain.flac"])
    an_hour[22:26] = struct.pack(">I", 3_599 * RATE)
    return {
        "four-gigabytes.wav": wav[:40] + b"\xff\xff\xff\xff" + wav[44:],
        "nan.wav": sound_file(nan_N, "WAV", "FLOAT"),
        "inf.wav": sound_file(inf_N, "WAV", "FLOAT"),
        "loud.wav": sound_file(np.full((99, 2), 3e38), "WAV", "FLOAT"),
        "slow.wav": wav[:24] + struct.pack("<I", 1) + wav[28:],
        "fast.wav": wav[:24] + struct.pack("<I", 4_000_000_000) + wav[28:],
        "no-rate.wav": wav[:24] + bytes(4) + wav[28:],
        "channels.wav": wav[:22] + b"\xff\xff" + wav[24:],
        "nine-channels.wav": sound_file(np.zeros((99, 9)), "WAV", "PCM_16"),
        "no-samples.wav": sound_file(np.zeros(0), "WAV", "PCM_16"),
        "header.wav": wav[:44],
        "many-samples.flac": bytes(flac),
        "an-hour-claimed.flac": bytes(an_hour),
        "fast.flac": sound_file(np.zeros(99), "FLAC", "PCM_16", rate=655_350),
        "chained.ogg": good["vorbis.ogg"] + good["vorbis.ogg"],
        "mixed-chain.ogg": good["vorbis.ogg"] + good["opus.ogg"],
        "pictures-only.mp4": container(np.zeros((0, 0)), "mp4", "", pictures=True),
        "many-samples.mp4": _with_counts(m4a, 0x7FFF_FFFF),
        "most-samples.mp4": _with_counts(m4a, 0xFFFF_FFFF),
        "large-table.mp4": _with_counts(m4a, 100_000_000),
        "large-fragment.mp4": _with_large_fragment(100_000_000),
        "hidden-fragment.mp4": _with_large_fragment(100_000_000, box=b"udta"),
        "packed-header.mp4": m4a.replace(b"stsd", b"cmov"),
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "text.mp4": b"\0\0\0\x18ftypisom#EXTM3U\nfile:///etc/passwd\n",
        "old.au": sound_file(tone(), "AU", "PCM_16"),
    }


def _with_counts(mp4: bytes, count: int) -> bytes:
    """An MP4 whose tables claim ``count`` samples of one byte, all in one chunk."""
    changed = bytearray(mp4)
    claimed = struct.pack(">I", count)
    sizes, times, chunks = (mp4.index(name) for name in (b"stsz", b"stts", b"stsc"))
    changed[sizes + 8 : sizes + 16] = struct.pack(">I", 1) + claimed
    changed[times + 12 : times + 16] = claimed
    changed[chunks + 16 : chunks + 20] = claimed
    return bytes(changed)


def fragmented() -> bytes:
    wave_CN = tone(rate=48_000)[None]
    return container(wave_CN, "mp4", "aac", movflags="empty_moov+default_base_moof+frag_keyframe")


def _with_large_fragment(count: int, box: bytes = b"traf") -> bytes:
    """An MP4 whose fragment claims ``count`` samples of one byte, in few bytes."""
    good = fragmented()
    old, header = good.index(b"trun") - 4, good.index(b"tfhd")
    size = int.from_bytes(good[old : old + 4])
    run = struct.pack(">I4sII", 16, b"trun", 0, count)
    padding = struct.pack(">I4s", size - len(run), b"free") + bytes(size - len(run) - 8)
    changed = bytearray(good[:old] + run + padding + good[old + size :])
    changed[header + 12 : header + 20] = struct.pack(">II", 1, 1)
    return bytes(changed).replace(b"traf", box)


def not_media(trap: str) -> dict[str, bytes]:
    """Files of no medium at all; unpickling one of them would create the file ``trap``."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("picture.png", bytes(64 << 20))
    return {
        "empty": b"",
        "one-byte": b"\xff",
        "text": b"A poem, and no medium at all.\n" * 9,
        "zeros": bytes(5_000),
        "ones": b"\xff" * 5_000,
        "gzip-bomb": gzip.compress(bytes(64 << 20), mtime=0),
        "zip-bomb": archive.getvalue(),
        "pickle": pickle.dumps(_Trap(trap)),
        "array": _array(trap),
    }


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def _array(trap: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Trap(trap)], dtype=object), allow_pickle=True)
    return buffer.getvalue()
