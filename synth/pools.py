"""What each split draws from: media that the recipe allows, dealt out so that splits do not mix.

Everything here works on columns: a million objects and 200,000 clips take seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from synth import held_out, taxonomy
from synth.catalog import Catalog
from synth.recipe import SPLITS, TEST, TRAIN, UNSEEN, VAL, Recipe
from synth.rows import Rows
from synth.tables import Background, Clip, Object, Refused

_Row = TypeVar("_Row", Object, Clip)

# Names and URLs alike: CC BY-NC-SA, CC_BY_NC, /licenses/by-nc/3.0/, Attribution-NonCommercial.
_NON_COMMERCIAL = re.compile(r"(?<![a-z])NC(?![a-z])|non[-\s]?commercial", re.IGNORECASE)
UNSTATED = ("", "not stated")


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What a recipe allows of a catalog."""

    catalog: Catalog
    refused: list[Refused]
    """Sounds that are held out, with the reason."""
    held_out: dict[str, dict[str, int]]
    """By source how many sounds are held out: ``clips`` counts each once, the AVSBench splits each
    sound whose video they have, and many are in several. Only sources with a sound that could be
    compared are listed, so none where the guard is off."""
    sources: dict[str, str]
    """Fingerprints of what the choice was made of: the catalog, and the list of videos held out."""


def select(catalog: Catalog, recipe: Recipe) -> Selected:
    """Leave out what the recipe's guard and its licences forbid.

    Raises:
        ValueError: nothing is left of the objects or of the sounds.
    """
    guard = held_out.guard(recipe.held_out, recipe.held_out_tables)
    clips, refused, counts = _without_held_out(catalog.clips, guard)
    allowed = dataclasses.replace(
        catalog,
        objects=_licensed(catalog.objects, recipe),
        clips=_licensed(clips, recipe),
        backgrounds=_licensed(catalog.backgrounds, recipe),
        silent=_licensed(catalog.silent, recipe),
    )
    for name in ("objects", "clips"):
        if not len(getattr(allowed, name)):
            raise ValueError(
                f"none of the {len(getattr(catalog, name))} {name} of the catalog may be used: "
                "change held_out, allow_non_commercial or allow_unstated, or add media"
            )
    sources = {"catalog": catalog.fingerprint, "held_out_videos": guard.fingerprint}
    return Selected(catalog=allowed, refused=refused, held_out=counts, sources=sources)


def _without_held_out(
    clips: Rows[Clip], guard: held_out.HeldOut
) -> tuple[Rows[Clip], list[Refused], dict[str, dict[str, int]]]:
    codes, videos = clips.coded("video")
    reasons = [guard.reason(video) for video in videos]
    dropped = np.asarray([bool(reason) for reason in reasons] or [False])[codes]
    refused = [
        Refused(id=row.id, source=row.source, reason=guard.reason(row.video))
        for row in clips.take(dropped)
    ]
    comparable = np.asarray([bool(video and guard.splits) for video in videos] or [False])[codes]
    counts = {source: Counter(clips=0) for source in clips.take(comparable).distinct("source")}
    for row in clips.take(dropped):
        counts[row.source].update(("clips", *(guard.splits_of(row.video) or ("unknown",))))
    report = {source: dict(sorted(found.items())) for source, found in sorted(counts.items())}
    return clips.take(~dropped), refused, report


def _licensed(rows: Rows[Any], recipe: Recipe) -> Rows[Any]:
    codes, licences = rows.coded("licence")
    allowed = [
        (recipe.allow_unstated or licence not in UNSTATED)
        and (recipe.allow_non_commercial or not _NON_COMMERCIAL.search(licence))
        for licence in licences
    ]
    return rows.take(np.asarray(allowed or [True])[codes])


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """The objects of a split by the photograph that they are in, and the order they come in."""

    objects: Rows[Object]
    """All of them, crowds too, sorted by id."""
    order: dict[str, np.ndarray]
    """By class the positions of its single objects; "" for all classes together."""
    sorted_by_picture: np.ndarray
    starts: np.ndarray
    """Of each photograph in ``sorted_by_picture``, and its end."""
    picture: np.ndarray
    """The photograph of each object."""
    kind: np.ndarray
    """The class of each object, as a position in ``kinds``."""
    kinds: list[str]
    single: np.ndarray
    """Whether a sample can be about each object."""

    def beside(self, number: int) -> np.ndarray:
        """Positions of everything that is marked in the photograph of object ``number``."""
        picture = self.picture[number]
        return self.sorted_by_picture[self.starts[picture] : self.starts[picture + 1]]


@dataclass(frozen=True, kw_only=True)
class Pools:
    """The assets that a split draws from; objects and clips by class."""

    objects: dict[str, Rows[Object]]
    clips: dict[str, Rows[Clip]]
    backgrounds: Rows[Background]
    silent: Rows[Object]
    photographs: Photographs | None = None
    """Of natural scenes."""

    @property
    def classes(self) -> list[str]:
        """Classes with both a picture and a sound."""
        return sorted(self.objects.keys() & self.clips.keys())

    def used(self) -> dict[str, dict[str, int]]:
        """How many objects, sounds and backgrounds of each source scenes may be made from."""
        tables: dict[str, list[Rows[Any]]] = {
            "objects": [self.objects[name] for name in self.classes],
            "sounds": [self.clips[name] for name in self.classes],
            "backgrounds": [self.backgrounds],
        }
        return {name: _counted(parts, "source") for name, parts in tables.items()}

    def licences(self) -> set[str]:
        """Of everything that a scene may be made from."""
        parts: list[Rows[Any]] = [self.backgrounds, self.silent]
        for name in self.classes:
            parts += [self.objects[name], self.clips[name]]
        return set(_counted(parts, "licence"))


def _counted(parts: Sequence[Rows[Any]], column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for rows in parts:
        codes, values = rows.coded(column)
        found, times = np.unique(codes, return_counts=True)
        counts.update({values[code]: int(n) for code, n in zip(found, times, strict=True)})
    return dict(sorted(counts.items()))


def split_assets(catalog: Catalog, recipe: Recipe) -> dict[str, Pools]:
    """The assets of each split.

    Where splits have assets of their own, photographs and sounds are dealt out by their content
    (sounds of one video or recording together), so that each stays in its split whatever else the
    catalog holds. Otherwise train, val and test share them, and of every class with two or more
    pictures and two or more sounds the last of each (by id) is in ``unseen`` alone. Backgrounds are
    dealt out so that no two splits share one; natural scenes have none, and nothing silent beside
    them.

    Raises:
        ValueError: the recipe names classes or backgrounds that the catalog lacks, or a split
            is left without what it needs.
    """
    natural = recipe.scenes == "natural"
    every, sounds = catalog.objects.sorted_by_id(), catalog.clips.sorted_by_id()
    if natural:
        every = every.take(every.given("mask"))
    objects, clips = by_class(_single(every, recipe)), by_class(sounds)
    classes = _classes(recipe, objects, clips)
    objects, clips = _only(classes, objects), _only(classes, clips)
    if natural:
        silent = catalog.silent[:0]
        own_backgrounds = dict.fromkeys(SPLITS, catalog.backgrounds[:0])
    else:
        silent = catalog.silent.sorted_by_id()
        own_backgrounds = _deal_backgrounds(catalog.backgrounds, recipe)
    own_every, own_sounds = _deal(every, recipe), _deal(sounds, recipe)
    pools = {}
    for split in SPLITS:
        if natural or recipe.own_assets:
            own_objects = _only(classes, by_class(_single(own_every[split], recipe)))
            own_clips = _only(classes, by_class(own_sounds[split]))
        else:
            own_objects, own_clips = _shared(objects, clips, split)
        photographs = None
        if natural:
            own_objects = _only(own_clips, own_objects)
            photographs = _photographs(own_every[split], own_objects, recipe)
        pools[split] = Pools(
            objects=own_objects,
            clips=own_clips,
            backgrounds=own_backgrounds[split],
            silent=silent,
            photographs=photographs,
        )
        _check_enough(split, pools[split], recipe)
    return pools


def _single(objects: Rows[Object], recipe: Recipe) -> Rows[Object]:
    """Those that a sample can be about."""
    return objects.take(_is_single(objects, recipe))


def _is_single(objects: Rows[Object], recipe: Recipe) -> np.ndarray:
    single = ~objects.numbers("crowd")
    if recipe.scenes == "natural":
        single &= objects.numbers("mask_fraction") >= recipe.min_mask_area
        if recipe.marks == "class":
            # A mask of all that sounds cannot be told where the source left some unmarked.
            single &= ~objects.numbers("partial")
    return single


def by_class(rows: Rows[_Row]) -> dict[str, Rows[_Row]]:
    """The rows of each class, in their order."""
    codes, values = rows.coded("class_name")
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(values) + 1))
    return {
        name: rows.take(order[edges[i] : edges[i + 1]])
        for i, name in enumerate(values)
        if edges[i] < edges[i + 1]
    }


def _only(classes: Collection[str], table: dict[str, Rows[_Row]]) -> dict[str, Rows[_Row]]:
    """The table without the rows of other classes."""
    return {name: rows for name, rows in table.items() if name in classes}


def _classes(
    recipe: Recipe, objects: dict[str, Rows[Object]], clips: dict[str, Rows[Clip]]
) -> list[str]:
    usable = sorted(objects.keys() & clips.keys())
    unknown = sorted(set(recipe.classes) - set(usable))
    if unknown:
        raise ValueError(
            f"the catalog has no class {unknown[0]!r} with both a picture and a sound; it has "
            f"{', '.join(usable) or 'none'}: name some of these in corpus.classes, or [] for all"
            f"{_partial_ones(recipe)}"
        )
    chosen = sorted(recipe.classes) or usable
    if recipe.tiers or recipe.needed_by:
        asked = set(taxonomy.select(tiers=recipe.tiers, needed_by=recipe.needed_by))
        chosen = [name for name in chosen if name in asked]
        if not chosen:
            raise ValueError(
                f"no class of tiers {list(recipe.tiers)} that {recipe.needed_by or 'anybody'} "
                "needs has both a picture and a sound; the catalog has "
                f"{', '.join(usable) or 'none'}{_partial_ones(recipe)}"
            )
    return chosen


def _partial_ones(recipe: Recipe) -> str:
    """How photographs come in that a recipe leaves out for what is unmarked in them."""
    is_strict = recipe.scenes == "natural" and recipe.marks == "class"
    return " (marks: instance also takes photographs with unmarked objects)" if is_strict else ""


def _shared(
    objects: dict[str, Rows[Object]], clips: dict[str, Rows[Clip]], split: str
) -> tuple[dict[str, Rows[Object]], dict[str, Rows[Clip]]]:
    held = {c for c in objects if len(objects[c]) >= 2 and len(clips[c]) >= 2}
    if split == UNSEEN:
        return {c: objects[c][-1:] for c in held}, {c: clips[c][-1:] for c in held}
    return (
        {c: rows[:-1] if c in held else rows for c, rows in objects.items()},
        {c: rows[:-1] if c in held else rows for c, rows in clips.items()},
    )


def _deal(rows: Rows[_Row], recipe: Recipe) -> dict[str, Rows[_Row]]:
    """The rows of each split, by where their picture or video falls; none for unseen."""
    place = _places(rows)
    edges = np.cumsum((0.0, *recipe.asset_shares))
    edges[-1] = 1.0
    dealt = {UNSEEN: rows[:0]}
    for split, low, high in zip((TRAIN, VAL, TEST), edges, edges[1:], strict=False):
        dealt[split] = rows.take((place >= low) & (place < high))
    return dealt


def _places(rows: Rows[Any]) -> np.ndarray:
    """A number in [0, 1) for each row, equal for what must not be parted."""
    if rows.row_type is Object:
        codes, pictures = rows.coded("picture")
        return np.asarray([_place(picture) for picture in pictures] or [0.0])[codes]
    places = np.asarray([_place(text) for text in rows.texts("sha256")])
    for column in ("recording", "video"):
        codes, names = rows.coded(column)
        named = np.asarray([bool(name) for name in names] or [False])[codes]
        places[named] = np.asarray([_place(_hash(name)) for name in names])[codes[named]]
    return places


def _place(digest: str) -> float:
    return int(digest[:13], 16) / 16**13


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _photographs(
    objects: Rows[Object], single: dict[str, Rows[Object]], recipe: Recipe
) -> Photographs | None:
    if not single:
        return None
    picture, _ = objects.coded("picture")
    _, picture = np.unique(picture, return_inverse=True)
    kind, kinds = objects.coded("class_name")
    by_picture = np.argsort(picture, kind="stable")
    starts = np.searchsorted(picture[by_picture], np.arange(picture.max(initial=-1) + 2))
    # By content, which is as good as by chance, and the same whatever else the catalog holds.
    shuffled = objects.order_by("sha256")
    usable = np.isin(kind, [kinds.index(name) for name in single]) & _is_single(objects, recipe)
    shuffled = shuffled[usable[shuffled]]
    kind_of_shuffled = kind[shuffled]
    order = {name: shuffled[kind_of_shuffled == kinds.index(name)] for name in sorted(single)}
    return Photographs(
        objects=objects,
        order={"": shuffled, **order},
        sorted_by_picture=by_picture,
        starts=starts,
        picture=picture,
        kind=kind,
        kinds=kinds,
        single=usable,
    )


def _deal_backgrounds(rows: Rows[Background], recipe: Recipe) -> dict[str, Rows[Background]]:
    codes, known = rows.coded("collection")
    for name in recipe.backgrounds:
        if name not in known:
            raise ValueError(
                f"the catalog has no backgrounds {name!r}; its collections are "
                f"{', '.join(sorted(known))}"
            )
    wanted = np.asarray([not recipe.backgrounds or n in recipe.backgrounds for n in known], bool)
    chosen = rows.take(wanted[codes] if known else np.zeros(0, bool))
    # By content, so that names do not matter. Of few backgrounds each split must get its share, so
    # they are counted off: where more come in, one may move to another split.
    chosen = chosen.take(chosen.order_by("sha256"))
    edges = np.rint(np.cumsum((0.0, *recipe.background_shares)) * len(chosen)).astype(int)
    return {split: chosen[edges[i] : edges[i + 1]] for i, split in enumerate(SPLITS)}


def _check_enough(split: str, pools: Pools, recipe: Recipe) -> None:
    if getattr(recipe.samples, split) == 0:
        return
    if recipe.scenes == "natural":
        if pools.photographs is None:
            raise ValueError(
                f"the split {split!r} has no photograph of a class that has a sound there: add "
                f"media, change asset_shares or set its samples to 0{_partial_ones(recipe)}"
            )
    elif len(pools.classes) < 2:
        raise ValueError(
            f"the split {split!r} has {len(pools.classes)} classes with a picture and a sound, "
            "and scenes need two: add media or set its samples to 0"
        )
    elif not len(pools.backgrounds):
        raise ValueError(
            f"the split {split!r} has no background of its own: add backgrounds, change "
            "background_shares or set its samples to 0"
        )
    if split == TRAIN and recipe.off_screen:
        _check_off_screen(pools, recipe)


def _check_off_screen(pools: Pools, recipe: Recipe) -> None:
    """Whether any sample can sound of a class that is not in its picture."""
    if pools.photographs is not None:
        codes, absent = pools.photographs.objects.coded("absent")
        shown, heard = np.unique(codes[pools.photographs.order[""]]), set(pools.classes)
        if all(heard.isdisjoint(absent[code].split("|")) for code in shown.tolist()):
            raise ValueError(
                f"off_screen is {recipe.off_screen}, but of no photograph in train a source states "
                "that a class with a sound is absent: add a source that does (lvis, coco, "
                "open_images with its image labels) or set off_screen to 0"
            )
    elif len(pools.classes) <= 1 + np.flatnonzero(recipe.object_counts)[0]:
        raise ValueError(
            f"off_screen is {recipe.off_screen}, but every scene of train shows all "
            f"{len(pools.classes)} classes: add media, change object_counts or set off_screen to 0"
        )
