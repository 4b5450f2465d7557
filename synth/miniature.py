"""A miniature in AVSBench's own on-disk layout (S4 and MS3), made of cut-outs and clips.

It stands in for the gated benchmark where a whole chain is to be tried, in a style that differs
from the synthetic corpus as real footage does: objects move and grow, backgrounds come from another
collection, scale and light differ. It is no part of AVSBench, and ``miniature.json`` says so::

    <uri>/miniature.json                                              written last
    <uri>/Single-source/s4_meta_data.csv                              name,start,category,split
    <uri>/Single-source/s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
    <uri>/Single-source/s4_data/gt_masks/{split}/{category}/{name}/{name}_{1..5}.png  train: _1
    <uri>/Single-source/s4_data/audio_wav/{split}/{category}/{name}.wav
    <uri>/Multi-sources/ms3_meta_data.csv                             video_id,split
    <uri>/Multi-sources/ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png     no split level
    <uri>/Multi-sources/ms3_data/gt_masks/{split}/{name}/{name}_{1..5}.png
    <uri>/Multi-sources/ms3_data/audio_wav/{split}/{name}.wav

``plan_miniature`` and ``write_clip`` are pure functions of their arguments: the tree has the same
bytes whoever writes which clip.

Shapes: H, W pixels; N samples; T frames, one a second.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from infra import media, storage
from infra.config import canonical_json, digest, to_dict
from infra.masks import encode_mask_rle
from synth.compose import Light, Placement, apply_light, compose, crop_background, fit, trim
from synth.looking import MapRows, map_here
from synth.miniature_plan import (
    CANVAS,
    FRAMES,
    SPLITS,
    Actor,
    ClipPlan,
    Counts,
    MiniatureConfig,
    Track,
    plan_miniature,
    position,
)
from synth.pools import Pools
from synth.soundtrack import mix, prepare, samples_of, stretch

__all__ = [
    "MARKER",
    "ClipPlan",
    "Counts",
    "MiniatureConfig",
    "Pools",
    "finish",
    "plan_miniature",
    "write_clip",
    "write_miniature",
]

MARKER = "miniature.json"
NOTE = (
    "A miniature: made pictures and sounds in the on-disk layout of AVSBench. It is not AVSBench, "
    "and no score on it is a score on AVSBench."
)
SECONDS = 5.0

# VGGish example k, which belongs to frame k, covers samples 15360 k to 15360 k + 15600.
EXAMPLE_HOP, EXAMPLE_LENGTH = 15_360, 15_600
_FADE = 80


def write_clip(uri: str, plan: ClipPlan, media_folder: str) -> dict[str, Any]:
    """Write a clip's frames, masks and sound below ``uri``.

    Returns:
        what ``miniature.json`` says of the clip: per frame every object with its class, its asset,
        whether it sounds and what is visible of it, and the ids of the clips in its sound.
    """
    frames, visible_T = render_frames(plan, media_folder)
    record: dict[str, Any] = {"frames": [], "sound": sorted({t.clip for t in plan.tracks})}
    files: dict[str, bytes] = {}
    for frame, (image_HW3, visible) in enumerate(zip(frames, visible_T, strict=True)):
        files[frame_path(plan, frame)] = _quick_png(image_HW3)
        truth_HW = np.zeros((CANVAS, CANVAS), bool)
        shown = []
        for actor, visible_HW in zip(plan.actors, visible, strict=True):
            sounding = plan.sounds(actor.class_name, frame)
            truth_HW |= visible_HW & sounding
            shown.append(
                {
                    "class": actor.class_name,
                    "asset": actor.asset,
                    "sounding": sounding,
                    "visible": encode_mask_rle(visible_HW),
                }
            )
        record["frames"].append(shown)
        # S4 is annotated on the first frame only in train.
        if plan.subset == "ms3" or plan.split != "train" or frame == 0:
            files[mask_path(plan, frame)] = media.encode_png(truth_HW)
    files[sound_path(plan)] = media.encode_wav(render_sound(plan, media_folder))
    # Small files wait for the disk or the network, not for the processor: all at once.
    with ThreadPoolExecutor(len(files)) as threads:
        write = threads.map(
            lambda path: storage.write_bytes(storage.join(uri, path), files[path]), files
        )
        list(write)
    return record


def _quick_png(image_HW3: np.ndarray) -> bytes:
    """PNG at a third of the usual time and a tenth more bytes: most of what a clip costs."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def render_frames(
    plan: ClipPlan, media_folder: str
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """The frames, uint8 ``[H, W, 3]``, and per frame what is visible of each actor."""
    picture_HW3 = _picture(storage.join(media_folder, plan.background))[..., :3]
    x, y, zoom = plan.crop
    background = crop_background(picture_HW3, x=x, y=y, zoom=zoom, size=(CANVAS, CANVAS))
    background = apply_light(background, plan.light)
    frames, visible = [], []
    for frame in range(FRAMES):
        layers = []
        for actor in plan.actors:
            cutout_HW4 = _cutout(storage.join(media_folder, actor.uri))
            (x, y), long_side = position(actor.centres, actor.long_sides, frame)
            width, height = fit(cutout_HW4, round(long_side))
            placement = Placement(
                left=x - width / 2,
                top=y - height / 2,
                width=width,
                height=height,
                flip=actor.flip,
                light=actor.light,
            )
            layers.append((cutout_HW4, placement))
        image_HW3, masks = compose(background, layers)
        frames.append(image_HW3)
        visible.append(masks)
    return frames, visible


def render_sound(plan: ClipPlan, media_folder: str) -> np.ndarray:
    """Five seconds at 16 kHz; VGGish example k holds just what frame k's mask says."""
    samples = samples_of(SECONDS)
    tracks = []
    for track in plan.tracks:
        wave_N = stretch(_sound(storage.join(media_folder, track.uri)), samples, start=track.start)
        tracks.append((wave_N * _gate(track.seconds, samples), track.gain_db))
    return mix(tracks, samples, noise_db=plan.noise_db, seed=plan.seed)


def _gate(seconds: Sequence[bool], samples: int) -> np.ndarray:
    """float32 ``[N]``, 1 where the track is heard.

    Neighbouring examples share 240 samples; where only one of them sounds, these stay silent.
    """
    gate_N = np.zeros(samples, np.float32)
    ramp_N = np.linspace(0.0, 1.0, _FADE, dtype=np.float32)
    for second, on in enumerate(seconds):
        if not on:
            continue
        goes_on = second + 1 < len(seconds) and seconds[second + 1]
        went_on = second > 0 and seconds[second - 1]
        shared = EXAMPLE_LENGTH - EXAMPLE_HOP
        first = 0 if second == 0 else second * EXAMPLE_HOP + (0 if went_on else shared)
        last = samples if second + 1 == len(seconds) else (second + 1) * EXAMPLE_HOP
        gate_N[first:last] = 1.0
        if not went_on:
            gate_N[first : first + _FADE] = ramp_N
        if not goes_on:
            gate_N[last - _FADE : last] = ramp_N[::-1]
    return gate_N


@functools.lru_cache(maxsize=64)
def _picture(uri: str) -> np.ndarray:
    return media.decode_image(storage.read_bytes(uri))


@functools.lru_cache(maxsize=256)
def _cutout(uri: str) -> np.ndarray:
    return trim(_picture(uri))


@functools.lru_cache(maxsize=256)
def _sound(uri: str) -> np.ndarray:
    wave_N, rate = media.decode_audio(storage.read_bytes(uri))
    return prepare(without_pauses(media.resample(wave_N, rate)))


def without_pauses(wave_N: np.ndarray) -> np.ndarray:
    """The sound with its pauses cut short, so that no second of a loop is without it."""
    block = media.SAMPLE_RATE // 50
    if wave_N.size < 2 * block:
        return wave_N
    blocks_BN = wave_N[: wave_N.size // block * block].reshape(-1, block)
    level_B = np.sqrt(np.mean(np.square(blocks_BN, dtype=np.float64), axis=1))
    loud_B = level_B > 0.03 * level_B.max()
    # A tenth of a second of pause stays on either side of what is loud.
    kept_B = np.convolve(loud_B, np.ones(11), mode="same") > 0
    return blocks_BN[kept_B].reshape(-1)


def _data_folder(subset: str) -> str:
    return {"s4": "Single-source/s4_data", "ms3": "Multi-sources/ms3_data"}[subset]


def frame_path(plan: ClipPlan, frame: int) -> str:
    """Path of a frame below the tree; files count from 1."""
    folder = f"{_data_folder(plan.subset)}/visual_frames"
    if plan.subset == "s4":
        file = f"{plan.name}_{frame + 1}.png"
        return f"{folder}/{plan.split}/{plan.category}/{plan.name}/{file}"
    return f"{folder}/{plan.name}/{plan.name}.mp4_{frame + 1}.png"


def mask_path(plan: ClipPlan, frame: int) -> str:
    """Path of a mask below the tree."""
    level = f"{plan.split}/{plan.category}" if plan.subset == "s4" else plan.split
    folder = f"{_data_folder(plan.subset)}/gt_masks/{level}/{plan.name}"
    return f"{folder}/{plan.name}_{frame + 1}.png"


def sound_path(plan: ClipPlan) -> str:
    """Path of the sound below the tree."""
    level = f"{plan.split}/{plan.category}" if plan.subset == "s4" else plan.split
    return f"{_data_folder(plan.subset)}/audio_wav/{level}/{plan.name}.wav"


def finish(
    uri: str,
    plans: Sequence[ClipPlan],
    records: Sequence[dict[str, Any]],
    *,
    config: MiniatureConfig,
    fingerprint: str,
) -> dict[str, Any]:
    """Write the csv tables and then ``miniature.json``, after which the tree stands.

    Args:
        records: what ``write_clip`` returned for each plan.
        fingerprint: of everything that the tree depends on.

    Returns:
        a summary: clips per subset and split, classes, licences.
    """
    s4 = [(p.name, "0", p.category, p.split) for p in plans if p.subset == "s4"]
    ms3 = [(p.name, p.split) for p in plans if p.subset == "ms3"]
    _write_csv(uri, "Single-source/s4_meta_data.csv", ("name", "start", "category", "split"), s4)
    _write_csv(uri, "Multi-sources/ms3_meta_data.csv", ("video_id", "split"), ms3)
    summary: dict[str, Any] = {
        "kind": "miniature",
        "note": NOTE,
        "config": to_dict(config),
        "fingerprint": fingerprint,
        "classes": sorted({a.class_name for p in plans for a in p.actors if a.class_name}),
        "licences": sorted({licence for plan in plans for licence in plan.licences}),
        "counts": {
            subset: {
                split: sum(p.subset == subset and p.split == split for p in plans)
                for split in SPLITS
            }
            for subset in ("s4", "ms3")
        },
    }
    clips = {plan.name: record for plan, record in zip(plans, records, strict=True)}
    # Run lengths of every frame: written without the indents of small documents.
    marker = json.dumps({**summary, "clips": clips}, sort_keys=True, separators=(",", ":"))
    storage.write_bytes(storage.join(uri, MARKER), marker.encode())
    return summary


def _write_csv(
    uri: str, path: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    storage.write_bytes(storage.join(uri, path), text.getvalue().encode())


def write_miniature(
    uri: str,
    pools: Pools,
    config: MiniatureConfig,
    media_folder: str,
    *,
    map_rows: MapRows = map_here,
) -> dict[str, Any]:
    """Write the whole tree, or nothing where the same one stands already.

    Args:
        media_folder: what the assets' uris are relative to.
        map_rows: who writes the clips (``distribute.map_rows`` does it on a Ray cluster).

    Returns:
        the summary of ``finish``.
    """
    plans = plan_miniature(pools, config)
    fingerprint = digest([[_to_json(plan) for plan in plans], _asset_digests(pools)])
    standing = _standing(uri)
    if standing.get("fingerprint") == fingerprint:
        return {key: value for key, value in standing.items() if key != "clips"}
    storage.remove(storage.join(uri, MARKER))
    write = functools.partial(_write_row, uri=uri, media_folder=media_folder)
    rows = [{"number": str(i), "plan": _to_json(plan)} for i, plan in enumerate(plans)]
    done = sorted(map_rows(rows, write), key=lambda row: int(row["number"]))
    records = [json.loads(row["record"]) for row in done]
    return finish(uri, plans, records, config=config, fingerprint=fingerprint)


def _standing(uri: str) -> dict[str, Any]:
    try:
        marker = json.loads(storage.read_bytes(storage.join(uri, MARKER)))
    except (FileNotFoundError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _asset_digests(pools: Pools) -> dict[str, str]:
    rows: list[Any] = [*pools.backgrounds, *pools.silent]
    rows += [row for kind in (pools.objects, pools.clips) for some in kind.values() for row in some]
    return {row.id: row.sha256 for row in rows}


def _write_row(row: dict[str, str], *, uri: str, media_folder: str) -> dict[str, str]:
    record = write_clip(uri, _from_json(row["plan"]), media_folder)
    return {"number": row["number"], "record": json.dumps(record)}


def _to_json(plan: ClipPlan) -> str:
    return canonical_json(dataclasses.asdict(plan)).decode()


def _from_json(text: str) -> ClipPlan:
    values = json.loads(text)

    def light(given: dict[str, Any]) -> Light:
        return Light(gain=tuple(given["gain"]), contrast=given["contrast"])

    actors = tuple(
        Actor(
            **{
                **actor,
                "centres": tuple(tuple(point) for point in actor["centres"]),
                "long_sides": tuple(actor["long_sides"]),
                "light": light(actor["light"]),
            }
        )
        for actor in values["actors"]
    )
    tracks = tuple(Track(**{**t, "seconds": tuple(t["seconds"])}) for t in values["tracks"])
    return ClipPlan(
        **{
            **values,
            "crop": tuple(values["crop"]),
            "light": light(values["light"]),
            "actors": actors,
            "tracks": tracks,
            "licences": tuple(values["licences"]),
        }
    )
