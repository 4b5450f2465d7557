"""Looking at one file: what it offers becomes rows, or a refusal with its reason.

Pure: what comes out depends on the candidate and the bytes of its files alone.

Shapes: H, W height and width in pixels; N samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from infra import masks, media
from synth.soundtrack import loudest_second
from synth.tables import Annotation, Background, Candidate, Clip, Object, Photo, Refused

MAX_BYTES = 256 << 20
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
MIN_SECONDS, MAX_SECONDS = 0.1, 600.0
# Full scale is 1. Upstream's "makes no sound" files have exactly 0; 16-bit noise alone is 1e-5.
MIN_RMS = 1e-4
OPAQUE = 128
# Of a cut-out. What is marked in a photograph may be smaller: recipes have a limit of their own.
MIN_MASK_FRACTION, MAX_MASK_FRACTION = 0.005, 0.995

Accepted: TypeAlias = Object | Clip | Background | Photo
ReadFile: TypeAlias = Callable[[str], bytes]


def inspect(candidate: Candidate, data: bytes, read_mask: ReadFile) -> list[Accepted | Refused]:
    """Decode one file and measure it; what does not fit its role is refused with the reason.

    Args:
        read_mask: gives the bytes of a mask picture by its path below the candidate's root.

    Returns:
        one row, or one for each object of an annotated photograph.
    """
    try:
        if candidate.refusal:
            raise ValueError(candidate.refusal)
        if candidate.role == "sound":
            return [_inspect_sound(candidate, data)]
        if candidate.role == "annotated":
            return _inspect_annotated(candidate, data, read_mask)
        return [_inspect_picture(candidate, data)]
    except ValueError as error:
        return [refuse(candidate, str(error))]


def refuse(candidate: Candidate, reason: str) -> Refused:
    """The candidate as refused."""
    return Refused(id=candidate.uri, source=candidate.source, reason=reason)


def _inspect_sound(candidate: Candidate, data: bytes) -> Clip:
    try:
        wave_N, rate = media.decode_audio(data, max_seconds=MAX_SECONDS)
    except ValueError as error:
        raise ValueError(f"unreadable: {error}") from None
    seconds = wave_N.size / rate
    if seconds < MIN_SECONDS:
        raise ValueError(f"size: the sound lasts {seconds:.3f} s, less than {MIN_SECONDS} s")
    rms = float(np.sqrt(np.mean(np.square(wave_N, dtype=np.float64))))
    if rms < MIN_RMS:
        raise ValueError(f"silent: rms {rms:.6f} of full scale 1")
    # Hashed as 16-bit samples: the same take as WAV and as FLAC is one sound.
    pcm_N = np.rint(np.clip(wave_N, -1.0, 32767 / 32768) * 32768.0).astype("<i2")
    return Clip(
        **_origin(candidate, data),
        class_name=_class_of(candidate),
        video=candidate.video,
        recording=candidate.recording,
        seconds=round(seconds, 6),
        loudest=round(loudest_second(wave_N, rate), 6),
        rate=rate,
        rms=round(rms, 6),
        peak=round(float(np.abs(wave_N).max()), 6),
        sha256=hashlib.sha256(f"{rate}\n".encode() + pcm_N.tobytes()).hexdigest(),
    )


def _inspect_picture(candidate: Candidate, data: bytes) -> Accepted:
    image_HWC = _decode(data, upright=True)
    height, width, _ = image_HWC.shape
    if candidate.role in ("object", "silent"):
        if image_HWC.shape[2] != 4:
            raise ValueError("transparency: a cut-out needs an alpha channel and this has none")
        mask_HW = image_HWC[..., 3] >= OPAQUE
        fraction = float(mask_HW.mean())
        if not MIN_MASK_FRACTION <= fraction <= MAX_MASK_FRACTION:
            raise ValueError(f"transparency: {fraction:.1%} of the cut-out is opaque")
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        # What stands under full transparency is not seen and differs between savers.
        digest = _pixel_digest(image_HWC * (image_HWC[..., 3:] > 0))
        return Object(
            **_origin(candidate, data),
            class_name=_class_of(candidate),
            width=width,
            height=height,
            left=int(columns[0]),
            top=int(rows[0]),
            right=int(columns[-1]) + 1,
            bottom=int(rows[-1]) + 1,
            mask_fraction=round(fraction, 6),
            mask="",
            crowd=False,
            partial=False,
            absent="",
            picture=digest,
            sha256=digest,
        )
    if image_HWC.shape[2] == 4:
        if image_HWC[..., 3].min() < 255:
            raise ValueError("transparency: a whole photograph may not have transparent parts")
        image_HWC = image_HWC[..., :3]
    size = {"width": width, "height": height, "sha256": _pixel_digest(image_HWC)}
    if candidate.role == "photo":
        return Photo(**_origin(candidate, data), class_name=_class_of(candidate), **size)
    assert candidate.role == "background", candidate
    return Background(**_origin(candidate, data), collection=candidate.collection, **size)


def _inspect_annotated(
    candidate: Candidate, data: bytes, read_mask: ReadFile
) -> list[Accepted | Refused]:
    """A row for each object that is marked in a photograph, or why it cannot be used."""
    # Masks count the pixels as they are stored.
    image_HWC = _decode(data, upright=False)[..., :3]
    picture = _pixel_digest(image_HWC)
    origin = _origin(candidate, data)
    rows: list[Object | Refused] = []
    partial = set(candidate.partial)
    for marked in candidate.annotations:
        ident = f"{candidate.root}:{marked.id}"
        try:
            if marked.refusal:
                raise ValueError(marked.refusal)
            rle = _run_lengths(marked, image_HWC.shape[0], image_HWC.shape[1], read_mask)
            left, top, width, height = masks.bounding_box(rle)
            pixels = masks.area(rle)
            if not pixels:
                raise ValueError("mask: it is empty")
        except ValueError as error:
            reason = " ".join(str(error).split())
            kind = "" if reason.startswith("mask: ") else "mask: "
            rows.append(Refused(id=ident, source=candidate.source, reason=kind + reason))
            partial.add(marked.class_name)
            continue
        rows.append(
            Object(
                **{**origin, "id": ident},
                class_name=marked.class_name,
                width=image_HWC.shape[1],
                height=image_HWC.shape[0],
                left=left,
                top=top,
                right=left + width,
                bottom=top + height,
                mask_fraction=round(pixels / (image_HWC.shape[0] * image_HWC.shape[1]), 6),
                mask=rle["counts"],
                crowd=marked.crowd,
                partial=False,
                absent="|".join(sorted(candidate.absent)),
                picture=picture,
                sha256=hashlib.sha256(f"{picture} {rle['counts']}".encode()).hexdigest(),
            )
        )
    return [
        dataclasses.replace(row, partial=row.class_name in partial)
        if isinstance(row, Object)
        else row
        for row in rows
    ]


def _run_lengths(
    marked: Annotation, height: int, width: int, read_mask: ReadFile
) -> dict[str, Any]:
    if marked.segmentation:
        return masks.rle_from_segmentation(marked.segmentation, height, width)
    mask_HW = media.decode_mask(read_mask(marked.mask_path), max_pixels=MAX_PIXELS)
    if mask_HW.shape != (height, width):
        # Open Images' masks are as large as the photographs were before they were published
        # smaller: the same picture, another grid.
        _check_shape(mask_HW.shape, height, width)
        picture = Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST)
        mask_HW = np.asarray(picture)
    return masks.encode_mask_rle(mask_HW)


def _check_shape(mask_shape: tuple[int, ...], height: int, width: int) -> None:
    """ValueError unless two sizes are of one picture, each side rounded up or down."""
    high, wide = mask_shape
    if abs(wide * height - high * width) >= wide + high + width + height:
        raise ValueError(
            f"mask: its {wide}x{high} pixels have another shape than the photograph's "
            f"{width}x{height}"
        )


def _decode(data: bytes, *, upright: bool) -> np.ndarray:
    try:
        image_HWC = media.decode_image(data, max_pixels=MAX_PIXELS, upright=upright)
    except ValueError as error:
        raise ValueError(f"unreadable: {error}") from None
    height, width, _ = image_HWC.shape
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"size: {width}x{height} pixels, a side is shorter than {MIN_SIDE}")
    return image_HWC


def file_digest(data: bytes) -> str:
    """What ``file_sha256`` holds of a file with this content."""
    return hashlib.sha256(data).hexdigest()


def _origin(candidate: Candidate, data: bytes) -> dict[str, Any]:
    return {
        "id": candidate.uri,
        "uri": candidate.uri,
        "source": candidate.source,
        "licence": candidate.licence,
        "author": candidate.author,
        "origin": candidate.origin,
        "file_sha256": file_digest(data),
    }


def _class_of(candidate: Candidate) -> str:
    if candidate.role in ("object", "sound") and not candidate.class_name:
        raise ValueError("class: nothing says what it is")
    return candidate.class_name


def _pixel_digest(image_HWC: np.ndarray) -> str:
    shape = "x".join(map(str, image_HWC.shape))
    return hashlib.sha256(
        f"{shape}\n".encode() + np.ascontiguousarray(image_HWC).tobytes()
    ).hexdigest()
