"""The recipes that come with the project: each is read by the real parser and can be planned."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import yaml

from infra import config
from pipelines.synthesize import RECIPES, SynthesizeConfig
from synth import taxonomy
from synth.plan import plan_shards
from synth.recipe import SPLITS, Recipe, Samples

SYNTHESIS = sorted(
    path for path in RECIPES.glob("*.yaml") if "corpus" in yaml.safe_load(path.read_text())
)


def job(path: Path, *more: str) -> SynthesizeConfig:
    return config.parse(SynthesizeConfig, ["--config", str(path), *more])


def test_there_are_recipes_of_both_kinds_of_scenes() -> None:
    names = {path.stem for path in SYNTHESIS}
    assert names >= {"synthesize", "composite", "multi_source", "natural", "avs_synthetic_46k"}
    assert {job(path).corpus.scenes for path in SYNTHESIS} == {"composite", "natural"}


@pytest.mark.parametrize("path", SYNTHESIS, ids=lambda path: path.stem)
def test_a_recipe_is_read_as_it_is_written_and_plans_every_sample_once(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    read = config.to_dict(job(path))
    for name, value in written["corpus"].items():
        assert read["corpus"][name] == value, name
    assert read["uri"] == written["uri"] and read["seed"] == written["seed"]

    recipe = job(path).corpus
    plans = plan_shards(recipe)
    for split in SPLITS:
        own = [plan for plan in plans if plan.split == split]
        assert [plan.number for plan in own] == list(range(len(own)))
        ends = [0, *(plan.first + plan.samples for plan in own)]
        assert [plan.first for plan in own] == ends[:-1]
        assert ends[-1] == getattr(recipe.samples, split)
        assert all(0 < plan.samples <= recipe.samples_per_shard for plan in own)


@pytest.mark.parametrize("path", SYNTHESIS, ids=lambda path: path.stem)
def test_the_classes_and_tiers_that_a_recipe_names_are_in_the_taxonomy(path: Path) -> None:
    recipe = job(path).corpus
    assert set(recipe.tiers) <= set(taxonomy.TIERS)
    assert len(recipe.classes) == len(set(recipe.classes))
    known = {row.name: row for row in taxonomy.classes()}
    if path.stem != "synthesize":  # its classes are folders of the Debian media
        assert set(recipe.classes) <= known.keys()
    chosen = taxonomy.select(tiers=recipe.tiers, needed_by=recipe.needed_by)
    # Enough to tell classes apart, each with a sound and a mask in some source of the field.
    with_both = [
        name
        for name in chosen
        if any(known[name].labels[s] for s in ("vggsound", "audioset", "esc50", "fsd50k"))
        and any(known[name].labels[s] for s in ("lvis", "coco", "openimages"))
    ]
    assert len(with_both) >= 46


def test_what_the_command_line_says_overrides_a_recipe_and_no_field_comes_from_another() -> None:
    natural = RECIPES / "natural.yaml"
    changed = job(natural, "--corpus.samples.train=500", "--corpus.marks=instance", "--dry-run")
    assert changed.corpus.samples == Samples(train=500, val=2000, test=5000, unseen=0)
    assert changed.corpus.marks == "instance" and changed.dry_run
    assert changed.corpus == dataclasses.replace(
        job(natural).corpus, samples=changed.corpus.samples, marks="instance"
    )
    assert changed.corpus.classes == ()


def test_the_recipe_after_avs_synthetic_has_its_counts_and_46_classes_with_masks_and_sounds() -> (
    None
):
    recipe = job(RECIPES / "avs_synthetic_46k.yaml").corpus
    planned = Counter[str]()
    for plan in plan_shards(recipe):
        planned[plan.split] += plan.samples
    assert planned == {"train": 52_609, "val": 5_000, "test": 5_000}
    assert planned.total() == 62_609
    assert len(recipe.classes) == len(set(recipe.classes)) == 46
    known = {row.name: row for row in taxonomy.classes()}
    for name in recipe.classes:
        labels = known[name].labels
        assert labels["lvis"] or labels["openimages"], name
        assert labels["vggsound"], name
        assert known[name].tier in "ABC", name
    # What tells it from others: one object with one sound of its class, in its own photograph.
    assert (recipe.scenes, recipe.marks, recipe.sources) == ("natural", "instance", (1, 0, 0))
    assert (recipe.silence, recipe.off_screen, recipe.held_out) == (0, 0, "val_test")


def test_the_samples_of_an_earlier_corpus_can_be_named_on_the_command_line() -> None:
    earlier = '[{"train": 8, "val": 4, "test": 0, "unseen": 0}]'
    read = job(RECIPES / "natural.yaml", f"--corpus.grown_from={earlier}").corpus
    assert read.grown_from == (Samples(train=8, val=4, test=0, unseen=0),)
    assert isinstance(read, Recipe)
    firsts = [plan.first for plan in plan_shards(read) if plan.split == "train"]
    assert firsts[:3] == [0, 8, 8 + read.samples_per_shard]
