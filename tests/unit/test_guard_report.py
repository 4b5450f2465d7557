"""What a corpus says of the contamination guard, from what the guard really did."""

from __future__ import annotations

import csv
import dataclasses
import gzip
from pathlib import Path

import pytest

from infra.corpus import Corpus
from synth.catalog import Catalog
from synth.pools import select
from synth.recipe import Guard, Recipe
from synth.rows import Rows
from synth.tables import Clip
from tests.made_corpus import write_made_corpus
from tests.made_sources import natural_catalog
from tests.unit.test_held_out import LISTS, needs_lists, val_and_test
from tests.unit.test_page import page


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return natural_catalog(tmp_path_factory.mktemp("natural"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_made_corpus(str(tmp_path / "corpus"), samples={"train": 2})


def told(corpus: Corpus, catalog: Catalog, level: Guard, *tables: Path) -> str:
    """What the page says once the guard has been over the catalog."""
    recipe = Recipe(held_out=level, held_out_tables=tuple(map(str, tables)))
    manifest = {
        **corpus.manifest,
        "recipe": {"held_out": level},
        "held_out": select(catalog, recipe).held_out,
    }
    return " ".join(page(corpus, manifest)[1].sections["held-out"].split())


def s4_table(folder: Path, catalog: Catalog) -> Path:
    """S4's table with the video of two of the catalog's clips, twice in different splits."""
    table = folder / "s4_meta_data.csv"
    videos = [row.video for row in catalog.clips if row.video][:2]
    lines = [f"{videos[0]},0,cat_meowing,test", f"{videos[0]},5,cat_meowing,val"]
    lines.append(f"{videos[1]},0,cat_meowing,test")
    table.write_text("\n".join(["name,start,category,split", *lines, ""]))
    return table


def test_a_clip_in_several_lists_is_dropped_once(
    corpus: Corpus, catalog: Catalog, tmp_path: Path
) -> None:
    said = told(corpus, catalog, "val_test", s4_table(tmp_path, catalog))
    assert "2 clips were dropped" in said
    assert said.endswith("compared dropped s4 test s4 val vggsound 2 2 1")


@needs_lists
def test_the_clips_of_vggsound_that_are_dropped_are_as_many_as_the_page_says(
    corpus: Corpus, catalog: Catalog
) -> None:
    with gzip.open(LISTS / "vggsound_union.csv.gz", "rt", newline="") as lines:
        known = val_and_test()
        videos = [r["youtube_id"] for r in csv.DictReader(lines) if r["youtube_id"] in known]
    one = next(row for row in catalog.clips if row.source == "vggsound")
    clips = [
        dataclasses.replace(one, id=f"vggsound:{n}", video=video) for n, video in enumerate(videos)
    ]
    whole = dataclasses.replace(
        catalog, clips=Rows.joined(Clip, [catalog.clips, Rows.of(Clip, clips)])
    )
    chosen = select(whole, Recipe())
    assert len(catalog.clips) == len(chosen.catalog.clips)
    (counts,) = chosen.held_out.values()
    assert counts["clips"] == len(chosen.refused) == 1809
    # Most of them are in S4's table and in AVSS's.
    assert sum(counts.values()) - counts["clips"] == 3567
    assert "1,809 clips were dropped" in told(corpus, whole, "val_test")


def test_a_guard_that_was_off_is_said_to_be_off(
    corpus: Corpus, catalog: Catalog, tmp_path: Path
) -> None:
    said = told(corpus, catalog, "none", s4_table(tmp_path, catalog))
    assert "The guard was off (held_out: none)" in said
    assert "dropped" not in said


def test_a_guard_that_found_nothing_names_the_sources_that_it_compared(
    corpus: Corpus, catalog: Catalog
) -> None:
    said = told(corpus, catalog, "val_test")
    assert "No clip was dropped: none is in a list." in said
    assert said.endswith("compared dropped vggsound 0")


def test_a_guard_with_nothing_to_compare_vouches_for_nothing(
    corpus: Corpus, catalog: Catalog
) -> None:
    nameless = Rows.of(Clip, [row for row in catalog.clips if not row.video])
    said = told(corpus, dataclasses.replace(catalog, clips=nameless), "val_test")
    assert "Nothing was compared: no sound here names the video it is from." in said
    assert "dropped:" not in said and "No clip" not in said
