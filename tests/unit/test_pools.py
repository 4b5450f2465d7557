"""What splits draw from: what the recipe allows, each thing once, nothing shared by accident."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra import media
from infra.corpus import Sample
from synth.catalog import Catalog, assemble
from synth.inspection import inspect
from synth.looking import build_catalog
from synth.pools import Pools, select, split_assets
from synth.recipe import Recipe, Samples
from synth.render import make_sample
from synth.rows import Rows
from synth.sources import Offer
from synth.sources.lvis import LvisConfig
from synth.tables import Background, Candidate, Clip, Object
from synth.taxonomy import classes
from tests.made_sources import CLASSES, natural_catalog, natural_offer

TRAIN_ONLY = Samples(train=40, val=0, test=0, unseen=0)
NATURAL = Recipe(scenes="natural", samples=TRAIN_ONLY, asset_shares=(0.6, 0.2, 0.2))
COMPOSITE = Recipe(
    image_size=96,
    samples=Samples(train=40, val=8, test=8, unseen=0),
    own_assets=True,
    asset_shares=(0.6, 0.2, 0.2),
    background_shares=(0.5, 0.25, 0.25, 0.0),
    light=0.0,
    silence=0.0,
    object_counts=(0.0, 1.0, 0.0),
    sources=(1.0, 0.0, 0.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Catalog:
    return natural_catalog(folder)


@pytest.fixture(scope="module")
def composite(catalog: Catalog, folder: Path) -> Catalog:
    """The same with eight grey backgrounds."""
    rows = []
    for number in range(8):
        rng = np.random.default_rng(number)
        grey_HW3 = np.repeat(rng.integers(90, 130, (60, 80, 1), dtype=np.uint8), 3, axis=2)
        path = folder / "backgrounds" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(media.encode_png(grey_HW3))
        offered = Candidate(role="background", source="made", path=f"backgrounds/{number}.png")
        rows += inspect(offered, path.read_bytes(), lambda _: b"")
    backgrounds: Rows[Background] = Rows.of(Background, rows)  # type: ignore[arg-type]
    roots = {**catalog.roots, "media": str(folder)}
    return dataclasses.replace(catalog, roots=roots, backgrounds=backgrounds)


def write_lvis(folder: Path, *, not_exhaustive: tuple[int, ...] = ()) -> LvisConfig:
    """The photographs of the made COCO as LVIS has them: ids of its own, boxes for outlines, and
    neither of the last two classes. ``not_exhaustive``: photographs that say so of their class.
    """
    coco = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    ours = {"cat": 225, "cow": 80}
    images = [
        {
            "id": image["id"],
            "coco_url": f"http://images.cocodataset.org/train2017/{image['file_name']}",
            "height": image["height"],
            "width": image["width"],
            "license": 1,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": (
                list(ours.values()) if image["id"] in not_exhaustive else []
            ),
        }
        for image in coco["images"]
    ]
    annotations = []
    for marked in coco["annotations"]:
        name = names[marked["category_id"]]
        if name in ours and not marked["iscrowd"]:
            x, y, width, height = marked["bbox"]
            outline = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": marked["id"],
                    "image_id": marked["image_id"],
                    "category_id": ours[name],
                    "area": width * height,
                    "bbox": marked["bbox"],
                    "segmentation": [outline],
                }
            )
    document = {
        "info": {},
        "licenses": coco["licenses"],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ours.items()],
    }
    (folder / "annotations" / "lvis_v1_train.json").write_text(json.dumps(document))
    return LvisConfig(folder=str(folder))


def look(offer: Offer) -> Catalog:
    return build_catalog(offer.roots, offer)


def test_a_photograph_that_two_sources_mark_shows_each_class_once(folder: Path) -> None:
    coco = natural_offer(folder)
    lvis = write_lvis(folder / "coco")
    both = look(Offer(None, {**coco.sources, "lvis": lvis}))
    alone = look(coco)
    # COCO comes first by name, and marks whatever LVIS does here.
    assert both.objects == alone.objects
    again = [row for row in both.refused if row.source == "lvis"]
    assert {row.reason for row in again} == {
        "duplicate: coco marks the class in the same photograph"
    }
    assert {row.id for row in again} == {
        f"lvis:lvis_v1_train-{row.id.rpartition('-')[2]}"
        for row in alone.objects
        if row.class_name in ("cat", "cow") and not row.crowd
    }
    # Another class in the same photograph is no duplicate.
    without = {name: source for name, source in coco.sources.items() if name != "coco"}
    lvis_alone = look(Offer(None, {**without, "lvis": lvis})).objects
    others = alone.objects.take(np.asarray(alone.objects.texts("class_name")) != "cow")
    tables = {"objects": [lvis_alone, others], "clips": [alone.clips]}
    kept = assemble(alone.roots, tables).objects
    assert {row.source for row in kept if row.class_name == "cow"} == {"lvis"}
    assert {row.source for row in kept if row.class_name == "cat"} == {"coco"}
    assert len({(row.picture, row.source) for row in kept}) > len({row.picture for row in kept})


def test_a_class_of_which_some_are_unmarked_is_no_whole_but_an_instance(folder: Path) -> None:
    coco = natural_offer(folder)
    without = {name: source for name, source in coco.sources.items() if name != "coco"}
    some = tuple(range(1000, 1030, 2))
    lvis = write_lvis(folder / "coco", not_exhaustive=some)
    catalog = look(Offer(None, {**without, "lvis": lvis}))
    partial = {row.id for row in catalog.objects if row.partial}
    assert 0 < len(partial) < len(catalog.objects)

    def natural(marks: str) -> dict[str, set[str]]:
        recipe = dataclasses.replace(NATURAL, marks=marks, asset_shares=(1.0, 0.0, 0.0))
        pools = split_assets(catalog, recipe)["train"]
        assert pools.photographs is not None
        about = pools.photographs.objects.take(pools.photographs.order[""])
        return {
            "pools": {row.id for rows in pools.objects.values() for row in rows},
            "about": {row.id for row in about},
        }

    every = {row.id for row in catalog.objects}
    assert natural("class") == {"pools": every - partial, "about": every - partial}
    assert natural("instance") == {"pools": every, "about": every}


@pytest.mark.parametrize("changes", [{}, {"tiers": ("A",)}, {"classes": ("dog",)}])
def test_where_no_class_is_wholly_marked_the_error_names_the_way_out(
    catalog: Catalog, changes: dict[str, Any]
) -> None:
    rows = [dataclasses.replace(row, partial=True) for row in catalog.objects]
    unmarked = dataclasses.replace(catalog, objects=Rows.of(Object, rows))
    recipe = dataclasses.replace(NATURAL, marks="class", **changes)
    with pytest.raises(ValueError, match=r"\(marks: instance also takes"):
        split_assets(unmarked, recipe)
    assert split_assets(unmarked, dataclasses.replace(recipe, marks="instance"))


LICENCES = {
    "CC BY-NC-SA": False,
    "CC BY-NC 3.0": False,
    "CC_BY_NC_ND": False,
    "cc-by-nc-4.0": False,
    "Attribution-NonCommercial": False,
    "Attribution-NonCommercial-ShareAlike License": False,
    "for non-commercial use": False,
    "Non Commercial": False,
    "http://creativecommons.org/licenses/by-nc/3.0/": False,
    "CC BY 4.0": True,
    "CC BY-SA 3.0": True,
    "CC0-1.0": True,
    "Attribution License": True,
    "Attribution-NoDerivs License": True,
    "No known copyright restrictions (encyclopaedia)": True,
    "": True,
    "not stated": True,
}


@pytest.mark.parametrize(("licence", "commercial"), LICENCES.items())
def test_licences_that_forbid_commercial_use_are_known_by_their_names(
    catalog: Catalog, licence: str, commercial: bool
) -> None:
    marked = dataclasses.replace(catalog.objects[0], id="one", licence=licence)
    heard = dataclasses.replace(catalog.clips[0], id="one", licence=licence)
    more = dataclasses.replace(
        catalog,
        objects=Rows.joined(Object, [catalog.objects, Rows.of(Object, [marked])]),
        clips=Rows.joined(Clip, [catalog.clips, Rows.of(Clip, [heard])]),
    )
    free = select(more, dataclasses.replace(NATURAL, allow_non_commercial=False)).catalog
    stated = select(more, dataclasses.replace(NATURAL, allow_unstated=False)).catalog
    for name in ("objects", "clips"):
        assert ("one" in getattr(free, name).texts("id")) is commercial
        assert ("one" in getattr(stated, name).texts("id")) is (licence not in ("", "not stated"))
        assert "one" in getattr(select(more, NATURAL).catalog, name).texts("id")


def test_a_recipe_that_forbids_all_there_is_is_one_sentence(catalog: Catalog) -> None:
    unstated = [dataclasses.replace(row, licence="") for row in catalog.clips]
    without = dataclasses.replace(catalog, clips=Rows.of(Clip, unstated))
    with pytest.raises(ValueError, match=r"none of the 48 clips .* allow_unstated, or add media"):
        select(without, dataclasses.replace(NATURAL, allow_unstated=False))


def owners(pools: dict[str, Pools], split: str) -> tuple[set[str], set[str], set[str]]:
    pool = pools[split]
    return (
        {row.picture for rows in pool.objects.values() for row in rows},
        {row.video or row.sha256 for rows in pool.clips.values() for row in rows},
        set(pool.backgrounds.texts("sha256")),
    )


def test_composite_splits_with_assets_of_their_own_share_no_picture_and_no_sound(
    composite: Catalog,
) -> None:
    pools = split_assets(composite, COMPOSITE)
    own = {split: owners(pools, split) for split in ("train", "val", "test")}
    for kind in range(3):
        together = [item for split in own.values() for item in split[kind]]
        assert len(together) == len(set(together))
        assert all(split[kind] for split in own.values())
    used: dict[str, str] = {}
    for split in own:
        for number in range(8):
            sample = make_sample(pools[split], COMPOSITE, composite.roots, 0, split, number)
            assert isinstance(sample, Sample)
            for item in (*sample.meta["sound"], *(o["asset"] for o in sample.meta["objects"][0])):
                assert used.setdefault(item, split) == split
    # Where they share them on purpose, they do.
    shared = split_assets(composite, dataclasses.replace(COMPOSITE, own_assets=False))
    assert owners(shared, "train")[:2] == owners(shared, "val")[:2]


def test_takes_of_one_recording_are_in_one_split(composite: Catalog) -> None:
    changed = [
        dataclasses.replace(row, video="", recording=f"recording {number // 3}")
        for number, row in enumerate(composite.clips)
    ]
    pools = split_assets(
        dataclasses.replace(composite, clips=Rows.of(Clip, changed)),
        dataclasses.replace(COMPOSITE, samples=TRAIN_ONLY),
    )
    places: dict[str, set[str]] = {}
    for split, pool in pools.items():
        for row in (row for rows in pool.clips.values() for row in rows):
            places.setdefault(row.recording, set()).add(split)
    assert len(places) > 5 and all(len(splits) == 1 for splits in places.values())
    assert len(set.union(*places.values())) > 1


def test_what_a_split_gets_does_not_depend_on_what_else_there_is(composite: Catalog) -> None:
    recipe = dataclasses.replace(COMPOSITE, samples=TRAIN_ONLY)
    whole = split_assets(composite, recipe)
    fewer = dataclasses.replace(composite, objects=composite.objects[::2])
    part = split_assets(fewer, recipe)
    for split in ("train", "val", "test"):
        assert owners(part, split)[0] <= owners(whole, split)[0]
        assert owners(part, split)[1:] == owners(whole, split)[1:]


def test_only_what_scenes_may_be_made_from_is_listed(composite: Catalog) -> None:
    def licensed(rows: Rows[Any], licence: str) -> Rows[Any]:
        named = [dataclasses.replace(row, licence=licence, source=licence) for row in rows]
        return Rows.of(rows.row_type, named)

    mixed = dataclasses.replace(
        composite,
        backgrounds=licensed(composite.backgrounds, "background"),
        silent=licensed(composite.objects[:1], "silent"),
        clips=Rows.of(
            Clip,
            [
                dataclasses.replace(row, licence=row.class_name, source=row.class_name)
                for row in composite.clips
            ],
        ),
    )
    composed = dataclasses.replace(COMPOSITE, samples=TRAIN_ONLY)
    pools = split_assets(mixed, composed)["train"]
    assert {"background", "silent", *CLASSES} < pools.licences()
    assert set(pools.used()["backgrounds"]) == {"background"}
    pools = split_assets(mixed, NATURAL)["train"]
    assert pools.licences() & {"background", "silent", *CLASSES} == set(CLASSES)
    assert pools.used()["backgrounds"] == {}

    # Sheep that are heard in train and seen in other splits alone.
    shown = set(pools.objects["sheep"].texts("id"))
    apart = dataclasses.replace(
        mixed,
        objects=mixed.objects.take(np.asarray([row.id not in shown for row in mixed.objects])),
    )
    for recipe in (NATURAL, composed):
        pools = split_assets(apart, recipe)["train"]
        assert "sheep" in pools.clips and "sheep" not in pools.classes
        assert "sheep" not in pools.licences() and "sheep" not in pools.used()["sounds"]


def test_cut_outs_of_photographs_show_the_object_under_its_mask(composite: Catalog) -> None:
    pools = split_assets(composite, COMPOSITE)["train"]
    seen = Counter[str]()
    for number in range(12):
        sample = make_sample(pools, COMPOSITE, composite.roots, 0, "train", number)
        assert isinstance(sample, Sample)
        image_HW3 = media.decode_image(sample.members["frame0.jpg"]).astype(int)
        mask_HW = media.decode_mask(sample.members["mask0.png"])
        (name,) = sample.meta["classes"]
        coloured_HW = np.abs(image_HW3 - CLASSES[name][1]).max(-1) < 60
        both = (coloured_HW & mask_HW).sum() / (coloured_HW | mask_HW).sum()
        assert both > 0.85, (number, name, both)
        # The other object is in the picture, and not in the mask.
        (other,) = {o["class"] for o in sample.meta["objects"][0]} - {name, ""}
        silent_HW = np.abs(image_HW3 - CLASSES[other][1]).max(-1) < 60
        assert silent_HW.any() and not (silent_HW & mask_HW).mean() > 0.01
        seen[name] += 1
    assert len(seen) >= 3


def test_no_crowd_is_cut_out(composite: Catalog) -> None:
    assert any(row.crowd for row in composite.objects)
    for pool in split_assets(composite, COMPOSITE).values():
        assert not any(row.crowd for rows in pool.objects.values() for row in rows)


def test_classes_are_chosen_by_tier_and_by_the_benchmark_that_needs_them(catalog: Catalog) -> None:
    known = {row.name: row for row in classes()}

    def renamed(names: dict[str, str]) -> Catalog:
        tables = {
            name: Rows.of(
                kind,
                [
                    dataclasses.replace(row, class_name=names.get(row.class_name, row.class_name))
                    for row in getattr(catalog, name)
                ],
            )
            for name, kind in (("objects", Object), ("clips", Clip))
        }
        return dataclasses.replace(catalog, **tables)

    rare = next(name for name, row in known.items() if row.tier == "C")
    mixed = renamed({"cow": rare})

    def chosen(**more: object) -> set[str]:
        recipe = dataclasses.replace(NATURAL, **more)  # type: ignore[arg-type]
        return set(split_assets(mixed, recipe)["train"].objects)

    assert chosen() == {"cat", "dog", "sheep", rare}
    assert chosen(tiers=("A",)) == {"cat", "dog", "sheep"}
    assert chosen(tiers=("C",)) == {rare}
    assert chosen(tiers=("A", "C")) == chosen()
    for benchmark, column in (("s4", "avsbench_s4"), ("avss", "avss")):
        needed = {name for name in chosen() if known[name].labels[column]}
        assert {"cat", "dog"} <= needed
        assert chosen(needed_by=benchmark) == needed
    assert chosen(tiers=("A",), classes=("dog", rare)) == {"dog"}
    with pytest.raises(ValueError, match=r"no class of tiers \['B'\] .* the catalog has cat"):
        chosen(tiers=("B",))
    with pytest.raises(ValueError, match="no tier"):
        chosen(tiers=("E",))
    with pytest.raises(ValueError, match="ms3"):
        chosen(needed_by="ms3")
