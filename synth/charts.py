"""Tables and charts as plain HTML, for pages without scripts.

Every text is escaped and cut to a length, so that no name from outside can bring markup or swell a
page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MINUS = "\u2212"

_LONGEST_TEXT = 120
_LONG = 30
# Colours that stay apart for colour-blind eyes are few; page.html defines this many.
_COLOURS = 6


def text(value: Any) -> str:
    """``value`` as HTML text; numbers with separators."""
    if isinstance(value, int):
        return f"{value:,}"
    words = str(value)
    if len(words) > _LONGEST_TEXT:
        words = words[: _LONGEST_TEXT - 1] + "…"
    return html.escape(words)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; columns of whole numbers stand to the right, long texts may wrap."""
    kinds = [_kind([row[column] for row in rows]) for column in range(len(heads))]
    head = "".join(
        f'<th scope="col"{kind}>{text(name)}</th>' for kind, name in zip(kinds, heads, strict=True)
    )
    lines = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{text(value)}</td>" for kind, value in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _kind(column: Sequence[Any]) -> str:
    if any(isinstance(value, int) for value in column):
        return ' class="number"'
    longest = max((len(str(value)) for value in column), default=0)
    return ' class="long"' if longest > _LONG else ""


def legend(names: Sequence[str]) -> str:
    """Which colour is which of ``names``."""
    keys = "".join(
        f'<span><i class="c{number % _COLOURS}"></i>{text(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{keys}</p>'


def stacked_bars(rows: Mapping[str, Sequence[int]], links: Mapping[str, str]) -> str:
    """One bar a row, longest first, its parts in the colours of ``legend``.

    Args:
        rows: the parts of each bar by its name.
        links: where on the page a row's name leads.
    """
    totals = {name: sum(parts) for name, parts in rows.items()}
    most = max(totals.values(), default=0) or 1
    lines = []
    for name in sorted(rows, key=lambda name: (-totals[name], name)):
        shown = f'<a href="#{links[name]}">{text(name)}</a>' if name in links else text(name)
        parts = "".join(
            f'<i class="c{number % _COLOURS}" style="width:{count / most:.2%}"></i>'
            for number, count in enumerate(rows[name])
            if count
        )
        lines.append(
            f'<li><span class="name">{shown}</span><span class="bar">{parts}</span>'
            f'<span class="number">{text(totals[name])}</span></li>'
        )
    return f'<ol class="bars">{"".join(lines)}</ol>'


@dataclass(frozen=True, kw_only=True)
class Bins:
    """The bins of a histogram, the same for every split so that they can be compared."""

    edges: tuple[float, ...]
    """Ascending, in the data's unit; what lies outside counts to the first or last bin."""
    labels: tuple[str, ...]
    """What stands below each edge; empty for an edge without a label."""
    unit: str


def histograms(bins: Bins, values: Mapping[str, np.ndarray]) -> str:
    """One histogram a name of ``values`` (finite float ``[N]``), as shares on one scale."""
    edges = np.asarray(bins.edges)
    counted = {
        name: np.histogram(np.clip(values_N, edges[0], edges[-1]), edges)[0]
        for name, values_N in values.items()
    }
    most = max(counts.max() / max(counts.sum(), 1) for counts in counted.values()) or 1.0
    axis = "".join(
        f'<span style="left:{place / (len(edges) - 1):.2%}">{text(label)}</span>'
        for place, label in enumerate(bins.labels)
        if label
    )
    shown = []
    for number, (name, counts) in enumerate(counted.items()):
        bars = "".join(
            f'<i class="c{number % _COLOURS}" style="height:{count / counts.sum() / most:.1%}" '
            f'title="{low:g} to {high:g} {text(bins.unit)}: {text(int(count))}"></i>'
            if count
            else "<i></i>"
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        )
        spread = _spread(values[name], bins.unit)
        shown.append(
            f'<figure class="histogram"><figcaption><b>{text(name)}</b> {spread}</figcaption>'
            f'<div class="columns" role="img" aria-label="Histogram, {text(name)}: {spread}">'
            f'{bars}</div><div class="axis" aria-hidden="true">{axis}</div></figure>'
        )
    return f'<div class="histograms">{"".join(shown)}</div>'


def _spread(values_N: np.ndarray, unit: str) -> str:
    if not len(values_N):
        return "none"
    low, middle, high = (
        f"{value:.3g}".replace("-", MINUS) for value in np.quantile(values_N, (0.05, 0.5, 0.95))
    )
    return text(
        f"{len(values_N):,} samples, median {middle} {unit}, nine in ten from {low} to {high}"
    )
