"""Samples of a corpus to look at and to listen to: some of every class, drawn at random.

Only the members that are shown are read, by range, so that a corpus on object storage need not be
downloaded. Shapes: H, W height and width in pixels; N rows of an index, or samples of a sound.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra import media, storage
from infra.corpus import Corpus
from synth.charts import text

UNMASKED = "nothing to mask"
"""What stands for the samples whose masks are all empty."""
UNSTATED = "no class stated"
"""What stands for the others that name no class: MS3's table, for one, does not say what sounds."""

_MOST_FIGURES = 160
_MOST_PER_CLASS = 4
_SIDE = 160
_READERS = 8
# Tried in turn until a figure is as small as it has to be.
_QUALITIES = (80, 50, 20)
_SECONDS = (3.0, 2.0, 1.0, 0.5, 0.25)
_HEADING_BYTES = 1_000
_CAPTION_BYTES = 1_500
# Magenta is rare in photographs.
_FILL = (230, 20, 150, 120)
_EDGE = (255, 255, 255, 235)

_Place = tuple[str, int]  # split and row


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Samples as HTML."""

    html: str
    anchors: dict[str, str]
    """The id of the element that shows a class."""


def draw_gallery(corpus: Corpus, tables: Mapping[str, pa.Table], most_bytes: int) -> Gallery:
    """Up to four samples of each class, from as many splits, in at most ``most_bytes`` of HTML.

    Args:
        tables: the index of each split.

    Raises:
        ValueError: a member of a sample that is to be shown is damaged.
    """
    chosen, left_out = _choose(corpus, tables)
    places = [(name, place) for name, some in chosen.items() for place in some]
    if not places:
        return Gallery(html="<p>The corpus has no samples.</p>", anchors={})
    records = [tables[split].slice(row, 1).to_pylist()[0] for _, (split, row) in places]
    figures: dict[str, list[str]] = {}
    left = most_bytes - _HEADING_BYTES * (len(chosen) + 1)
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(partial(_read_members, corpus.uri), records)
        for number, members in enumerate(read):
            name, (split, _) = places[number]
            # What a small one leaves goes to those after it.
            share = left // (len(places) - number)
            try:
                figure = _figure(name, split, records[number], members, share)
            except ValueError as error:
                raise _damaged(corpus, records[number], error) from None
            figures.setdefault(name, []).append(figure)
            left -= len(figure.encode())
    anchors = {name: f"class-{number}" for number, name in enumerate(figures)}
    classes = "".join(
        f'<section id="{anchors[name]}"><h3>{text(name)}</h3>'
        f'<div class="figures">{"".join(drawn)}</div></section>'
        for name, drawn in figures.items()
    )
    html = (
        "<p>Drawn at random from all splits, the same ones at every look. Press a picture to "
        "switch its mask.</p>"
        + (f"<p>{left_out:,} classes with fewer samples are left out.</p>" if left_out else "")
        + '<input type="checkbox" id="masks" checked><label for="masks">Masks on all pictures'
        + f'</label><div class="gallery">{classes}</div>'
    )
    return Gallery(html=html, anchors=anchors)


def _choose(corpus: Corpus, tables: Mapping[str, pa.Table]) -> tuple[dict[str, list[_Place]], int]:
    """Which samples stand for each class, and how many classes found no room."""
    total: Counter[str] = Counter()
    for split in tables:
        total.update(corpus.manifest["splits"][split]["classes"])
    most = sorted(total, key=lambda name: (-total[name], name))[: _MOST_FIGURES - 2]
    names = [*sorted(most), UNSTATED, UNMASKED]
    per_class = min(_MOST_FIGURES // len(names), _MOST_PER_CLASS)
    drawn = {split: _draw_rows(index, 2 * per_class) for split, index in tables.items()}
    chosen: dict[str, list[_Place]] = {}
    taken: set[_Place] = set()
    for number, name in enumerate(names):
        # One split after the other, and classes begin with different ones.
        splits = [list(tables)[(number + turn) % len(tables)] for turn in range(len(tables))]
        rounds = zip_longest(*([(s, row) for row in drawn[s].get(name, [])] for s in splits))
        queue = [place for some in rounds for place in some if place is not None]
        fresh = [place for place in queue if place not in taken]
        if queue:
            chosen[name] = (fresh or queue)[:per_class]
            taken.update(chosen[name])
    return chosen, len(total) - len(most)


def _draw_rows(index: pa.Table, most: int) -> dict[str, list[int]]:
    """Up to ``most`` rows of each class of one split, in an order drawn once for all.

    So too those of ``UNSTATED`` and ``UNMASKED``.
    """
    classes = index["classes"].combine_chunks()
    rank_N = np.random.default_rng(0).permutation(len(index))
    others = {UNSTATED: unstated_rows(index), UNMASKED: unmasked_rows(index)}
    rows = {name: o_N[np.argsort(rank_N[o_N])][:most].tolist() for name, o_N in others.items()}
    coded = pc.list_flatten(classes).dictionary_encode()
    row_N = pc.list_parent_indices(classes).to_numpy()
    code_N = coded.indices.to_numpy()
    order_N = np.lexsort((rank_N[row_N], code_N))
    starts = np.searchsorted(code_N[order_N], np.arange(len(coded.dictionary)))
    ends = np.searchsorted(code_N[order_N], np.arange(len(coded.dictionary)), side="right")
    for name, start, end in zip(coded.dictionary.to_pylist(), starts, ends, strict=True):
        rows[name] = row_N[order_N[start : min(end, start + most)]].tolist()
    return rows


def _figure(
    name: str, split: str, record: dict[str, Any], members: dict[str, bytes], share: int
) -> str:
    """Picture, mask and sound of a sample below the heading ``name``, in ``share`` bytes."""
    image_HW3 = media.decode_image(members["frame"])[..., :3]
    key, sounding = record["key"], " and ".join(record["classes"]) or _heard(members["meta"])
    scale = min(1.0, _SIDE / max(image_HW3.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image_HW3.shape[:2])
    size = f'width="{width}" height="{height}"'
    picture = _encode_picture(media.resize_image(image_HW3, height, width), share // 3)
    view = (
        f'<img {size} alt="Picture of {key}, sound: {text(sounding)}" '
        f'src="{_data("image/jpeg", picture)}">'
    )
    area = "no mask"
    if "mask" in members:
        mask_HW = media.decode_mask(members["mask"])
        area = f"mask {mask_HW.mean():.1%}" if mask_HW.any() else "empty mask"
        overlay = media.encode_png(_overlay(mask_HW, height, width))
        view += (
            f'<img class="mask" {size} alt="{area} of the picture" '
            f'src="{_data("image/png", overlay)}">'
        )
    sound, heard, length = _encode_sound(members["audio"], share - len(view) - _CAPTION_BYTES)
    told = f"{length:.3g} s" if heard >= length else f"first {heard:.3g} of {length:.3g} s"
    both = f"<b>{text(sounding)}</b><br>" if sounding != name else ""
    return (
        f'<figure><label class="view"><input type="checkbox" aria-label="Switch the mask of {key}">'
        f'{view}</label><audio controls controlslist="nodownload noplaybackrate" preload="none" '
        f'aria-label="Sound of {key}" src="{_data("audio/flac", sound)}"></audio>'
        f"<figcaption>{both}{text(split)}, {area}, {told}<br><code>{key}</code></figcaption>"
        "</figure>"
    )


def _heard(meta: bytes) -> str:
    """What a sample that names no class sounds of; the index does not tell."""
    told = json.loads(meta)
    off_screen = told.get("off_screen")
    if off_screen:
        # AVSBench's clips have a yes there, ours the classes.
        names = " and ".join(off_screen) if isinstance(off_screen, list) else "a sound"
        return f"{names} off screen"
    # Only what was made lists its objects and all of its sounds. The list of sounds of real footage
    # is empty whatever is heard.
    return "silence" if "objects" in told and told.get("sound") == [] else UNSTATED


def unmasked_rows(index: pa.Table) -> np.ndarray:
    """int ``[N]``: the rows of the samples whose masks are all empty."""
    return np.flatnonzero(_is_unmasked(index))


def unstated_rows(index: pa.Table) -> np.ndarray:
    """int ``[N]``: the rows of the samples that name no class and are not known to be unmasked."""
    is_unnamed_N = np.asarray(pc.equal(pc.list_value_length(index["classes"]), 0))
    return np.flatnonzero(is_unnamed_N & ~_is_unmasked(index))


def _is_unmasked(index: pa.Table) -> np.ndarray:
    """bool ``[N]``; an area that was not recorded is none that is empty."""
    return np.asarray(index["mask_area"].to_numpy() == 0)


def count_off_screen(corpus: Corpus, index: pa.Table, rows_N: np.ndarray) -> int:
    """How many of some samples sound of what is not in the picture, as their metadata says.

    Raises:
        ValueError: that of one is damaged.
    """
    found = 0
    records = index.take(pa.array(rows_N)).to_pylist()
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(partial(_read_meta, corpus.uri), records)
        for record, meta in zip(records, read, strict=True):
            try:
                found += bool(json.loads(meta).get("off_screen"))
            except ValueError as error:
                raise _damaged(corpus, record, error) from None
    return found


def _damaged(corpus: Corpus, record: dict[str, Any], error: ValueError) -> ValueError:
    return ValueError(
        f"{corpus.uri}/{record['shard']} is damaged at {record['key']} ({error}): "
        "remove it and run the job again"
    )


def _read_members(uri: str, record: dict[str, Any]) -> dict[str, bytes]:
    """``frame`` and ``mask`` of the first annotated frame, ``audio`` with its sound, ``meta``.

    Where nothing is annotated ``frame`` is the first and ``mask`` is absent. ``meta`` is there
    where the index does not tell what is heard.
    """
    placed = {member["name"].split(".")[0]: member for member in record["members"]}
    annotated = [k for k in range(record["frames"]) if f"mask{k}" in placed]
    k = annotated[0] if annotated else 0
    roles = {"frame": f"frame{k}", "mask": f"mask{k}", "audio": "audio"}
    if not record["classes"]:
        roles["meta"] = "json"
    return {
        role: _read(uri, record, placed[name]) for role, name in roles.items() if name in placed
    }


def _read_meta(uri: str, record: dict[str, Any]) -> bytes:
    (placed,) = (member for member in record["members"] if member["name"] == "json")
    return _read(uri, record, placed)


def _read(uri: str, record: dict[str, Any], placed: dict[str, Any]) -> bytes:
    shard = storage.join(uri, record["shard"])
    return storage.read_range(shard, placed["offset"], placed["size"])


def _encode_picture(image_HW3: np.ndarray, most: int) -> bytes:
    for quality in _QUALITIES:
        data = media.encode_jpeg(image_HW3, quality=quality)
        if len(data) * 4 // 3 <= most:
            break
    return data


def _overlay(mask_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 ``[height, width, 4]`` to lay over the picture: a tint with an edge."""
    grey_HW = media.resize_image(mask_HW.astype(np.uint8) * 255, height, width)
    inside_HW = grey_HW >= 128
    around_HW = np.pad(inside_HW, 1)
    core_HW = around_HW[:-2, 1:-1] & around_HW[2:, 1:-1] & around_HW[1:-1, :-2]
    core_HW &= around_HW[1:-1, 2:]
    overlay_HW4 = np.zeros((height, width, 4), np.uint8)
    overlay_HW4[inside_HW] = _EDGE
    overlay_HW4[inside_HW & core_HW] = _FILL
    return overlay_HW4


def _encode_sound(data: bytes, most: int) -> tuple[bytes, float, float]:
    """FLAC, its length and that of the whole sound in seconds."""
    wave_N, rate = media.decode_audio(data)
    length = len(wave_N) / rate
    if length <= _SECONDS[0] and data[:4] == b"fLaC" and len(data) * 4 // 3 <= most:
        return data, length, length
    for seconds in _SECONDS:
        heard_N = media.resample(wave_N[: int(seconds * rate)], rate)
        data = media.encode_flac(heard_N)
        if len(data) * 4 // 3 <= most:
            break
    return data, len(heard_N) / media.SAMPLE_RATE, length


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
