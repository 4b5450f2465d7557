"""Samples a second of synthesis: against its codecs alone, through Ray, and on two cores.

::

    python -m tests.benchmarks.synthesis

Natural scenes are of made photographs (640x480 JPEG, a few masks in each) and made sounds (10 s,
FLAC and WAV at 44.1 and 16 kHz); composite ones of Debian's media where they are in the cache and
of small made ones otherwise. The floors decode and encode with Pillow and libsndfile, in a bare
loop, and do nothing else: once the files that each sample is made of, whole, as a tool must that
keeps nothing and cannot decode a part; and once only what is decoded here, where cut-outs and
backgrounds are kept, and of a sound of 10 s the 5 s that are heard are decoded.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

# Before NumPy: a core is a core.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import psutil

from infra import cluster, corpus, stopwatch, storage
from infra.corpus import Refused, Sample
from pipelines import synthesize
from synth import assets, sources
from synth.catalog import Catalog
from synth.distribute import ShardTask, Shared, write_shards
from synth.looking import build_catalog
from synth.pools import Pools, split_assets
from synth.recipe import Recipe, Samples
from synth.render import make_samples
from synth.tables import MEDIA
from tests.benchmarks.bare_codecs import recorded
from tests.benchmarks.made_scenes import made_candidates
from tests.made_media import made_catalog

NATURAL = Recipe(
    scenes="natural",
    samples=Samples(train=0, val=0, test=0, unseen=0),
    crop=(0.6, 1.0),
    stretch="loudest",
)
COMPOSITE = replace(NATURAL, scenes="composite", stretch="random")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What one kind of samples is made of."""

    name: str
    catalog: Catalog
    recipe: Recipe

    def of(self, samples: int, per_shard: int) -> Scenes:
        """The same with so many samples to make."""
        wanted = replace(self.recipe.samples, train=samples)
        return replace(
            self, recipe=replace(self.recipe, samples=wanted, samples_per_shard=per_shard)
        )

    def pools(self) -> dict[str, Pools]:
        return split_assets(self.catalog, self.recipe)

    def tasks(self) -> list[ShardTask]:
        sources = {"catalog": self.catalog.fingerprint}
        return synthesize._tasks(sources, self.recipe, seed=0)


def natural_scenes(folder: Path, *, photographs: int, clips: int) -> Scenes:
    """Photographs and sounds that are as much work as real ones, in their catalog."""
    candidates = made_candidates(folder, photographs=photographs, clips=clips)
    catalog = build_catalog({MEDIA: str(folder)}, candidates)
    return Scenes(name="natural", catalog=catalog, recipe=NATURAL)


def composite_scenes(folder: Path, *, smoke: bool) -> Scenes:
    """Debian's cut-outs and sounds, as in quickstart, or small made ones."""
    debian = storage.cache_folder() / "media"
    if smoke or not (debian / "media.json").is_file():
        return Scenes(name="composite", catalog=made_catalog(folder), recipe=COMPOSITE)
    catalog = build_catalog(str(debian), list(sources.candidates(str(debian))))
    names = ("cow", "dog", "drum", "duck", "frog", "horse", "owl", "pig", "sheep", "violin")
    recipe = replace(COMPOSITE, classes=names, backgrounds=("monuments",))
    return Scenes(name="composite", catalog=catalog, recipe=recipe)


def forget() -> None:
    """Let nothing be kept of what an earlier run decoded."""
    for loader in (assets.load_cutout, assets.load_background, assets.load_sound):
        loader.cache_clear()  # type: ignore[attr-defined]


def samples_of(
    task: ShardTask, pools: dict[str, Pools], scenes: Scenes
) -> Iterator[Sample | Refused]:
    """As ``pipelines/synthesize.py`` makes them, without Ray."""
    numbers = range(task.first, task.first + task.samples)
    roots = scenes.catalog.roots
    return make_samples(pools[task.split], scenes.recipe, roots, 0, task.split, numbers)


def plain_loop(
    uri: str, scenes: Scenes, pools: dict[str, Pools], tasks: Sequence[ShardTask] | None = None
) -> None:
    for task in scenes.tasks() if tasks is None else tasks:
        made = samples_of(task, pools, scenes)
        corpus.write_shard(uri, task.split, task.number, made, plan=task.plan)


def through_ray(
    uri: str, scenes: Scenes, pools: Shared[dict[str, Pools]], *, parallelism: int
) -> None:
    roots = scenes.catalog.roots
    make = partial(synthesize._make, pools=pools, recipe=scenes.recipe, seed=0, roots=roots)
    write_shards(uri, scenes.tasks(), make, parallelism=parallelism)


def against_floor(folder: Path, scenes: Scenes, *, pairs: int) -> None:
    """Ours on one core, with where its time goes, and the codecs alone."""
    pools, samples = scenes.pools(), scenes.recipe.samples.train

    def ours() -> None:
        forget()
        with emptied(folder) as uri:
            plain_loop(uri, scenes, pools)

    def one_by_one() -> None:
        task = scenes.tasks()[0]
        for number in range(samples):
            forget()
            part = replace(task, first=number, samples=1)
            list(samples_of(part, pools, scenes))

    floors = {}
    with recorded(whole=True) as floors["each sample's files, whole"]:
        one_by_one()
    with recorded() as floors["what is decoded here"]:
        ours()
    stopwatch.take()
    mine, *others = in_turns(
        ours, *(partial(_all, calls) for calls in floors.values()), rounds=pairs
    )
    spent = {name: t / ((pairs + 1) * samples) for name, t in stopwatch.take().items()}
    spent["draw and the rest"] = mine.wall / samples - sum(spent.values())
    print(f"{scenes.name}, {samples} samples on one core")
    for (name, calls), floor in zip(floors.items(), others, strict=True):
        for label, a, b in (("wall", mine.wall, floor.wall), ("CPU", mine.cpu, floor.cpu)):
            print(
                f"  {label:<5} ours {samples / a:6.1f} samples/s, floor of {name} ({len(calls)} "
                f"bare calls) {samples / b:6.1f} samples/s, ratio {b / a:.2f}"
            )
    parts = ", ".join(f"{name} {1e3 * t:.2f}" for name, t in spent.items())
    print(f"  ms a sample: {parts}", flush=True)


def _all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def cost_of_ray(folder: Path, scenes: Scenes, *, pairs: int) -> None:
    """A plain loop in this process, and the same shards through a Ray that is up."""
    pools, shared = scenes.pools(), Shared(scenes.pools())

    def loop() -> None:
        with emptied(folder) as uri:
            plain_loop(uri, scenes, pools)

    one, plain = in_turns(ray_run(folder, scenes, shared, 1), loop, rounds=pairs)
    samples = scenes.recipe.samples.train
    print(
        f"{scenes.name}, {samples} samples in {len(scenes.tasks())} shards: plain loop "
        f"{plain.wall:.1f} s, through Ray on one worker {one.wall:.1f} s, ratio "
        f"{one.wall / plain.wall:.2f}; of CPU, Ray's own included, {plain.cpu:.1f} s and "
        f"{one.cpu:.1f} s, ratio {one.cpu / plain.cpu:.2f}",
        flush=True,
    )


def one_core_and_two(folder: Path, scenes: Scenes, *, pairs: int) -> None:
    """One worker and two; and bare processes, which show what the machine has to give."""
    shared = Shared(scenes.pools())
    runs = [ray_run(folder, scenes, shared, parallelism) for parallelism in (1, 2)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=_hold, initargs=(scenes,)) as processes:
        bare = [bare_run(folder, processes, parallelism) for parallelism in (1, 2)]
        one, two, alone, both = in_turns(*runs, *bare, rounds=pairs)
    samples = scenes.recipe.samples.train
    print(
        f"{scenes.name}, {samples} samples in {len(scenes.tasks())} shards: one worker "
        f"{one.wall:.1f} s ({samples / one.wall:.1f} samples/s), two {two.wall:.1f} s "
        f"({samples / two.wall:.1f} samples/s), ratio {one.wall / two.wall:.2f}; of CPU "
        f"{one.cpu:.1f} s and {two.cpu:.1f} s\n"
        f"  bare processes without Ray, one and two: {alone.wall:.1f} s and {both.wall:.1f} s, "
        f"ratio {alone.wall / both.wall:.2f}",
        flush=True,
    )


_held: list[tuple[Scenes, dict[str, Pools]]] = []


def _hold(scenes: Scenes) -> None:
    _held.append((scenes, scenes.pools()))


def _write_part(uri: str, number: int, count: int) -> None:
    (scenes, pools), *_ = _held
    plain_loop(uri, scenes, pools, scenes.tasks()[number::count])


def bare_run(folder: Path, processes: ProcessPoolExecutor, count: int) -> Callable[[], None]:
    def call() -> None:
        with emptied(folder) as uri:
            parts = [processes.submit(_write_part, uri, n, count) for n in range(count)]
            for part in parts:
                part.result()

    return call


def ray_run(
    folder: Path, scenes: Scenes, pools: Shared[dict[str, Pools]], parallelism: int
) -> Callable[[], None]:
    def call() -> None:
        with emptied(folder) as uri:
            through_ray(uri, scenes, pools, parallelism=parallelism)

    return call


@contextmanager
def emptied(folder: Path) -> Iterator[str]:
    """A place for a corpus, with nothing there before or after."""
    place = folder / "corpus"
    try:
        yield str(place)
    finally:
        shutil.rmtree(place)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a call, and what this process and those it started computed in it."""

    wall: float
    cpu: float


def in_turns(*calls: Callable[[], object], rounds: int) -> list[Cost]:
    """The median of each, timed in turns after one that is not: of cold files and caches."""
    for call in calls:
        call()
    found: dict[Callable[[], object], list[Cost]] = {call: [] for call in calls}
    for number in range(rounds):
        for call in calls if number % 2 else reversed(calls):
            wall, cpu = time.perf_counter(), cpu_seconds()
            call()
            found[call].append(Cost(wall=time.perf_counter() - wall, cpu=cpu_seconds() - cpu))
    return [_median(costs) for costs in found.values()]


def cpu_seconds() -> float:
    """What this process and those that run under it, Ray's among them, have computed."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        wall=statistics.median(cost.wall for cost in costs),
        cpu=statistics.median(cost.cpu for cost in costs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="timed turns of each")
    parser.add_argument("--samples", type=int, default=512, help="on one core, against the floor")
    parser.add_argument("--shards", type=int, default=16, help="of 256 samples, through Ray")
    parser.add_argument("--only", choices=("floor", "ray", "cores"), help="one of the three")
    parser.add_argument("--smoke", action="store_true", help="few samples: does it run at all")
    options = parser.parse_args()
    samples, shards, each = options.samples, options.shards, 256
    if options.smoke:
        samples, shards, each = 8, 2, 4
    print(f"{date.today()}, {os.cpu_count()} cores seen", flush=True)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="save-synthesis-") as name:
        folder = Path(name)
        photographs, clips = (16, 32) if options.smoke else (240, 240)
        natural = natural_scenes(folder / "media", photographs=photographs, clips=clips)
        if options.only in (None, "floor"):
            against_floor(folder, natural.of(samples, samples), pairs=options.pairs)
            composite = composite_scenes(folder / "composite", smoke=options.smoke)
            against_floor(folder, composite.of(samples, samples), pairs=options.pairs)
        if options.only == "floor":
            return
        cluster.connect(num_cpus=2)
        many = natural.of(shards * each, each)
        # Workers start and import what they need before anything is timed.
        ray_run(folder, natural.of(16, 4), Shared(natural.of(16, 4).pools()), 2)()
        if options.only in (None, "ray"):
            cost_of_ray(folder, many, pairs=options.pairs)
        if options.only in (None, "cores"):
            one_core_and_two(folder, many, pairs=options.pairs)
        cluster.disconnect()


if __name__ == "__main__":
    main()
