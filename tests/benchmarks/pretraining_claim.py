"""The paper's claim on the miniature: pretraining on a synthetic corpus against going without.

::

    python -m tests.benchmarks.pretraining_claim            # hours on two cores
    python -m tests.benchmarks.pretraining_claim --smoke    # minutes: does it run at all

Every arm learns S4, and MS3 from its own S4 model, by the same recipes:

- ``pretrained``: pretrained on the synthetic corpus, then finetuned;
- ``scratch``: the same steps of finetuning, from random weights;
- ``converged``: from random weights, up to ``--longer`` times the steps, ended when val M_J stays;
- ``converged_labels``: likewise, with the class losses that pretraining has (on request).

The learning rate of each arm and subset is the one with the best val M_J at the first seed; every
one that was tried is printed. Pretraining keeps that of its recipe. Scores are those of the test
split, which chooses nothing. A seed decides initial weights, order and augmentation, in pretraining
too; the corpora are always the same, so the spread is that of training alone. What stands from an
earlier run is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from infra import cluster, config
from infra.console import say
from infra.corpus import Corpus
from pipelines.quickstart import RECIPE, QuickstartConfig, Story
from tests.made_corpus import write_made_corpus
from training.chain import read_stage
from training.data import FrameSamples
from training.evaluation import score_sounds
from training.models import load_model
from training.recipe import TrainConfig
from training.stage import run_stage

SUBSETS = ("s4", "ms3")
SEEDS = (0, 1, 2)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
# Of 20 validations of a long stage.
PATIENCE = 8


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to a model."""

    name: str
    pretrained: bool = False
    longer: bool = False
    """Train up to ``Trial.longer`` times the steps of the recipe, until val M_J stays."""
    class_weight: float = 0.0


ARMS = (
    Arm(name="pretrained", pretrained=True),
    Arm(name="scratch"),
    Arm(name="converged", longer=True),
    Arm(name="converged_labels", longer=True, class_weight=0.5),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a subset's stage of an arm came to, seed by seed."""

    arm: Arm
    subset: str
    rate: float
    summaries: list[dict[str, Any]]
    scores: list[dict[str, float]]
    """``m_j`` and ``m_f`` on test."""

    def row(self, key: str) -> str:
        """Each seed, then mean and standard deviation."""
        found = [score[key] for score in self.scores]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        each = ", ".join(f"{value:.3f}" for value in found)
        return f"{each}: {statistics.mean(found):.3f} ± {spread:.3f}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The corpora, and where stages are kept."""

    folder: Path
    corpora: dict[str, Corpus]
    seeds: Sequence[int]
    rates: dict[str, Sequence[float]]
    """Learning rates to choose from, by subset."""
    longer: int = 10
    smaller: dict[str, Any] = field(default_factory=dict)
    """Changes to every recipe."""

    def pretrain(self, seed: int) -> dict[str, Any]:
        """The synthetic stage of a seed."""
        return self._run("pretrain_tiny", "synthetic", {"stage": f"pretrain_{seed}", "seed": seed})

    def learn(self, arm: Arm, subset: str, parents: Sequence[str | None]) -> Result:
        """Tune the learning rate at the first seed, then train all seeds and score them."""
        tried: dict[float, dict[str, Any]] = {}
        rates = self.rates[subset]
        for rate in rates:
            tried[rate] = self._finetune(arm, subset, rate, self.seeds[0], parents[0])
            best, step = tried[rate]["val_m_j"], tried[rate]["best_step"]
            say(f"{arm.name} {subset}, learning rate {rate:g}: val M_J {best:.4f} (step {step})")
        rate = max(tried, key=lambda tried_rate: float(tried[tried_rate]["val_m_j"]))
        if len(rates) > 2 and rate in (min(rates), max(rates)):
            say(f"{arm.name} {subset}: the best rate lies at the end of the grid")
        summaries = [
            self._finetune(arm, subset, rate, seed, parent)
            for seed, parent in zip(self.seeds, parents, strict=True)
        ]
        scores = [self.score(summary, subset) for summary in summaries]
        return Result(arm=arm, subset=subset, rate=rate, summaries=summaries, scores=scores)

    def score(self, summary: dict[str, Any], subset: str) -> dict[str, float]:
        """On test, once."""
        path = self.folder / "scores" / f"{summary['stage']}_on_{subset}.json"
        if not path.exists():
            model = load_model(summary["checkpoint"])
            found = score_sounds(model, self.corpora[subset], "test", sounds=("own",))["own"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
        scores: dict[str, float] = json.loads(path.read_text())
        return scores

    def _finetune(
        self, arm: Arm, subset: str, rate: float, seed: int, parent: str | None
    ) -> dict[str, Any]:
        recipe = f"finetune_{subset}_tiny"
        usual = self._read(recipe, subset, {}).steps
        assert usual is not None, "the tiny recipes count steps"
        changes = {
            "stage": f"{arm.name}_{subset}_{rate:.0e}_{seed}",
            "seed": seed,
            "parent": parent,
            "steps": usual * self.longer if arm.longer else usual,
            "validate_every": max(usual * self.longer // 20 if arm.longer else usual // 10, 1),
            "patience": PATIENCE if arm.longer else None,
            "class_weight": arm.class_weight,
            "optimizer.learning_rate": rate,
        }
        return self._run(recipe, subset, changes)

    def _read(self, recipe: str, corpus: str, changes: dict[str, Any]) -> TrainConfig:
        told = {"corpus": self.corpora[corpus].uri, "output": str(self.folder / "training")}
        return read_stage(f"{recipe}.yaml", told | self.smaller | changes)

    def _run(self, recipe: str, corpus: str, changes: dict[str, Any]) -> dict[str, Any]:
        stage = self._read(recipe, corpus, changes)
        summary = run_stage(stage)
        return {**summary, "batch": stage.batch, "class_weight": stage.class_weight}


def run(trial: Trial, arms: Sequence[Arm], subsets: Sequence[str]) -> None:
    """Train all arms and print what came out as Markdown."""
    results: list[Result] = []
    pretraining: list[dict[str, Any]] = []
    for arm in arms:
        parents: list[str | None] = [None] * len(trial.seeds)
        if arm.pretrained:
            pretraining = [trial.pretrain(seed) for seed in trial.seeds]
            parents = [summary["checkpoint"] for summary in pretraining]
        for subset in subsets:
            results.append(trial.learn(arm, subset, parents))
            parents = [summary["checkpoint"] for summary in results[-1].summaries]
    say(f"\nMiniature, test splits, {date.today()}; seeds {', '.join(map(str, trial.seeds))}: mean")
    say("and standard deviation.\n")
    _table(
        ("arm", "learning rate", "M_J", "M_F", "steps (best)", "val M_J"),
        [*_zero_shot(trial, pretraining, subsets), *map(_scored, results)],
    )
    say("\nWhat each has seen, its parents' stages not counted:\n")
    _table(
        ("stage", "pictures", "labels", "steps", "samples", "seconds"),
        [
            *([_seen("pretraining", trial, "synthetic", pretraining)] if pretraining else []),
            *(_seen(f"{r.arm.name}, {r.subset}", trial, r.subset, r.summaries) for r in results),
        ],
    )
    say("")
    for subset in subsets:
        _compare([result for result in results if result.subset == subset])


def _scored(result: Result) -> list[str]:
    steps = ", ".join(f"{s['steps']} ({s['best_step']})" for s in result.summaries)
    val = ", ".join(f"{s['val_m_j']:.3f}" for s in result.summaries)
    name = f"{result.arm.name}, {result.subset}"
    return [name, f"{result.rate:g}", result.row("m_j"), result.row("m_f"), steps, val]


def _zero_shot(
    trial: Trial, pretraining: list[dict[str, Any]], subsets: Sequence[str]
) -> list[list[str]]:
    """Pretrained and not finetuned."""
    rows = []
    for subset in subsets if pretraining else ():
        scores = [trial.score(summary, subset) for summary in pretraining]
        found = Result(arm=ARMS[0], subset=subset, rate=0.0, summaries=pretraining, scores=scores)
        name = f"pretraining alone, {subset}"
        rows.append([name, "-", found.row("m_j"), found.row("m_f"), "-", "-"])
    return rows


def _seen(name: str, trial: Trial, corpus: str, summaries: list[dict[str, Any]]) -> list[str]:
    samples = FrameSamples(trial.corpora[corpus], "train", image_size=16, seed=0, augmentation=None)
    steps = [summary["steps"] for summary in summaries]
    labels = "masks, classes of sound and objects" if summaries[0]["class_weight"] else "masks"
    seconds = statistics.mean(summary["training_seconds"] for summary in summaries)
    batch = summaries[0]["batch"]
    return [
        name,
        str(len(samples)),
        labels,
        ", ".join(map(str, steps)),
        f"{batch * statistics.mean(steps):.0f}",
        f"{seconds:.0f}",
    ]


def _compare(results: list[Result]) -> None:
    """The pretrained arm against each other one, seed by seed."""
    by_name = {result.arm.name: result for result in results}
    ours = by_name.pop("pretrained", None)
    for name, other in by_name.items() if ours else ():
        assert ours is not None
        gains = [a["m_j"] - b["m_j"] for a, b in zip(ours.scores, other.scores, strict=True)]
        each = ", ".join(f"{gain:+.3f}" for gain in gains)
        say(f"{ours.subset}, M_J: pretrained less {name} {statistics.mean(gains):+.3f} ({each})")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (heads, ["---"] * len(heads), *rows):
        say("| " + " | ".join(row) + " |")


def _miniature(folder: Path) -> dict[str, Corpus]:
    """The quickstart's corpora."""
    story = Story(config.parse(QuickstartConfig, [f"--folder={folder}"], recipe=RECIPE))
    catalog = story.make_catalog()
    return {"synthetic": story.synthesize(), **story.make_miniature(catalog)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [arm.name for arm in ARMS]
    options.add_argument("--arms", nargs="+", choices=names, default=names[:3])
    options.add_argument("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS))
    options.add_argument("--folder", default="runs/pretraining_claim", help="what is kept")
    options.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    options.add_argument("--s4-rates", nargs="+", type=float, help="of S4, where they differ")
    options.add_argument("--longer", type=int, default=10, help="times, of the converged arms")
    options.add_argument("--image-size", type=int, default=128, help="pixels")
    options.add_argument("--smoke", action="store_true", help="a tiny corpus and few steps")
    chosen = options.parse_args()
    arms = [arm for arm in ARMS if arm.name in chosen.arms]
    rates = {"s4": chosen.s4_rates or chosen.rates, "ms3": chosen.rates}
    config.set_up_logging()
    cluster.connect()
    if chosen.smoke:
        with tempfile.TemporaryDirectory(prefix="save-claim-") as temporary:
            folder = Path(temporary)
            corpora = {
                name: write_made_corpus(str(folder / name), seed=number)
                for number, name in enumerate(("synthetic", *SUBSETS))
            }
            small = {"model.image_size": 64, "steps": 2, "batch": 4, "validate_every": 2}
            trial = Trial(
                folder=folder,
                corpora=corpora,
                seeds=(0, 1),
                rates=dict.fromkeys(SUBSETS, (1e-3,)),
                smaller=small,
            )
            run(trial, arms, chosen.subsets)
    else:
        folder = Path(chosen.folder).absolute()
        trial = Trial(
            folder=folder,
            corpora=_miniature(folder),
            seeds=SEEDS,
            rates=rates,
            longer=chosen.longer,
            smaller={"model.image_size": chosen.image_size},
        )
        run(trial, arms, chosen.subsets)
    cluster.disconnect()


if __name__ == "__main__":
    main()
