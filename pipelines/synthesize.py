"""Catalog -> synthetic corpus: scenes of cut-outs, each with the sound of what is masked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infra import cluster, config, corpus, storage
from infra.corpus import Sample
from pipelines.catalog import MediaConfig, look_at_media
from synth.catalog import Catalog
from synth.distribute import ShardTask, write_shards
from synth.plan import Pools, plan_digest, plan_sample, plan_shards, split_assets
from synth.publish import publish
from synth.recipe import Recipe
from synth.render import render

logger = logging.getLogger(__name__)

RECIPE = Path(__file__).parent / "recipes" / "synthesize.yaml"
KIND = "synthetic"
NOTES = (
    "Scenes are composed: cut-outs on backgrounds, with a sound of the class that is masked.",
    "val and test show known pictures and sounds in scenes and on backgrounds of their own, each "
    "scene once with the sound of either object; unseen has pictures and sounds of its own.",
)


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """The synthesis job."""

    uri: str
    """Where the corpus goes: a path, file:// or s3:// URI."""
    catalog: str | None = None
    """A catalog that pipelines/catalog.py made; without one it is made beside the corpus."""
    media: MediaConfig = field(default_factory=MediaConfig)
    """Where pictures and sounds come from when the catalog has to be made."""
    corpus: Recipe = field(default_factory=Recipe)
    """The recipe."""
    seed: int = 0
    """Of everything that is drawn."""
    parallelism: int | None = None
    """Shards written at once; all CPUs of the cluster by default."""


def run(job: SynthesizeConfig) -> dict[str, Any]:
    """Compose a synthetic corpus; a rerun makes only what is missing."""
    storage.normalise(job.uri)  # a wrong one is told before anything starts
    cluster.connect()
    catalog = (
        Catalog.read(job.catalog) if job.catalog else look_at_media(job.media, job.parallelism)
    )
    pools = split_assets(catalog, job.corpus)
    recipe = config.to_dict(job.corpus)
    sources = {"catalog": catalog.fingerprint}
    corpus.check_free(job.uri, recipe=recipe, seed=job.seed, sources=sources)
    if job.catalog is None:
        catalog.write(storage.join(job.uri, "catalog"))

    def digest(plan: Any) -> str:
        return plan_digest(
            plan, catalog_fingerprint=catalog.fingerprint, recipe=job.corpus, seed=job.seed
        )

    tasks = [
        ShardTask(split=plan.split, number=plan.number, plan=digest(plan), samples=plan.samples)
        for plan in plan_shards(job.corpus)
    ]
    make = partial(_make, pools=pools, recipe=job.corpus, seed=job.seed, media_uri=catalog.folder)
    written = write_shards(job.uri, tasks, make, parallelism=job.parallelism)
    return publish(
        job.uri,
        written,
        kind=KIND,
        seed=job.seed,
        recipe=recipe,
        sources=sources,
        licences=_licences(pools),
        refused=catalog.refused,
        notes=NOTES,
    )


def _licences(pools: dict[str, Pools]) -> list[str]:
    """Of everything that a scene may be made from."""
    used: set[str] = set()
    for pool in pools.values():
        used |= {row.licence for rows in pool.objects.values() for row in rows}
        used |= {row.licence for rows in pool.clips.values() for row in rows}
        used |= {row.licence for row in pool.backgrounds} | {row.licence for row in pool.silent}
    return sorted(used)


def _make(
    task: ShardTask, *, pools: dict[str, Pools], recipe: Recipe, seed: int, media_uri: str
) -> Iterator[Sample]:
    first = task.number * recipe.samples_per_shard
    for number in range(first, first + task.samples):
        spec = plan_sample(pools[task.split], recipe, seed=seed, split=task.split, number=number)
        yield render(spec, media_uri, kind=KIND)


if __name__ == "__main__":
    config.main(run, SynthesizeConfig, recipe=RECIPE)
