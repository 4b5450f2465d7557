"""What a stage comes from, as its run in MLflow (on sqlite) tells it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from infra import registry
from infra.tracking import Tracker
from model import saved
from tests.made_corpus import write_made_corpus
from training.recipe import TrainConfig
from training.reporting import reporting

pytestmark = pytest.mark.integration

NAME = "save-lineage"


def test_a_stage_names_the_run_stage_and_weights_that_it_comes_from(
    tracker: Tracker,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    corpus = write_made_corpus(str(tmp_path / "corpus"), samples={"train": 2, "val": 2})

    def report_on(stage: str, parent: str | None) -> str:
        config = TrainConfig(stage=stage, corpus=corpus.uri, steps=1, parent=parent)
        with reporting(config, corpus, f"{tmp_path}/{stage}", tracker.uri) as report:
            report.finish({"steps": 1, "checkpoint": str(model_folder)})
        assert report.run_id is not None
        return report.run_id

    def lineage_of(run_id: str) -> dict[str, str]:
        tags = tracker.client.get_run(run_id).data.tags
        return {k: v for k, v in tags.items() if k.startswith(("stage", "corpus.", "parent."))}

    first = report_on("first", None)
    corpus_tags = {"corpus.uri": corpus.uri, "corpus.sha256": corpus.sha256}
    assert lineage_of(first) == {"stage": "first", **corpus_tags}
    registry.register(tracker.client, name=NAME, run_id=first, evaluations={})
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000001"
    shutil.copytree(model_folder, checkpoint)
    weights = hashlib.sha256((model_folder / saved.WEIGHTS).read_bytes()).hexdigest()
    parents = [
        f"runs:/{first}/model",
        f"models:/{NAME}@candidate",
        f"models:/{NAME}/1",
        str(checkpoint),
    ]
    for number, parent in enumerate(parents):
        assert lineage_of(report_on(f"next-{number}", parent)) == {
            "stage": f"next-{number}",
            **corpus_tags,
            "parent.uri": parent,
            "parent.run_id": first,
            "parent.stage": "first",
            "parent.sha256": weights,
        }
    untracked = lineage_of(report_on("other", str(model_folder)))
    assert untracked["parent.sha256"] == weights and "parent.run_id" not in untracked


def test_a_parent_stays_the_one_it_was_though_its_alias_moves(
    tracker: Tracker,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    corpus = write_made_corpus(str(tmp_path / "corpus"), samples={"train": 2, "val": 2})
    config = TrainConfig(
        stage="stage", corpus=corpus.uri, steps=1, parent=f"models:/{NAME}@candidate"
    )
    parents = set()
    for _ in range(2):
        with tracker.run("parent") as run:
            run.log_model(model_folder)
        registry.register(tracker.client, name=NAME, run_id=run.id, evaluations={})
        with (
            pytest.raises(RuntimeError),
            reporting(config, corpus, f"{tmp_path}/stage", tracker.uri) as report,
        ):
            raise RuntimeError
        assert report.run_id is not None
        parents.add(tracker.client.get_run(report.run_id).data.tags["parent.run_id"])
    assert len(parents) == 1
