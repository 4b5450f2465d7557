"""Candidates -> validated tables, and what was refused with its reason.

``inspect`` looks at one file and ``assemble`` at all rows together; both are pure. What comes out
depends on the files alone, neither on their order nor on who looked at them.

    <uri>/{objects,clips,backgrounds,silent,photos,refused}.parquet
    <uri>/catalog.json          the commit point, written last

Shapes: H, W height and width in pixels; N samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from infra import config, media, storage
from synth.tables import (
    Background,
    Candidate,
    Clip,
    Object,
    Photo,
    Refused,
    SilentObject,
    read_table,
    write_table,
)

FORMAT = 1
MARKER = "catalog.json"

MAX_BYTES = 256 << 20
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
MIN_SECONDS, MAX_SECONDS = 0.1, 600.0
# Full scale is 1. Upstream's "makes no sound" files have exactly 0; 16-bit noise alone is 1e-5.
MIN_RMS = 1e-4
OPAQUE = 128
MIN_MASK_FRACTION, MAX_MASK_FRACTION = 0.005, 0.995

Accepted: TypeAlias = Object | SilentObject | Clip | Background | Photo
MapRows: TypeAlias = Callable[
    [list[dict[str, str]], Callable[[dict[str, str]], dict[str, str]]], list[dict[str, str]]
]

_TABLES: dict[str, type[Any]] = {
    "objects": Object,
    "clips": Clip,
    "backgrounds": Background,
    "silent": SilentObject,
    "photos": Photo,
    "refused": Refused,
}


def inspect(candidate: Candidate, data: bytes) -> Accepted | Refused:
    """Decode one file and measure it; what does not fit its role is refused with the reason."""
    try:
        if candidate.refusal:
            raise ValueError(candidate.refusal)
        if candidate.role == "sound":
            return _inspect_sound(candidate, data)
        return _inspect_picture(candidate, data)
    except ValueError as error:
        return _refuse(candidate, str(error))


def _refuse(candidate: Candidate, reason: str) -> Refused:
    return Refused(id=candidate.path, source=candidate.source, reason=reason)


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
        **_origin(candidate),
        class_name=_class_of(candidate),
        seconds=round(seconds, 6),
        rate=rate,
        rms=round(rms, 6),
        peak=round(float(np.abs(wave_N).max()), 6),
        sha256=hashlib.sha256(f"{rate}\n".encode() + pcm_N.tobytes()).hexdigest(),
    )


def _inspect_picture(candidate: Candidate, data: bytes) -> Accepted:
    try:
        image_HWC = media.decode_image(data, max_pixels=MAX_PIXELS)
    except ValueError as error:
        raise ValueError(f"unreadable: {error}") from None
    height, width, _ = image_HWC.shape
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"size: {width}x{height} pixels, a side is shorter than {MIN_SIDE}")
    if candidate.role in ("object", "silent"):
        fraction = _mask_fraction(image_HWC)
        # What stands under full transparency is not seen and differs between savers.
        image_HWC = image_HWC * (image_HWC[..., 3:] > 0)
        row_type = Object if candidate.role == "object" else SilentObject
        return row_type(
            **_origin(candidate),
            class_name=_class_of(candidate),
            width=width,
            height=height,
            mask_fraction=round(fraction, 6),
            sha256=_pixel_digest(image_HWC),
        )
    if image_HWC.shape[2] == 4:
        if image_HWC[..., 3].min() < 255:
            raise ValueError("transparency: a whole photograph may not have transparent parts")
        image_HWC = image_HWC[..., :3]
    size = {"width": width, "height": height, "sha256": _pixel_digest(image_HWC)}
    if candidate.role == "photo":
        return Photo(**_origin(candidate), class_name=_class_of(candidate), **size)
    assert candidate.role == "background", candidate
    return Background(**_origin(candidate), collection=candidate.collection, **size)


def _origin(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.path,
        "uri": candidate.path,
        "source": candidate.source,
        "licence": candidate.licence,
        "author": candidate.author,
        "origin": candidate.origin,
    }


def _class_of(candidate: Candidate) -> str:
    if candidate.role in ("object", "sound") and not candidate.class_name:
        raise ValueError("class: nothing says what it is")
    return candidate.class_name


def _mask_fraction(image_HWC: np.ndarray) -> float:
    if image_HWC.shape[2] != 4:
        raise ValueError("transparency: a cut-out needs an alpha channel and this has none")
    fraction = float((image_HWC[..., 3] >= OPAQUE).mean())
    if not MIN_MASK_FRACTION <= fraction <= MAX_MASK_FRACTION:
        raise ValueError(f"transparency: {fraction:.1%} of the cut-out is opaque")
    return fraction


def _pixel_digest(image_HWC: np.ndarray) -> str:
    shape = "x".join(map(str, image_HWC.shape))
    return hashlib.sha256(
        f"{shape}\n".encode() + np.ascontiguousarray(image_HWC).tobytes()
    ).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The validated tables, each sorted by id. ``folder`` is the URI of the media folder."""

    folder: str
    objects: list[Object]
    clips: list[Clip]
    backgrounds: list[Background]
    silent: list[SilentObject]
    photos: list[Photo]
    refused: list[Refused]

    @property
    def classes(self) -> list[str]:
        """The classes that have both an object and a clip, sorted."""
        pictured = {row.class_name for row in self.objects}
        return sorted(pictured & {row.class_name for row in self.clips})

    @property
    def fingerprint(self) -> str:
        """sha256 of the content of all tables; where the media lie does not matter."""
        return config.digest({name: [vars(r) for r in getattr(self, name)] for name in _TABLES})

    @property
    def licences(self) -> dict[str, int]:
        """How many accepted files stand under each licence."""
        accepted = [row for name in _TABLES if name != "refused" for row in getattr(self, name)]
        return dict(sorted(Counter(row.licence for row in accepted).items()))

    @property
    def refused_by_reason(self) -> dict[str, int]:
        """How many files were refused for each kind of reason."""
        return dict(sorted(Counter(row.reason.split(":")[0] for row in self.refused).items()))

    def uri_of(self, row: Accepted) -> str:
        """The full URI of a row's file."""
        return storage.join(self.folder, row.uri)

    def summary(self) -> dict[str, Any]:
        """Counts for people and reports."""
        counts = {name: len(getattr(self, name)) for name in _TABLES}
        return {
            **counts,
            "classes": len(self.classes),
            "refused_by_reason": self.refused_by_reason,
            "licences": self.licences,
        }

    def write(self, uri: str) -> None:
        """Write the tables, then the marker that makes them a catalog."""
        storage.remove(storage.join(uri, MARKER))
        for name, row_type in _TABLES.items():
            write_table(storage.join(uri, f"{name}.parquet"), row_type, getattr(self, name))
        marker = {
            "format": FORMAT,
            "folder": self.folder,
            "fingerprint": self.fingerprint,
            **self.summary(),
        }
        storage.write_bytes(storage.join(uri, MARKER), config.canonical_json(marker))

    @classmethod
    def read(cls, uri: str) -> Catalog:
        """Read a catalog back.

        Raises:
            FileNotFoundError: there is none, or it was not finished.
            ValueError: another format, or the tables are not the ones that the marker speaks of.
        """
        try:
            marker = json.loads(storage.read_bytes(storage.join(uri, MARKER)))
            known = marker["format"] == FORMAT and isinstance(marker["folder"], str)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"{uri} is no catalog of format {FORMAT}: make it again")
        tables = {
            name: read_table(storage.join(uri, f"{name}.parquet"), row_type)
            for name, row_type in _TABLES.items()
        }
        catalog = cls(folder=marker["folder"], **tables)
        if catalog.fingerprint != marker.get("fingerprint"):
            raise ValueError(f"the tables of {uri} are not those it was closed with: make it again")
        return catalog


def assemble(folder: str, rows: Iterable[Accepted | Refused]) -> Catalog:
    """All rows in their tables. Of files with the same decoded content the first by id stays.

    Raises:
        ValueError: nothing can be made of it: no object, no clip or no background is left, or no
            class has both an object and a clip.
    """
    ordered = sorted(rows, key=lambda row: (row.id, type(row).__name__))
    tables: dict[type[Any], list[Any]] = {row_type: [] for row_type in _TABLES.values()}
    kept: dict[str, str] = {}
    for row in ordered:
        if not isinstance(row, Refused):
            first = kept.setdefault(row.sha256, row.id)
            if first != row.id:
                reason = f"duplicate: decodes to the same content as {first}"
                row = Refused(id=row.id, source=row.source, reason=reason)
        tables[type(row)].append(row)
    catalog = Catalog(folder=folder, **{name: tables[kind] for name, kind in _TABLES.items()})
    _check_usable(catalog)
    return catalog


def _check_usable(catalog: Catalog) -> None:
    needed = {"cut-out": catalog.objects, "sound": catalog.clips, "background": catalog.backgrounds}
    for what, rows in needed.items():
        if not rows:
            raise ValueError(f"{catalog.folder} holds no usable {what}; {_first_refusal(catalog)}")
    if not catalog.classes:
        raise ValueError(
            f"no class in {catalog.folder} has both a cut-out and a sound: name the folders of "
            "objects/ and sounds/ alike"
        )


def _first_refusal(catalog: Catalog) -> str:
    if not catalog.refused:
        return "none was offered"
    first = catalog.refused[0]
    return f"{len(catalog.refused)} files were refused, the first is {first.id} ({first.reason})"


def map_here(
    rows: list[dict[str, str]], fn: Callable[[dict[str, str]], dict[str, str]]
) -> list[dict[str, str]]:
    """Apply ``fn`` to every row in this process."""
    return [fn(row) for row in rows]


def build_catalog(
    folder: str, candidates: Sequence[Candidate], *, map_rows: MapRows = map_here
) -> Catalog:
    """Look at every candidate below ``folder`` and assemble the catalog.

    Args:
        map_rows: who applies a function to every row, in any order (``distribute.map_rows``
            does it on a Ray cluster).
    """
    ruled_out = [_refuse(c, c.refusal) for c in candidates if c.refusal]
    rows = [dataclasses.asdict(c) for c in candidates if not c.refusal]
    looked_at = map_rows(rows, partial(_inspect_row, folder=storage.normalise(folder)))
    parsed = [_TABLES[row["table"]](**json.loads(row["values"])) for row in looked_at]
    return assemble(storage.normalise(folder), [*ruled_out, *parsed])


def _inspect_row(row: dict[str, str], *, folder: str) -> dict[str, str]:
    """``inspect`` for a row of strings: what a table of mixed row types can carry."""
    candidate = Candidate(**row)
    result: Accepted | Refused
    try:
        uri = storage.join(folder, candidate.path)
        bytes_there = storage.size(uri)
        if bytes_there > MAX_BYTES:
            result = _refuse(candidate, f"size: {bytes_there} bytes, more than {MAX_BYTES}")
        else:
            result = inspect(candidate, storage.read_bytes(uri, limit=MAX_BYTES))
    except FileNotFoundError:
        result = _refuse(candidate, "missing: no such file")
    table = next(name for name, kind in _TABLES.items() if kind is type(result))
    return {"table": table, "values": json.dumps(vars(result))}
