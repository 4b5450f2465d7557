"""The page for people in a corpus: what is in it, what was refused, and some samples to look at.

One self-contained HTML file without scripts, so that it opens from a disk or a bucket alike. All
numbers come from the manifest and the shards' indexes; of the shards themselves only the members
of the samples shown are read, by range, and the metadata of some with nothing to mask where the
recipe wants sounds off screen. The page is at most ``MOST_BYTES`` long however large the
corpus is, and the same for the same corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.corpus import Corpus, Refused
from synth import charts
from synth.charts import text
from synth.gallery import (
    UNMASKED,
    UNSTATED,
    Gallery,
    count_off_screen,
    draw_gallery,
    unmasked_rows,
    unstated_rows,
)
from synth.recipe import TEST, TRAIN, VAL
from synth.soundtrack import DIGITAL_SILENCE_DB

PAGE = "index.html"
MOST_BYTES = 8_000_000
# What the tables below can take at most, with every text and list at its bound.
_TABLE_BYTES = 1_600_000

_MOST_CLASSES = 500
_MOST_ROWS = 40
_MOST_LABELS = 20
_FIRST_SPLITS = (TRAIN, VAL, TEST)
# Enough to know the share of all of them to within three percent.
_MOST_ASKED = 1_000

_AREA = charts.Bins(
    edges=(0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    labels=("0", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "", "100"),
    unit="%",
)
_LOUDNESS = charts.Bins(
    edges=tuple(range(-60, 1, 3)),
    labels=(*(f"{charts.MINUS}{-db}" if db % 12 == 0 else "" for db in range(-60, 0, 3)), "0"),
    unit="dBFS",
)


def draw_page(corpus: Corpus, refused: Sequence[Refused]) -> bytes:
    """The page of a corpus whose shards stand.

    Of its manifest four entries may be absent: ``usage`` (objects, sounds and backgrounds by
    source), ``held_out`` (clips that the contamination guard dropped, as ``Selected`` has them),
    ``unknown_labels`` (labels outside the taxonomy by source, with their counts) and ``left_out``
    (records that gave nothing to look at, by source and reason).
    """
    manifest = corpus.manifest
    splits = sorted(
        corpus.splits,
        key=lambda s: (_FIRST_SPLITS.index(s) if s in _FIRST_SPLITS else len(_FIRST_SPLITS), s),
    )
    tables = {split: corpus.table(split) for split in splits}
    gallery = draw_gallery(corpus, tables, MOST_BYTES - _TABLE_BYTES)
    sections = [
        ("Splits", _splits(manifest, tables) + _off_screen(corpus, tables)),
        ("Classes", _classes(manifest, tables, gallery)),
        ("Mask area", _mask_area(tables)),
        ("Loudness", _loudness(tables)),
        ("Sources and licences", _sources(manifest)),
        ("Refused", _refusals(refused) + _left_out(manifest)),
        ("Held out", _held_out(manifest)),
        ("Labels outside the taxonomy", _unknown_labels(manifest)),
        ("Samples", gallery.html),
    ]
    title = f"Corpus: {manifest['kind'].replace('_', ' ')}"
    template = Template(files("synth").joinpath("page.html").read_text("utf-8"))
    page = template.substitute(
        title=text(title),
        facts=_facts(manifest),
        notes="".join(f"<p>{text(note)}</p>" for note in manifest["notes"][:_MOST_ROWS]),
        links="".join(f'<a href="#{_anchor(name)}">{name}</a>' for name, _ in sections),
        body="\n".join(
            f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>'
            for name, body in sections
        ),
    )
    return page.encode()


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def _facts(manifest: dict[str, Any]) -> str:
    counts = manifest["splits"].values()
    classes = {name for split in counts for name in split["classes"]}
    facts = {
        "samples": text(sum(split["samples"] for split in counts)),
        "classes": text(len(classes) or "none stated"),
        "shards": text(len(manifest["shards"])),
        "size": _bytes(sum(split["bytes"] for split in counts)),
        "refused": text(manifest["refused"]),
        "seed": text(str(manifest["seed"])),
        "recipe": f"<code>{text(manifest['recipe_sha256'][:12])}</code>",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _splits(manifest: dict[str, Any], tables: Mapping[str, pa.Table]) -> str:
    shards = Counter(record["split"] for record in manifest["shards"])
    unstated = {split: len(unstated_rows(index)) for split, index in tables.items()}
    # Most corpora state all classes: no column of zeros for them.
    is_told = any(unstated.values())
    rows = [
        (
            split,
            manifest["splits"][split]["samples"],
            len(unmasked_rows(index)),
            *([unstated[split]] if is_told else []),
            int(pc.sum(index["frames"]).as_py() or 0),
            len(manifest["splits"][split]["classes"]),
            shards[split],
            _bytes(manifest["splits"][split]["bytes"]),
        )
        for split, index in tables.items()
    ]
    counted = [UNMASKED, UNSTATED] if is_told else [UNMASKED]
    heads = ("split", "samples", *counted, "frames", "classes", "shards", "size")
    return charts.table(heads, rows)


def _off_screen(corpus: Corpus, tables: Mapping[str, pa.Table]) -> str:
    """Which share of train sounds of what is not in the picture, beside the one asked for."""
    asked = corpus.manifest["recipe"].get("off_screen")
    if not asked or TRAIN not in tables:
        return ""
    unmasked_N = unmasked_rows(tables[TRAIN])
    looked_at_N = np.random.default_rng(0).permutation(unmasked_N)[:_MOST_ASKED]
    found = count_off_screen(corpus, tables[TRAIN], looked_at_N)
    about = "about " if len(looked_at_N) < len(unmasked_N) else ""
    reached = found / max(len(looked_at_N), 1) * len(unmasked_N) / max(len(tables[TRAIN]), 1)
    return (
        f"<p>Off screen: of train, {asked:.1%} should sound of a class that is not in the picture, "
        f"and {about}{reached:.1%} do. Where no other class is known to be absent, one that is in "
        "the picture sounds instead.</p>"
    )


def _classes(manifest: dict[str, Any], tables: Mapping[str, pa.Table], gallery: Gallery) -> str:
    counts = [manifest["splits"][split]["classes"] for split in tables]
    total: Counter[str] = Counter()
    for classes in counts:
        total.update(classes)
    unstated = sum(len(unstated_rows(index)) for index in tables.values())
    unnamed = (
        f"<p>Samples for which no class is stated: {text(unstated)}. It does not follow that "
        "nothing sounds in them.</p>"
        if unstated
        else ""
    )
    if not total:
        return unnamed or "<p>Nothing sounds in any picture of this corpus.</p>"
    names = sorted(total, key=lambda name: (-total[name], name))
    rows = {name: [classes.get(name, 0) for classes in counts] for name in names[:_MOST_CLASSES]}
    by_split = charts.table(
        ("class", *tables, "all"), [(name, *row, total[name]) for name, row in rows.items()]
    )
    more = len(names) - len(rows)
    return (
        "<p>Samples in whose picture a class sounds; where two do, the sample counts for both.</p>"
        + unnamed
        + charts.legend(list(tables))
        + charts.stacked_bars(rows, gallery.anchors)
        + (f"<p>And {more:,} classes with fewer samples.</p>" if more else "")
        + f"<details><summary>Numbers by split</summary>{by_split}</details>"
    )


def _column(tables: Mapping[str, pa.Table], name: str) -> dict[str, np.ndarray]:
    """float64 ``[N]`` of each split in which the column is recorded, NaN where it is null."""
    return {
        split: index[name].cast(pa.float64()).to_numpy()
        for split, index in tables.items()
        if name in index.column_names and index[name].null_count < len(index)
    }


def _mask_area(tables: Mapping[str, pa.Table]) -> str:
    areas = _column(tables, "mask_area")
    if not areas:
        return "<p>Not recorded.</p>"
    empty = sum(int((areas_N == 0).sum()) for areas_N in areas.values())
    return (
        "<p>Share of the picture that is masked, in percent, where anything is. The height of a "
        f"column is the share of the split. Empty masks: {text(empty)}.</p>"
        + charts.histograms(_AREA, {split: 100 * a_N[a_N > 0] for split, a_N in areas.items()})
    )


def _loudness(tables: Mapping[str, pa.Table]) -> str:
    levels = _column(tables, "loudness_db")
    if not levels:
        return "<p>Not recorded.</p>"
    heard = {split: db_N[db_N > DIGITAL_SILENCE_DB] for split, db_N in levels.items()}
    silent = sum(len(levels[split]) - len(heard[split]) for split in levels)
    return (
        "<p>Level of the sound in dB of full scale; what is below &minus;60 counts to the first "
        f"column. Digital silence, without a level: {text(silent)}.</p>"
        + charts.histograms(_LOUDNESS, heard)
    )


def _sources(manifest: dict[str, Any]) -> str:
    usage: dict[str, dict[str, int]] = manifest.get("usage", {})
    names = sorted({*manifest["sources"], *(name for used in usage.values() for name in used)})
    rows = [
        (
            name,
            *(used.get(name, "") for used in usage.values()),
            manifest["sources"].get(name, "")[:12],
        )
        for name in names[:_MOST_ROWS]
    ]
    licences = manifest["licences"]
    items = "".join(f"<li>{text(name or 'not stated')}</li>" for name in licences[:_MOST_ROWS])
    if len(licences) > _MOST_ROWS:
        items += f"<li>and {len(licences) - _MOST_ROWS:,} more</li>"
    return (
        charts.table(("source", *usage, "fingerprint"), rows)
        + f'<h3>Licences of the media</h3><ul class="chips">{items}</ul>'
    )


def _refusals(refused: Sequence[Refused]) -> str:
    if not refused:
        return "<p>Nothing was refused.</p>"
    by_kind: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    examples: dict[str, Refused] = {}
    for row in refused:
        kind = row.reason.split(":")[0]
        by_kind[kind] += 1
        sources.setdefault(kind, Counter())[row.source] += 1
        # The smallest, not the first: a rerun finds them in another order.
        examples[kind] = min(examples.get(kind, row), row, key=lambda r: (r.id, r.reason))
    kinds = sorted(by_kind, key=lambda kind: (-by_kind[kind], kind))
    rows = [
        (
            kind,
            by_kind[kind],
            _most_of(sources[kind]),
            examples[kind].id,
            examples[kind].reason,
        )
        for kind in kinds[:_MOST_ROWS]
    ]
    more = sum(by_kind[kind] for kind in kinds[_MOST_ROWS:])
    return charts.table(("reason", "inputs", "from", "for example", "because"), rows) + (
        f"<p>And {more:,} for other reasons.</p>" if more else ""
    )


def _most_of(counts: Mapping[str, int]) -> str:
    """The sources that most come from, with their counts."""
    most = sorted(counts.items(), key=lambda source: (-source[1], source[0]))[:5]
    return ", ".join(f"{source}\u00a0{count:,}" for source, count in most)


def _left_out(manifest: dict[str, Any]) -> str:
    """What the sources list and nobody could look at."""
    sources: dict[str, dict[str, int]] = {}
    for source, counts in manifest.get("left_out", {}).items():
        for reason, count in counts.items():
            sources.setdefault(reason, {})[source] = count
    if not sources:
        return ""
    total = {reason: sum(counts.values()) for reason, counts in sources.items()}
    reasons = sorted(total, key=lambda reason: (-total[reason], reason))
    rows = [(reason, total[reason], _most_of(sources[reason])) for reason in reasons[:_MOST_ROWS]]
    more = sum(total[reason] for reason in reasons[_MOST_ROWS:])
    return (
        "<h3>Left out before anything was looked at</h3>"
        + charts.table(("reason", "records", "from"), rows)
        + (f"<p>And {more:,} for other reasons.</p>" if more else "")
    )


def _held_out(manifest: dict[str, Any]) -> str:
    """What the contamination guard dropped."""
    dropped: dict[str, dict[str, int]] | None = manifest.get("held_out")
    if dropped is None:
        return "<p>Not recorded for this corpus.</p>"
    if manifest["recipe"].get("held_out") == "none":
        return (
            "<p>The guard was off (held_out: none): nothing was compared, and sounds here may come "
            "from videos that an evaluation is made of.</p>"
        )
    about = (
        "<p>Clips cut from videos that an evaluation is made of are dropped. A sound that names no "
        "video cannot be compared.</p>"
    )
    if not dropped:
        return about + "<p>Nothing was compared: no sound here names the video it is from.</p>"
    lists = sorted({name for counts in dropped.values() for name in counts} - {"clips"})
    rows = [
        (source, *(counts.get(name, 0) for name in ("clips", *lists)))
        for source, counts in sorted(dropped.items())[:_MOST_ROWS]
    ]
    total = sum(counts.get("clips", 0) for counts in dropped.values())
    said = f"{total:,} clips were dropped" if total else "No clip was dropped: none is in a list"
    if lists:
        said += "; a clip whose video is in several lists counts in each"
    heads = ("compared", "dropped", *(name.replace("_", " ") for name in lists))
    return f"{about}<p>{said}.</p>" + charts.table(heads, rows)


def _unknown_labels(manifest: dict[str, Any]) -> str:
    unknown: dict[str, dict[str, int]] | None = manifest.get("unknown_labels")
    if unknown is None:
        return "<p>Not recorded for this corpus.</p>"
    if not any(unknown.values()):
        return "<p>None: every label has a class.</p>"
    shown = []
    for source, labels in sorted(unknown.items())[:_MOST_ROWS]:
        if not labels:
            continue
        most = sorted(labels, key=lambda label: (-labels[label], label))[:_MOST_LABELS]
        items = "".join(f"<li>{text(label)} <b>{text(labels[label])}</b></li>" for label in most)
        more = len(labels) - len(most)
        items += f"<li>and {more:,} more</li>" if more else ""
        total = f"{len(labels):,} labels, {sum(labels.values()):,} inputs"
        shown.append(f'<h3>{text(source)}: {total}</h3><ul class="chips">{items}</ul>')
    return "".join(shown)
