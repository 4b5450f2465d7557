"""The classes of things that sound, and what every public source calls them.

``taxonomy.csv`` has one row per class, ``class,tier,<source>...``, with `|` between the labels in a
cell. Open Images and AudioSet are named by MID (``/m/0bt9lr``), because their display names differ
between versions; the other sources by the label that stands in their files. Tiers say where the
masks of a class come from:

A   COCO, Open Images' 300 challenge classes with masks, or at least 200 LVIS train images
B   20 to 199 LVIS train images
C   1 to 19 LVIS train images
D   Open Images boxes alone: masks have to be made from the boxes
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

SOURCES = (
    "lvis",
    "coco",
    "openimages",
    "vggsound",
    "audioset",
    "esc50",
    "fsd50k",
    "avsbench_s4",
    "avss",
)
TIERS = ("A", "B", "C", "D")

# AVSBench's MS3 has no published list of categories.
_NEEDED_BY = {"s4": "avsbench_s4", "avss": "avss"}


@dataclass(frozen=True, kw_only=True)
class SoundingClass:
    """One row of the taxonomy."""

    name: str
    tier: str
    """One of ``TIERS``."""
    labels: Mapping[str, tuple[str, ...]]
    """By each of ``SOURCES`` what it calls the class: empty where it does not have it."""


@cache
def classes() -> tuple[SoundingClass, ...]:
    """Every class, in the order of ``taxonomy.csv``."""
    text = resources.files("synth").joinpath("taxonomy.csv").read_text(encoding="utf-8")
    return tuple(
        SoundingClass(
            name=row["class"],
            tier=row["tier"],
            labels=MappingProxyType(
                {source: tuple(filter(None, row[source].split("|"))) for source in SOURCES}
            ),
        )
        for row in csv.DictReader(text.splitlines())
    )


def select(names: Sequence[str] = (), tiers: Sequence[str] = (), needed_by: str = "") -> list[str]:
    """Names of classes in the order of the taxonomy; all of them where nothing is given.

    Args:
        names: classes to take, whatever their tier.
        tiers: take those of these tiers as well.
        needed_by: ``s4`` or ``avss``: take those that this subset of AVSBench shows as well. With
            ``tiers`` a class has to meet both.

    Raises:
        ValueError: an unknown class, tier or subset, or no class meets ``tiers`` and
            ``needed_by``.
    """
    _check(names, [row.name for row in classes()], "class of the taxonomy")
    _check(tiers, TIERS, "tier")
    _check([needed_by] if needed_by else [], list(_NEEDED_BY), "subset that lists its classes")
    if not (names or tiers or needed_by):
        return [row.name for row in classes()]
    met = {
        row.name
        for row in classes()
        if (tiers or needed_by)
        and (not tiers or row.tier in tiers)
        and (not needed_by or row.labels[_NEEDED_BY[needed_by]])
    }
    if not met and not names:
        raise ValueError(
            f"no class of tier {', '.join(tiers)} is needed by {needed_by}: name more tiers"
        )
    return [row.name for row in classes() if row.name in met or row.name in names]


class Labels:
    """The labels of one source -> classes of the taxonomy.

    Args:
        source: one of ``SOURCES``.
        classes: the classes that are asked for; empty for all. Names outside the taxonomy match
            no label here: ``select`` is where a person's list is checked.

    Raises:
        ValueError: an unknown source.
    """

    unknown: Counter[str]
    """How often each label was met that means no class here, or more than one."""
    left_out: Counter[str]
    """For readers: how many inputs were left out without becoming a candidate, by reason."""

    def __init__(self, source: str, *, classes: Collection[str] = ()) -> None:
        _check([source], SOURCES, "source of the taxonomy")
        self.source = source
        self.unknown = Counter()
        self.left_out = Counter()
        self._classes = _meanings(source, classes)

    def of(self, label: str) -> str | None:
        """The class that a label means.

        None where the taxonomy does not have the label, or several of the classes asked for share
        it (both are counted in ``unknown``), or its class is not asked for (not counted).
        """
        meant = self._classes.get(label)
        if meant is None or len(meant) > 1:
            self.unknown[label] += 1
            return None
        return meant[0] if meant else None

    def names_of(self, class_name: str) -> tuple[str, ...]:
        """What the source calls a class, shared labels included; empty where it lacks it.

        Raises:
            ValueError: the taxonomy has no such class.
        """
        rows = {row.name: row for row in classes()}
        _check([class_name], list(rows), "class of the taxonomy")
        return rows[class_name].labels[self.source]


def _meanings(source: str, asked: Collection[str]) -> dict[str, list[str]]:
    """By every label of a source those classes it can mean that are asked for, maybe none."""
    meanings: dict[str, list[str]] = {}
    for row in classes():
        for label in row.labels[source]:
            meant = meanings.setdefault(label, [])
            if not asked or row.name in asked:
                meant.append(row.name)
    return meanings


def _check(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """ValueError that names the closest of ``known`` for the first that is not among them."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            # A short list is shown whole where nothing in it looks alike.
            shown = close or (known if len(known) <= len(SOURCES) else ())
            mend = f"did you mean {', '.join(shown)}?" if shown else "see synth/taxonomy.csv"
            raise ValueError(f"{name!r} is no {what}: {mend}")
