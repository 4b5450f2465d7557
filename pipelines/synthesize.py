"""Catalog -> synthetic corpus: scenes of known objects, each with the sound of what is masked."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infra import cluster, config, lease, storage
from infra.commit import check_free, shard_sizes, standing_shards
from infra.corpus import MANIFEST, Corpus, Refused, Sample, ShardRecord
from pipelines.catalog import MediaConfig, check_parallelism, find_media, look_at_media
from synth.catalog import Catalog
from synth.distribute import ShardTask, Shared, workers, write_shards
from synth.plan import drawn_from, plan_digest, plan_shards
from synth.pools import Pools, Selected, select, split_assets
from synth.publish import publish
from synth.recipe import Recipe, Samples
from synth.render import KIND, make_samples
from synth.rows import Rows

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"
RECIPE = RECIPES / "synthesize.yaml"
NOTES = {
    "composite": (
        "Scenes are composed: cut-outs on backgrounds, with a sound of the class that is masked.",
        "In val, test and unseen each scene comes twice, with the sound of either of its objects.",
    ),
    "natural": (
        "Objects stand in their own photographs; the sound is another recording of their class.",
        "A photograph, and a video that sounds come from, is in one split alone.",
    ),
}
SHARED_NOTE = (
    "val and test show train's pictures and sounds in scenes and on backgrounds of their own."
)
# Kinds of refusals that are no damage: there is nothing to mend. Of Debian's media they are most.
RULINGS = ("speech", "drawing", "duplicate")
_TRIED = 16


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
    """Of everything that is drawn; 0 or more."""
    parallelism: int | None = None
    """Shards written at once; all CPUs of the cluster by default."""
    dry_run: bool = False
    """Say what would be made, how large it would be and how long it would take, looking at the
    media included. For that they are looked at; what has to be downloaded stays in the media cache,
    and nothing else is written."""
    extend: bool = False
    """Make the corpus that stands there larger, to the samples that the recipe names now. Nothing
    that stands is changed."""
    retry_refused: bool = False
    """Look again at the inputs that an earlier run refused, and make their shards anew."""

    def __post_init__(self) -> None:
        check_parallelism(self.parallelism)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: use 0 or more")


def run(job: SynthesizeConfig) -> dict[str, Any]:
    """Compose a synthetic corpus; a rerun makes only what is missing."""
    storage.normalise(job.uri)  # a wrong one is told before anything starts
    cluster.connect()
    if job.dry_run:
        return _rehearse(job)
    with lease.hold(job.uri, owner=cluster.job_name("synthesize")) as held:
        return _synthesize(job, held)


def _synthesize(job: SynthesizeConfig, held: lease.Held) -> dict[str, Any]:
    retries = storage.retries()
    recipe = _recipe(job)
    beside = storage.join(job.uri, "catalog")
    # Beside a corpus that stands nothing is left: this job may still turn out to be another's.
    stands = storage.exists(storage.join(job.uri, MANIFEST))
    catalog = _catalog(job, beside, destination=None if stands else beside)
    _check_refusals(catalog, recipe)
    chosen = select(catalog, recipe)
    pools = split_assets(chosen.catalog, recipe)
    grown = _check_place(job, recipe, catalog, chosen.sources)
    if job.catalog is None:
        held.check()
        if grown:
            # Its shards are about to be replaced: better none than one of two halves.
            storage.remove(storage.join(job.uri, MANIFEST))
        catalog.write(beside)
    if job.extend and job.retry_refused:
        # Where shards are made anew, what --extend learns from goes first.
        grown_from = json.dumps([dataclasses.asdict(samples) for samples in recipe.grown_from])
        logger.info(
            "if no corpus stands after this job was stopped, run it again without --extend and "
            "with --corpus.grown_from '%s'",
            grown_from,
        )
    written = write_shards(
        job.uri,
        _tasks(chosen.sources, recipe, job.seed),
        partial(_make, pools=Shared(pools), recipe=recipe, seed=job.seed, roots=catalog.roots),
        parallelism=job.parallelism,
        max_refused=recipe.max_refused,
        retry_refused=job.retry_refused,
        check=held.check,
    )
    _tell_of_strays(job.uri, written.records)
    notes: tuple[str, ...] = NOTES[recipe.scenes]
    if recipe.scenes == "composite" and not recipe.own_assets:
        notes = (*notes, SHARED_NOTE)
    return publish(
        job.uri,
        written,
        kind=KIND,
        seed=job.seed,
        recipe=config.to_dict(recipe),
        sources=chosen.sources,
        licences=sorted(set().union(*(pool.licences() for pool in pools.values()))),
        refused=[*catalog.refused, *chosen.refused],
        notes=notes,
        about=_about(chosen, pools),
        before_commit=held.check,
        earlier_retries=storage.retries() - retries - written.retries,
    )


def _catalog(job: SynthesizeConfig, beside: str, destination: str | None = None) -> Catalog:
    if job.catalog:
        return Catalog.read(job.catalog)
    return look_at_media(
        job.media,
        job.parallelism,
        destination=destination,
        standing=beside,
        retry_refused=job.retry_refused,
    )


def _check_refusals(catalog: Catalog, recipe: Recipe) -> None:
    """Stop where too much of what was offered cannot be used."""
    counts = {k: n for k, n in catalog.refused_by_reason.items() if k not in RULINGS}
    accepted = len(catalog.objects) + len(catalog.clips) + len(catalog.backgrounds)
    accepted += len(catalog.silent) + len(catalog.photos)
    share = sum(counts.values()) / (sum(counts.values()) + accepted)
    if share > recipe.max_refused:
        worst = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        first = next(r for r in catalog.refused if r.reason.split(":")[0] in counts)
        raise ValueError(
            f"{share:.0%} of the inputs cannot be used ({worst}), more than max_refused "
            f"{recipe.max_refused:.0%}; the first is {first.id} ({first.reason}): mend the sources "
            "or raise max_refused"
        )


def _tasks(sources: dict[str, str], recipe: Recipe, seed: int) -> list[ShardTask]:
    return [
        ShardTask(
            split=plan.split,
            number=plan.number,
            first=plan.first,
            samples=plan.samples,
            plan=plan_digest(plan, sources=sources, recipe=recipe, seed=seed),
        )
        for plan in plan_shards(recipe)
    ]


def _make(
    task: ShardTask,
    *,
    pools: Shared[dict[str, Pools]],
    recipe: Recipe,
    seed: int,
    roots: Mapping[str, str],
) -> Iterator[Sample | Refused]:
    """The samples of one shard."""
    numbers = range(task.first, task.first + task.samples)
    return make_samples(pools.get()[task.split], recipe, roots, seed, task.split, numbers)


def _tell_of_strays(uri: str, records: Sequence[ShardRecord]) -> None:
    """Say in the log what lies among the shards and is of none that the manifest will list.

    A run for more samples, or of another recipe, was stopped there and can still be finished from
    it elsewhere: that is for its owner to give up.
    """
    ours = {name for record in records for name in (record.path, record.index, record.marker)}
    strays = {n: size for n, size in shard_sizes(uri).items() if n not in ours}
    if strays:
        logger.warning(
            "%s holds %d files (%.1f MB) of shards that are not of this corpus, the first is %s: "
            "another run left them there; readers pass them over, and they may be removed",
            storage.join(uri, "shards"),
            len(strays),
            sum(strays.values()) / 1e6,
            min(strays),
        )


def _about(chosen: Selected, pools: Mapping[str, Pools]) -> dict[str, Any]:
    """What the manifest says of where everything comes from."""
    return {
        "usage": _usage(pools.values()),
        "held_out": chosen.held_out,
        "unknown_labels": chosen.catalog.unknown_labels,
        "left_out": chosen.catalog.left_out,
    }


def _usage(pools: Iterable[Pools]) -> dict[str, dict[str, int]]:
    """How many objects, sounds and backgrounds of each source the corpus may be made from.

    Splits share some and have others to themselves: each is counted once.
    """
    sources: dict[str, dict[str, str]] = {"objects": {}, "sounds": {}, "backgrounds": {}}
    for pool in pools:
        for name in pool.classes:
            sources["objects"].update(_sources(pool.objects[name]))
            sources["sounds"].update(_sources(pool.clips[name]))
        sources["backgrounds"].update(_sources(pool.backgrounds))
    return {
        kind: dict(sorted(Counter(source_of.values()).items()))
        for kind, source_of in sources.items()
    }


def _sources(rows: Rows[Any]) -> Iterator[tuple[str, str]]:
    """The id and the source of each row."""
    return zip(rows.texts("id"), rows.texts("source"), strict=True)


def _recipe(job: SynthesizeConfig) -> Recipe:
    """What is to be made; another corpus at the URI is told of before any media are looked at."""
    recipe = _extended(job) if job.extend else job.corpus
    if not job.extend:
        check_free(job.uri, recipe=config.to_dict(recipe), seed=job.seed)
    with suppress(FileNotFoundError):
        if "held_out_videos" not in Corpus.open(job.uri).manifest["sources"]:
            raise ValueError(
                f"the corpus at {job.uri} is of an earlier version and does not tell all that it "
                "was made of: it can be used as ever, but not made larger or mended; choose "
                "another URI for what this job makes"
            )
    return recipe


def _extended(job: SynthesizeConfig) -> Recipe:
    """The recipe of the corpus that stands at the URI, with the samples that are asked for now.

    Raises:
        FileNotFoundError: none stands there.
        ValueError: it is of another recipe or seed.
    """
    manifest = Corpus.open(job.uri).manifest
    theirs = dict(manifest["recipe"])
    for name, ours in drawn_from(job.corpus).items():
        if ours != theirs.get(name):
            raise ValueError(
                f"the corpus at {job.uri} cannot be extended by this recipe (its {name} is "
                f"{theirs.get(name)!r}, not {ours!r}): name the recipe that it was made with"
            )
    if manifest["seed"] != job.seed:
        raise ValueError(
            f"the corpus at {job.uri} has seed {manifest['seed']}, not {job.seed}: extend it with "
            "its own"
        )
    earlier = [Samples(**counts) for counts in (*theirs["grown_from"], theirs["samples"])]
    if earlier[-1] == job.corpus.samples:
        earlier = earlier[:-1]
    return dataclasses.replace(job.corpus, grown_from=tuple(earlier))


def _check_place(
    job: SynthesizeConfig, recipe: Recipe, catalog: Catalog, sources: dict[str, str]
) -> bool:
    """Whether the corpus that stands at the URI has to be made anew with what came in.

    A mended input is one more that every sample may be drawn from, so that none stays as it was.

    Raises:
        ValueError: a corpus stands there that this job may not change.
    """
    if job.extend:
        theirs = Corpus.open(job.uri).manifest["sources"]
        differing = [name for name in sources if theirs.get(name) != sources[name]]
        if differing:
            raise ValueError(
                f"the corpus at {job.uri} cannot be extended: the media are not those that it was "
                f"made of (its {differing[0]} differs); name its own, or make another corpus"
            )
        return False
    grown = False
    if job.retry_refused and job.catalog is None:
        with suppress(FileNotFoundError, ValueError):
            earlier = Catalog.read(storage.join(job.uri, "catalog"))
            before = {**sources, "catalog": earlier.fingerprint}
            if earlier.offered == catalog.offered and before != sources:
                sources, grown = before, True
    check_free(job.uri, recipe=config.to_dict(recipe), seed=job.seed, sources=sources)
    return grown


def _rehearse(job: SynthesizeConfig) -> dict[str, Any]:
    """What the job would make: exact counts; bytes and time from a few samples made here."""
    recipe = _recipe(job)
    if job.catalog is None:
        find_media(job.media)  # so that no download is timed: the job finds it in the cache
    start = time.monotonic()
    catalog = _catalog(job, storage.join(job.uri, "catalog"))
    looking = time.monotonic() - start
    _check_refusals(catalog, recipe)
    chosen = select(catalog, recipe)
    pools = split_assets(chosen.catalog, recipe)
    _check_place(job, recipe, catalog, chosen.sources)
    tasks = _tasks(chosen.sources, recipe, job.seed)
    standing = standing_shards(job.uri, {(t.split, t.number): t.plan for t in tasks})
    if job.retry_refused:
        standing = {shard: stands for shard, stands in standing.items() if not stands[1]}
    missing = [t for t in tasks if (t.split, t.number) not in standing]
    splits: dict[str, dict[str, Any]] = {}
    size = spent = 0.0
    for split in dict.fromkeys(task.split for task in tasks):
        own = [task for task in missing if task.split == split]
        samples = sum(task.samples for task in own)
        splits[split] = {
            "samples": samples,
            "shards": len(own),
            "classes": len(pools[split].classes),
            **{kind: sum(counts.values()) for kind, counts in pools[split].used().items()},
        }
        if not own:
            continue
        make = partial(make_samples, pools[split], recipe, catalog.roots, job.seed, split)
        numbers = range(own[0].first, own[0].first + min(_TRIED, own[0].samples))
        list(make(numbers[:1]))  # what a worker does once is not what a sample costs
        start = time.monotonic()
        tried = list(make(numbers))
        spent += (time.monotonic() - start) / len(tried) * samples
        made = [s for s in tried if isinstance(s, Sample)]
        # Beside its members a sample has headers, padding, its json and its row in the index.
        each = [sum(len(m) + 1024 for m in s.members.values()) + 2048 for s in made]
        size += sum(each) / max(len(each), 1) * samples
    return {
        "dry_run": True,
        "uri": storage.normalise(job.uri),
        "splits": splits,
        "samples": sum(split["samples"] for split in splits.values()),
        "shards": len(missing),
        "shards_standing": len(standing),
        "expected_bytes": round(size),
        "expected_seconds": round(looking + spent / (job.parallelism or workers()), 1),
        "refused_by_reason": catalog.refused_by_reason,
        "held_out": chosen.held_out,
        "licences": sorted(set().union(*(pool.licences() for pool in pools.values()))),
    }


if __name__ == "__main__":
    config.main(run, SynthesizeConfig, recipe=RECIPE)
