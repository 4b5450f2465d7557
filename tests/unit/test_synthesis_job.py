"""What the synthesis job says of its sources, and what it refuses before anything is made."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from infra import config
from pipelines import synthesize
from pipelines.synthesize import SynthesizeConfig
from synth.catalog import Catalog
from synth.pools import Pools, select, split_assets
from synth.recipe import Recipe, Samples
from synth.rows import Rows
from synth.tables import Refused
from tests.made_media import made_catalog


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Of two sources: the second sounds and pictures of a class are another's."""
    made = made_catalog(tmp_path_factory.mktemp("made") / "media")
    return dataclasses.replace(
        made,
        objects=with_second_source(made.objects),
        clips=with_second_source(made.clips),
    )


def with_second_source(rows: Rows) -> Rows:  # type: ignore[type-arg]
    changed = [
        dataclasses.replace(row, source="second" if "/1." in row.id else "first") for row in rows
    ]
    return Rows.of(rows.row_type, changed)


def usage(catalog: Catalog, recipe: Recipe) -> tuple[dict[str, dict[str, int]], dict[str, Pools]]:
    chosen = select(catalog, recipe)
    pools = split_assets(chosen.catalog, recipe)
    found: dict[str, dict[str, int]] = synthesize._about(chosen, pools)["usage"]
    return found, pools


def test_the_manifest_counts_what_splits_share_once_and_all_that_they_have_to_themselves(
    catalog: Catalog,
) -> None:
    found, pools = usage(catalog, Recipe())
    # train, val and test share six less two; unseen has the second of bell and horn.
    assert found["objects"] == found["sounds"] == {"first": 4, "second": 2}
    # Each split has some to itself.
    assert found["backgrounds"] == dict(Counter(row.source for row in catalog.backgrounds))
    assert sum(found["backgrounds"].values()) == 10 > len(pools["train"].backgrounds)


def test_the_manifest_counts_the_assets_of_every_split(catalog: Catalog) -> None:
    own = Recipe(
        own_assets=True,
        asset_shares=(0.4, 0.3, 0.3),
        samples=Samples(train=0, val=0, test=0, unseen=0),
    )
    found, pools = usage(catalog, own)
    held = [pool for pool in pools.values() if pool.classes]
    assert len(held) > 1
    for kind in ("objects", "sounds", "backgrounds"):
        parts: Counter[str] = Counter()
        for pool in pools.values():
            parts.update(pool.used()[kind])
        assert found[kind] == dict(parts)


@pytest.mark.parametrize("kind", ["silent", "transparency", "class", "path", "row", "unreadable"])
def test_whatever_cannot_be_used_counts_towards_max_refused(catalog: Catalog, kind: str) -> None:
    damaged = refusing(catalog, kind, 10)
    says = rf"\d+% of the inputs cannot be used \(10 {kind}\), .*; the first is 0 \({kind}: x\)"
    with pytest.raises(ValueError, match=says):
        synthesize._check_refusals(damaged, Recipe())
    synthesize._check_refusals(damaged, Recipe(max_refused=0.5))
    synthesize._check_refusals(refusing(catalog, kind, 5), Recipe())


@pytest.mark.parametrize("kind", ["speech", "drawing", "duplicate"])
def test_what_is_just_not_wanted_does_not(catalog: Catalog, kind: str) -> None:
    synthesize._check_refusals(refusing(catalog, kind, 1000), Recipe())


def refusing(catalog: Catalog, kind: str, count: int) -> Catalog:
    refused = [Refused(id=str(n), source="made", reason=f"{kind}: x") for n in range(count)]
    return dataclasses.replace(catalog, refused=Rows.of(Refused, refused))


def test_a_negative_seed_is_refused_before_anything_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        config.main(
            synthesize.run,
            SynthesizeConfig,
            recipe=synthesize.RECIPE,
            argv=["--uri", str(tmp_path / "corpus"), "--seed", "-1"],
        )
    assert ended.value.code != 0
    assert "seed is -1: use 0 or more" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_what_the_corpus_grew_from_can_be_given_as_the_log_says_it() -> None:
    grown_from = '[{"train": 7, "val": 2, "test": 2, "unseen": 2}]'
    job = config.parse(
        SynthesizeConfig,
        ["--uri", "corpus", "--corpus.grown_from", grown_from],
        recipe=synthesize.RECIPE,
    )
    assert job.corpus.grown_from == (Samples(train=7, val=2, test=2, unseen=2),)
