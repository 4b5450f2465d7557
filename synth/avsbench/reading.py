"""One clip -> one sample of a corpus. Shapes: N samples of sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infra import media
from infra.corpus import Refused, Sample
from synth.avsbench import files, pictures, raw_video
from synth.avsbench.rows import FRAMES, ClipRow
from synth.avsbench.table import SEMANTIC
from synth.soundtrack import loudness_db

_MAX_SECONDS = 60.0
EXAMPLE_SAMPLES, EXAMPLE_HOP = 15_600, 15_360

Content = Mapping[str, bytes]
"""Of the files of a clip, by path."""


def read_clips(rows: Sequence[ClipRow]) -> Iterator[Sample | Refused]:
    """``to_sample`` of each; a clip that cannot be used is refused with its reason."""
    for row in rows:
        try:
            yield to_sample(row)
        except (ValueError, FileNotFoundError) as error:
            yield Refused(id=row.entry.id, source=row.kind, reason=str(error))


def to_sample(row: ClipRow, odd: list[str] | None = None) -> Sample:
    """Read a clip: frames and masks as they are, sound as 16 kHz mono FLAC.

    Args:
        odd: gets what was odd and could be used all the same, each its kind, a colon and more.

    Raises:
        ValueError: a file cannot be decoded, a mask has other values than 0 and 255 (or 0 and 1),
            sizes differ, or the sound is shorter than one audio example (0.975 s).
        FileNotFoundError: a file has gone since the tree was listed.
    """
    odd = [] if odd is None else odd
    members: dict[str, bytes] = {}
    content = files.read_many([f for f in (row.raw, *row.frames, *row.masks, row.sound) if f])
    shares = []
    for frame, (data, path) in enumerate(_frames(row, content)):
        size: tuple[int, ...] = pictures.decoded(data, path).shape[:2]
        members[f"frame{frame}.{pictures.suffix(data, path)}"] = data
        share = _annotate(row, frame, content, size, members, odd)
        if share is not None:
            shares.append(share)
    wave_N = _sound(row, content)
    _note_short(row, wave_N, odd)
    members["audio.flac"] = media.encode_flac(wave_N)
    meta: dict[str, Any] = {
        "key": row.key,
        "kind": row.kind,
        "split": row.split,
        "scene": row.name,
        "name": row.name,
        "classes": _classes(row),
        "frames": FRAMES[row.entry.subset],
        "audio_seconds": wave_N.size / media.SAMPLE_RATE,
        # Of footage nobody lists what is mixed in its sound: empty there, and no silence.
        "sound": list(row.clips),
        "mask_area": float(np.mean(shares)),
        "loudness_db": loudness_db(wave_N.astype(np.float32) / 32768.0),
    }
    if row.entry.category:
        meta["category"] = row.entry.category
    if row.entry.off_screen:
        meta["off_screen"] = True
    if row.raw:
        meta["extracted"] = _extracted(row)
        odd.append(f"extracted: {' and '.join(_extracted(row))} from {row.raw.path}")
    if row.objects is not None:
        meta["objects"] = list(row.objects)
    return Sample(key=row.key, members=members, meta=meta)


def _frames(row: ClipRow, content: Content) -> Iterator[tuple[bytes, str]]:
    """Each frame's file with its path."""
    made: list[bytes] = []
    if None in row.frames:
        assert row.raw is not None, "a clip without all frames has a raw video"
        made = raw_video.frames_of(
            content[row.raw.path],
            row.raw.path,
            len(row.frames),
            side=row.side,
            max_seconds=_MAX_SECONDS,
        )
    for frame, file in enumerate(row.frames):
        if file is not None:
            yield content[file.path], file.path
        elif row.raw is not None:
            yield made[frame], row.raw.path


def _annotate(
    row: ClipRow,
    frame: int,
    content: Content,
    size: tuple[int, ...],
    members: dict[str, bytes],
    odd: list[str],
) -> float | None:
    """Add the frame's mask and label map; the share of it that is masked, None without a mask."""
    file = row.masks[frame]
    if file is None:
        return None
    data = content[file.path]
    if row.entry.subset in SEMANTIC:
        index_HW, strange = pictures.read_labels(data, file, size)
        inside_HW = index_HW > 0
        members[f"label{frame}.png"] = media.encode_png(index_HW)
        members[f"mask{frame}.png"] = media.encode_png(inside_HW)
    else:
        # At a video's own size the frame and the squashed mask show the same field of view.
        wanted = size if row.frames[frame] or row.side else None
        members[f"mask{frame}.png"], inside_HW, strange = pictures.read_mask(data, file, wanted)
    if strange and strange not in odd:
        odd.append(strange)
    return float(inside_HW.mean())


def _classes(row: ClipRow) -> list[str]:
    """What sounds: as the table says; MS3's does not say it, its miniature does."""
    if row.entry.subset != "ms3":
        return row.entry.classes
    shown = [thing for frame in row.objects or () for thing in frame]
    return sorted({thing["class"] for thing in shown if thing["sounding"]})


def _extracted(row: ClipRow) -> list[str]:
    missing = {"frames": None in row.frames, "sound": row.sound is None}
    return [what for what, is_missing in missing.items() if is_missing]


def _sound(row: ClipRow, content: Content) -> np.ndarray:
    """int16 ``[N]`` at 16 kHz; a 16-bit mono file of that rate keeps every sample."""
    file = row.sound or row.raw
    assert file is not None, "a clip without sound has a raw video"
    try:
        wave_N, rate = media.decode_audio(content[file.path], max_seconds=_MAX_SECONDS)
    except ValueError as error:
        raise ValueError(f"unreadable: {file.path}: {error}") from None
    wave_N = media.resample(wave_N, rate)
    if wave_N.size < EXAMPLE_SAMPLES:
        seconds = wave_N.size / media.SAMPLE_RATE
        raise ValueError(f"sound: {file.path} lasts {seconds:.3f} s, one example needs 0.975 s")
    return np.clip(np.rint(wave_N * 32768.0), -32768, 32767).astype(np.int16)


def _note_short(row: ClipRow, wave_N: np.ndarray, odd: list[str]) -> None:
    """The benchmark repeats the last example where there are fewer than frames."""
    examples = (wave_N.size - EXAMPLE_SAMPLES) // EXAMPLE_HOP + 1
    wanted = FRAMES[row.entry.subset]
    if examples < wanted:
        seconds = wave_N.size / media.SAMPLE_RATE
        odd.append(f"short sound: {seconds:.3f} s, so {examples} examples for {wanted} frames")
