"""The page for people in a corpus: what is in it, what was refused, and some samples to look at.

One self-contained HTML file without scripts, so that it opens from a disk or a bucket alike.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from infra import media, storage
from infra.corpus import Corpus, Refused

_PER_CLASS = 2
_MOST_SAMPLES = 72
_OVERLAY = np.array([235, 64, 52], np.float32)


def write_page(uri: str, manifest: dict[str, Any], refused: Sequence[Refused]) -> None:
    """Write ``index.html`` for the corpus whose shards stand at ``uri``."""
    corpus = Corpus(storage.normalise(uri), manifest, sha256="")
    title = f"Corpus: {manifest['kind'].replace('_', ' ')}"
    body = "\n".join(
        [
            *(f"<p>{html.escape(note)}</p>" for note in manifest["notes"]),
            _totals(manifest),
            _classes(manifest),
            _refusals(refused),
            _licences(manifest),
            _samples(corpus),
        ]
    )
    template = Template(files("synth").joinpath("page.html").read_text("utf-8"))
    page = template.substitute(title=html.escape(title), body=body)
    storage.write_bytes(storage.join(uri, "index.html"), page.encode())


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Numbers to the right; a float is drawn as a bar of that share."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f'<td class="bar"><i style="width:{value:.1%}"></i></td>'
        kind = ' class="number"' if isinstance(value, int) else ""
        text = f"{value:,}" if isinstance(value, int) else html.escape(str(value))
        return f"<td{kind}>{text}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _totals(manifest: dict[str, Any]) -> str:
    rows = [
        (split, counts["samples"], len(counts["classes"]), counts["bytes"])
        for split, counts in manifest["splits"].items()
    ]
    seed = f"<p>Seed {manifest['seed']}, recipe <code>{manifest['recipe_sha256'][:16]}</code>.</p>"
    return "<h2>Splits</h2>" + _table(("split", "samples", "classes", "bytes"), rows) + seed


def _classes(manifest: dict[str, Any]) -> str:
    total: Counter[str] = Counter()
    for counts in manifest["splits"].values():
        total.update(counts["classes"])
    if not total:
        return ""
    most = max(total.values())
    rows = [(name, count, count / most) for name, count in total.most_common()]
    return "<h2>Samples in which a class sounds</h2>" + _table(("class", "samples", ""), rows)


def _refusals(refused: Sequence[Refused]) -> str:
    by_kind = Counter(row.reason.split(":")[0] for row in refused)
    examples = {row.reason.split(":")[0]: row for row in reversed(refused)}
    rows = [
        (kind, count, f"{examples[kind].id} ({examples[kind].reason})")
        for kind, count in by_kind.most_common()
    ]
    if not rows:
        return "<h2>Refused</h2><p>Nothing was refused.</p>"
    return "<h2>Refused</h2>" + _table(("reason", "inputs", "for example"), rows)


def _licences(manifest: dict[str, Any]) -> str:
    items = "".join(
        f"<li>{html.escape(name or 'not stated')}</li>" for name in manifest["licences"]
    )
    return f"<h2>Licences of the media</h2><ul>{items}</ul>"


def _samples(corpus: Corpus) -> str:
    figures: list[str] = []
    for split in corpus.splits:
        shown: Counter[str] = Counter()
        for row, record in enumerate(corpus.table(split).select(["classes"]).to_pylist()):
            name = "+".join(record["classes"]) or "silence"
            if shown[name] >= _PER_CLASS or len(figures) >= _MOST_SAMPLES:
                continue
            shown[name] += 1
            figures.append(_figure(corpus, split, row, name))
    return f'<h2>Samples</h2><div class="samples">{"".join(figures)}</div>'


def _figure(corpus: Corpus, split: str, row: int, name: str) -> str:
    sample = corpus.read(split, row)
    frame_name = next(n for n in sorted(sample.members) if n.startswith("frame"))
    frame = sample.members[frame_name]
    pictures = [_img(frame, frame_name.rsplit(".", 1)[-1], "picture")]
    mask = sample.members.get("mask0.png")
    if mask is not None:
        image_HW3 = media.decode_image(frame)[..., :3].astype(np.float32)
        mask_HW = media.decode_mask(mask)
        image_HW3[mask_HW] = 0.45 * image_HW3[mask_HW] + 0.55 * _OVERLAY
        overlay = media.encode_jpeg(image_HW3.astype(np.uint8), quality=85)
        pictures.append(_img(overlay, "jpg", "with its mask"))
    sound_name = next(n for n in sorted(sample.members) if n.startswith("audio"))
    sound = base64.b64encode(sample.members[sound_name]).decode()
    player = f'<audio controls preload="none" src="data:audio/{sound_name[6:]};base64,{sound}">'
    caption = f"{html.escape(name)}<br><code>{html.escape(split)} {sample.key}</code>"
    return (
        f'<figure><div class="pictures">{"".join(pictures)}</div>{player}</audio>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _img(data: bytes, kind: str, alt: str) -> str:
    mime = "jpeg" if kind == "jpg" else kind
    coded = base64.b64encode(data).decode()
    return f'<img alt="{alt}" loading="lazy" src="data:image/{mime};base64,{coded}">'
