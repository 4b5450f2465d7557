"""The whole story on one machine: real pictures and sounds -> a promoted model.

Every part is the job that runs on a cluster, called with small numbers. What stands from an
earlier run is reused: media, catalog and corpora by their content, stages by their checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from infra import cluster, config, console, registry, storage
from infra.corpus import Corpus
from infra.tracking import Run, Tracker
from model import SAVE, build_save
from pipelines import promote, shard_avsbench, synthesize
from pipelines.catalog import CatalogConfig, MediaConfig, make_catalog
from pipelines.report import claims, tell
from pipelines.showcase import Showcase, show
from synth.catalog import Catalog
from synth.distribute import map_rows
from synth.miniature import Counts, MiniatureConfig, write_miniature
from synth.pools import split_assets
from synth.recipe import TRAIN, Samples
from training.chain import read_stage
from training.evaluation import score_sounds, sound_blind
from training.listening import listening
from training.models import load_model
from training.stage import run_stage

logger = logging.getLogger("quickstart")

CHECKOUT = Path(__file__).resolve().parents[1]
RECIPE = CHECKOUT / "pipelines" / "recipes" / "quickstart.yaml"
MODEL_NAME = "save-quickstart"
SUBSETS: tuple[Literal["s4", "ms3"], ...] = ("s4", "ms3")


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Optimisation steps of each stage."""

    pretrain: int
    """On the synthetic corpus."""
    s4: int
    """On the miniature's S4, with and without pretraining."""
    ms3: int
    """On the miniature's MS3, from the S4 model."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """How large the story is told."""

    folder: str = "runs/quickstart"
    """Everything but the media goes here."""
    media_folder: str | None = None
    """A copy of $SAVE_CACHE/media from another machine, as a path or URI; without one the packages
    are fetched from Debian."""
    synthetic: Samples
    """Samples of the synthetic corpus."""
    miniature_s4: Counts
    """Clips of the S4 miniature."""
    miniature_ms3: Counts
    """Clips of the MS3 miniature."""
    steps: Steps
    """Length of the training stages."""
    image_size: int
    """Side of the model's input, and of the synthetic pictures, in pixels."""
    seed: int = 0
    """Of everything that is drawn."""


def quickstart(job: QuickstartConfig) -> dict[str, Any]:
    """Tell the whole story: media, catalog, corpora, training, scores, registry, prediction."""
    story = Story(job)
    cluster.connect()
    with story.part("catalog", "looking at every picture and sound"):
        catalog = story.make_catalog()
    with story.part("synthesis", "composing the synthetic corpus"):
        synthetic = story.synthesize()
    with story.part("miniature", "writing and sharding a miniature in AVSBench's layout"):
        miniature = story.make_miniature(catalog)
    tracker = Tracker(f"sqlite:///{story.folder}/mlflow.db")
    with tracker.run("quickstart") as parent:
        parent.log_config(config.to_dict(job))
        models = story.train(tracker, parent, synthetic, miniature)
        with story.part("evaluation", "scoring what was trained"):
            scores = story.evaluate(models, synthetic, miniature)
            parent.log_scores(scores)
            for corpus in (synthetic, *miniature.values()):
                parent.log_corpus(corpus, name=corpus.manifest["kind"], context="test")
        with story.part("showcase", "predicting on a clip and on a photo"):
            files = show(
                Showcase(folder=story.folder / "showcase", seed=job.seed),
                model_folder=models["finetune_ms3"],
                sheet_model=load_model(models["finetune_s4"]),
                corpus=miniature["s4"],
                catalog=catalog,
            )
            for path in files.values():
                parent.log_file(path, "showcase")
        with story.part("registry", "registering the model and asking the gate"):
            registered = story.register(tracker, scores, miniature, files)
    summary = {
        "corpora": story.corpora,
        "stages": story.stages,
        "scores": scores,
        "claims": claims(scores),
        "registry": registered,
        "files": {name: str(path) for name, path in files.items()},
        "seconds": {name: round(value, 1) for name, value in story.seconds.items()},
    }
    storage.write_bytes(str(story.folder / "summary.json"), config.canonical_json(summary))
    tell(summary)
    cluster.disconnect()
    return summary


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of the story; what is not said stands in its recipe."""

    stage: str
    recipe: str
    steps: int
    subset: Literal["s4", "ms3"] | None = None
    """Of the miniature; None trains on the synthetic corpus."""
    parent: str | None = None
    learning_rate: float | None = None


class Story:
    """The parts of the story, what they cost and what they left behind."""

    def __init__(self, job: QuickstartConfig) -> None:
        self.job = job
        self.folder = Path(job.folder).absolute()
        self.seconds: dict[str, float] = {}
        self.corpora: dict[str, dict[str, Any]] = {}
        self.stages: dict[str, dict[str, Any]] = {}
        self.run_ids: dict[str, str] = {}

    @contextmanager
    def part(self, name: str, what: str) -> Iterator[None]:
        """Time a part and say that it begins."""
        console.say(f"[{sum(self.seconds.values()):4.0f} s] {name}: {what}")
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def make_catalog(self) -> Catalog:
        """The catalog of all media, fetched where need be."""
        catalog = make_catalog(
            CatalogConfig(
                uri=str(self.folder / "catalog"), media=MediaConfig(folder=self.job.media_folder)
            )
        )
        counts = catalog.summary()
        console.say(
            f"         {counts['objects']} cut-outs, {counts['clips']} sounds, "
            f"{counts['backgrounds']} backgrounds, {counts['silent']} silent objects; refused: "
            + ", ".join(f"{n} {kind}" for kind, n in counts["refused_by_reason"].items())
        )
        return catalog

    def synthesize(self) -> Corpus:
        """The synthetic corpus, by the job that makes it anywhere."""
        samples = vars(self.job.synthetic).items()
        job = config.parse(
            synthesize.SynthesizeConfig,
            [
                f"--uri={self.folder / 'corpora' / 'synthetic'}",
                f"--catalog={self.folder / 'catalog'}",
                f"--corpus.image_size={self.job.image_size}",
                f"--seed={self.job.seed}",
                *(f"--corpus.samples.{split}={count}" for split, count in samples),
            ],
            recipe=synthesize.RECIPE,
        )
        self.recipe = job.corpus
        return self._opened("synthetic", synthesize.run(job))

    def make_miniature(self, catalog: Catalog) -> dict[str, Corpus]:
        """The miniature's tree and the corpora of its two subsets."""
        miniature = MiniatureConfig(
            seed=self.job.seed, s4=self.job.miniature_s4, ms3=self.job.miniature_ms3
        )
        known = split_assets(catalog, self.recipe)[TRAIN]
        # Known objects and sounds, but backgrounds of a collection that synthesis leaves alone.
        pools = replace(known, backgrounds=catalog.backgrounds)
        tree = str(self.folder / "miniature")
        write_miniature(tree, pools, miniature, catalog.folder, map_rows=map_rows)
        corpora: dict[str, Corpus] = {}
        for subset in SUBSETS:
            uri = str(self.folder / "corpora" / f"{subset}_miniature")
            job = shard_avsbench.ShardAvsbenchConfig(tree=tree, subset=subset, uri=uri)
            corpora[subset] = self._opened(f"{subset}_miniature", shard_avsbench.run(job))
        return corpora

    def _opened(self, name: str, summary: dict[str, Any]) -> Corpus:
        corpus = Corpus.open(summary["uri"])
        self.corpora[name] = {
            "uri": corpus.uri,
            "samples": summary["samples"],
            "classes": len(corpus.classes),
            "manifest_sha256": corpus.sha256,
        }
        console.say(f"         {summary['samples']} samples of {len(corpus.classes)} classes")
        return corpus

    def train(
        self, tracker: Tracker, parent: Run, synthetic: Corpus, miniature: dict[str, Corpus]
    ) -> dict[str, str]:
        """Both arms: with pretraining, and on the miniature alone. Returns model folders."""
        models: dict[str, str] = {}
        for plan in self._stages():
            corpus = synthetic if plan.subset is None else miniature[plan.subset]
            with self.part(plan.stage, f"{plan.steps} steps on {corpus.manifest['kind']}"):
                changes: dict[str, Any] = {
                    "stage": plan.stage,
                    "corpus": corpus.uri,
                    "output": str(self.folder / "training"),
                    "parent": models[plan.parent] if plan.parent else None,
                    "model.image_size": self.job.image_size,
                    "steps": plan.steps,
                    "seed": self.job.seed,
                    "tracking": tracker.uri,
                }
                if plan.learning_rate is not None:
                    changes["optimizer.learning_rate"] = plan.learning_rate
                result = run_stage(read_stage(plan.recipe, changes))
            run = Run(tracker.client, result["run_id"])
            run.put_under(parent)
            self.run_ids[plan.stage] = run.id
            models[plan.stage] = result["checkpoint"]
            self.stages[plan.stage] = {
                key: result[key]
                for key in ("steps", "seconds", "training_seconds", "samples_per_second", "val_m_j")
            }
        return models

    def _stages(self) -> list[StagePlan]:
        steps = self.job.steps
        finetune_s4 = StagePlan(
            stage="finetune_s4",
            recipe="finetune_s4_tiny.yaml",
            steps=steps.s4,
            subset="s4",
            parent="pretrain",
        )
        finetune_ms3 = StagePlan(
            stage="finetune_ms3",
            recipe="finetune_ms3_tiny.yaml",
            steps=steps.ms3,
            subset="ms3",
            parent="finetune_s4",
        )
        return [
            StagePlan(stage="pretrain", recipe="pretrain_tiny.yaml", steps=steps.pretrain),
            finetune_s4,
            finetune_ms3,
            # From random weights a larger rate is the better one.
            replace(finetune_s4, stage="scratch_s4", parent=None, learning_rate=1e-3),
            replace(finetune_ms3, stage="scratch_ms3", parent="scratch_s4"),
        ]

    def evaluate(
        self, models: dict[str, str], synthetic: Corpus, miniature: dict[str, Corpus]
    ) -> dict[str, Any]:
        """Every score of the summary, on test splits alone."""
        scores: dict[str, Any] = {}
        untrained = self._untrained()
        zero_shot = load_model(models["pretrain"])
        for subset, corpus in miniature.items():
            by_sound = score_sounds(
                load_model(models[f"finetune_{subset}"]),
                corpus,
                "test",
                sounds=("own", "swapped", "silence"),
            )
            blind = sound_blind(corpus, "test")
            assert blind is not None, "the miniature tells where its objects are"
            found = {
                "untrained": score_sounds(untrained, corpus, "test", sounds=("own",))["own"],
                "finetune_only": score_sounds(
                    load_model(models[f"scratch_{subset}"]), corpus, "test", sounds=("own",)
                )["own"],
                "zero_shot": score_sounds(zero_shot, corpus, "test", sounds=("own",))["own"],
                "pretrained": by_sound["own"],
                "sound_swapped": by_sound["swapped"],
                "silence": by_sound["silence"],
                "sound_blind": blind,
            }
            scores[f"{subset}_test"] = {
                name: {key: round(score[key], 4) for key in ("m_j", "m_f")}
                for name, score in found.items()
            }
        for split in ("test", "unseen"):
            heard = listening(zero_shot, synthetic, split)
            if heard is not None:
                scores[f"synthetic_{split}"] = {k: round(v, 4) for k, v in heard.items()}
        heard = listening(load_model(models["finetune_s4"]), miniature["s4"], "test")
        assert heard is not None, "every S4 clip of the miniature shows two objects"
        scores["s4_test"]["two_objects"] = {
            key: round(heard[key], 4) for key in ("m_j", "m_j_sound_blind", "picked_right")
        }
        return scores

    def _untrained(self) -> SAVE:
        torch.manual_seed(self.job.seed)
        return build_save("save_tiny", image_size=self.job.image_size).eval()

    def register(
        self,
        tracker: Tracker,
        scores: dict[str, Any],
        miniature: dict[str, Corpus],
        files: dict[str, Path],
    ) -> dict[str, Any]:
        """Register the last stage's model as candidate and let the gate decide."""
        run = Run(tracker.client, self.run_ids["finetune_ms3"])
        for path in files.values():
            run.log_file(path, "showcase")
        corpus = miniature["ms3"]
        what = registry.evaluation_name(corpus.manifest["kind"], "test")
        evaluation = registry.Evaluation(
            corpus=corpus.uri,
            corpus_sha256=corpus.sha256,
            split="test",
            scores=scores["ms3_test"]["pretrained"],
        )
        version = registry.register(
            tracker.client, name=MODEL_NAME, run_id=run.id, evaluations={what: evaluation}
        )
        gate = promote.PromoteConfig(name=MODEL_NAME, evaluation=what, tracking=tracker.uri)
        try:
            promote.promote(gate)
        except ValueError as refusal:
            console.say(f"         not promoted: {refusal}")
        aliases = tracker.client.get_model_version(MODEL_NAME, str(version)).aliases
        return {"name": MODEL_NAME, "version": version, "aliases": sorted(aliases)}


if __name__ == "__main__":
    config.main(quickstart, QuickstartConfig, recipe=RECIPE)
