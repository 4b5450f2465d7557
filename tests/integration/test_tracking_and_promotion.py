"""MLflow on sqlite, from a run to a champion."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra import registry
from infra.config import main
from infra.registry import Evaluation
from infra.tracking import MODEL_FOLDER, Tracker
from model import build_save, saved
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.promote import PromoteConfig, promote
from tests.made_corpus import write_made_corpus
from training.models import load_model

pytestmark = pytest.mark.integration

_names = itertools.count()


@pytest.fixture
def name() -> str:
    return f"save-{next(_names)}"


def _register(
    tracker: Tracker,
    name: str,
    folder: Path,
    m_j: float,
    *,
    corpus: str = "a" * 64,
    evaluations: dict[str, Evaluation] | None = None,
) -> int:
    with tracker.run("train") as run:
        run.log_model(folder)
    if evaluations is None:
        scores = {"m_j": m_j, "m_f": 0.5}
        evaluations = {
            "ms3_test": Evaluation(
                corpus="/corpora/ms3", corpus_sha256=corpus, split="test", scores=scores
            )
        }
    return registry.register(tracker.client, name=name, run_id=run.id, evaluations=evaluations)


def _promote(tracker: Tracker, name: str, **changes: Any) -> dict[str, Any]:
    return promote(PromoteConfig(name=name, tracking=tracker.uri, **changes))


def _champion(tracker: Tracker, name: str) -> int | None:
    version = registry.version_of(tracker.client, name, registry.CHAMPION)
    return int(version.version) if version else None


def test_a_run_holds_configuration_corpora_curves_and_files(
    tracker: Tracker, tmp_path: Path
) -> None:
    corpus = write_made_corpus(str(tmp_path / "corpus"), samples={"train": 2})
    picture = tmp_path / "overlay.png"
    picture.write_bytes(b"png")
    config = {"model": {"name": "save_tiny"}, "steps": 7, "note": "x" * 7000, "odd(key)": None}
    with tracker.run("quickstart") as parent, tracker.run("pretrain") as child:
        child.put_under(parent)
        child.log_config(config)
        child.log_corpus(corpus, name="synthetic", context="train")
        child.log_curves((step, {"loss": 1 / (step + 1)}) for step in range(1500))
        child.log_scores({"s4_test": {"m_j": 0.5, "sound_blind": None}, "nan": float("nan")})
        child.log_file(picture, "overlays")
    found = tracker.client.get_run(child.id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.parentRunId"] == parent.id
    params = found.data.params
    assert (params["model.name"], params["steps"], params["odd_key_"]) == ("save_tiny", "7", "null")
    assert len(params["note"]) == 6000 and params["note"].endswith("(cut)")
    (used,) = found.inputs.dataset_inputs
    assert used.dataset.digest == corpus.sha256[:32]
    assert json.loads(used.dataset.profile)["manifest_sha256"] == corpus.sha256
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "train")]
    curve = tracker.client.get_metric_history(child.id, "loss")
    assert [point.step for point in curve] == list(range(1500)) and curve[3].value == 0.25
    assert found.data.metrics["s4_test.m_j"] == 0.5 and "nan" not in found.data.metrics
    artifacts = Path(found.info.artifact_uri)
    assert artifacts.is_relative_to(Path(tracker.uri.removeprefix("sqlite:///")).parent)
    assert (artifacts / "overlays" / "overlay.png").read_bytes() == b"png"
    assert "save_tiny" in (artifacts / "config.yaml").read_text()


def test_a_run_that_raises_is_failed_and_one_that_goes_on_tells_what_is_other_now(
    tracker: Tracker,
) -> None:
    with pytest.raises(RuntimeError), tracker.run("stage") as run:
        run.log_config({"steps": 5, "seed": 1})
        raise RuntimeError
    assert tracker.client.get_run(run.id).info.status == "FAILED"
    run.log_config({"steps": 9, "seed": 1, "new": True})
    found = tracker.client.get_run(run.id)
    assert found.data.params == {"steps": "5", "seed": "1", "new": "true"}
    assert found.data.tags["resumed.steps"] == "9" and "resumed.seed" not in found.data.tags


def test_a_tracking_uri_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\./mlruns' is no tracking URI"):
        Tracker("./mlruns")


def test_a_registered_model_is_the_candidate_and_loads_by_alias(
    tracker: Tracker, name: str, model_folder: Path
) -> None:
    version = _register(tracker, name, model_folder, 0.5)
    by_alias = registry.resolve(f"models:/{name}@candidate", tracker.uri)
    by_version = registry.resolve(f"models:/{name}/{version}", tracker.uri)
    assert by_alias == by_version and Path(by_alias).is_dir()
    ours, theirs = load_model(by_alias), saved.load(model_folder)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


def test_what_is_not_in_the_registry_is_said(tracker: Tracker, name: str) -> None:
    for uri in (f"models:/{name}@champion", f"models:/{name}/1", f"runs:/{'0' * 32}/model"):
        with pytest.raises(FileNotFoundError, match="is not in the registry"):
            registry.resolve(uri, tracker.uri)
    with pytest.raises(ValueError, match="names no model"):
        registry.resolve(f"models:/{name}", tracker.uri)
    assert registry.resolve("some/folder") == str(Path("some/folder").absolute())


def test_a_run_without_a_model_cannot_be_registered(tracker: Tracker, name: str) -> None:
    with tracker.run("empty") as run:
        pass
    with pytest.raises(ValueError, match="holds no model"):
        registry.register(tracker.client, name=name, run_id=run.id, evaluations={})


@pytest.mark.parametrize("where", ["/etc", "{root}/../../other/artifacts/model", "{root}x/model"])
def test_a_version_that_points_out_of_its_run_is_refused(
    tracker: Tracker, name: str, where: str
) -> None:
    with tracker.run("attack") as run:
        pass
    root = tracker.client.get_run(run.id).info.artifact_uri
    tracker.client.create_registered_model(name)
    try:
        tracker.client.create_model_version(name, where.format(root=root), run.id)
    except Exception:
        return  # this MLflow refuses it by itself
    with pytest.raises(ValueError, match="does not lie in the artifacts of run"):
        registry.resolve(f"models:/{name}/1", tracker.uri)


def test_the_first_candidate_with_an_evaluation_becomes_champion(
    tracker: Tracker, name: str, model_folder: Path
) -> None:
    _register(tracker, name, model_folder, 0.3)
    summary = _promote(tracker, name)
    assert summary["promoted"] and summary["previous_champion"] is None
    assert _champion(tracker, name) == 1
    with pytest.raises(ValueError, match="is the champion already"):
        _promote(tracker, name)


def test_a_better_candidate_follows_and_history_tells(
    tracker: Tracker, name: str, model_folder: Path
) -> None:
    _register(tracker, name, model_folder, 0.3)
    _promote(tracker, name)
    _register(tracker, name, model_folder, 0.4)
    assert _promote(tracker, name)["gate"]["champion"] == 0.3
    assert _champion(tracker, name) == 2
    tags = tracker.client.get_model_version(name, "2").tags
    assert tags["previous_champion"] == "1" and tags["promoted_by"] and tags["promoted_at"]
    assert json.loads(tags["gate"])["candidate"] == 0.4
    first, second = registry.history(tracker.client, name)
    assert (first["version"], first["previous_champion"]) == (1, None)
    assert (second["version"], second["previous_champion"]) == (2, 1)
    assert second["gate"] == {
        "evaluation": "ms3_test",
        "corpus_sha256": "a" * 64,
        "split": "test",
        "metric": "m_j",
        "epsilon": 0.0,
        "candidate": 0.4,
        "champion": 0.3,
    }


def test_a_worse_candidate_is_refused_unless_epsilon_allows_it(
    tracker: Tracker, name: str, model_folder: Path
) -> None:
    _register(tracker, name, model_folder, 0.50)
    _promote(tracker, name)
    _register(tracker, name, model_folder, 0.49)
    with pytest.raises(ValueError, match=r"m_j 0\.4900 on ms3_test, below champion 1 with 0\.5000"):
        _promote(tracker, name)
    assert _champion(tracker, name) == 1
    _promote(tracker, name, epsilon=0.02)
    assert _champion(tracker, name) == 2


def test_scores_on_other_data_are_not_compared(
    tracker: Tracker, name: str, model_folder: Path
) -> None:
    _register(tracker, name, model_folder, 0.5)
    _promote(tracker, name)
    _register(tracker, name, model_folder, 0.9, corpus="b" * 64)
    with pytest.raises(ValueError, match="were scored on different data"):
        _promote(tracker, name)
    assert _champion(tracker, name) == 1


def test_a_candidate_without_the_evaluation_is_refused(
    tracker: Tracker, name: str, model_folder: Path
) -> None:
    _register(tracker, name, model_folder, 0.5, evaluations={})
    with pytest.raises(ValueError, match="registered without the evaluation 'ms3_test'"):
        _promote(tracker, name)
    _register(tracker, name, model_folder, float("nan"))
    with pytest.raises(ValueError, match="no finite 'm_j'"):
        _promote(tracker, name)
    with pytest.raises(ValueError, match="no finite 'm_k'"):
        _promote(tracker, name, metric="m_k")
    assert _champion(tracker, name) is None


def test_a_model_that_does_not_load_is_refused(
    tracker: Tracker, name: str, model_folder: Path, tmp_path: Path
) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-100])
    _register(tracker, name, tmp_path, 0.9)
    with pytest.raises(ValueError, match=r"version 1 of .* does not load: "):
        _promote(tracker, name)
    assert _champion(tracker, name) is None


def test_a_model_changed_after_its_evaluation_is_refused(
    tracker: Tracker, name: str, model_folder: Path
) -> None:
    _register(tracker, name, model_folder, 0.9)
    folder = Path(registry.resolve(f"models:/{name}@candidate", tracker.uri))
    assert folder.name == MODEL_FOLDER
    saved.save(build_save("save_tiny", image_size=64), folder)
    with pytest.raises(ValueError, match="its files changed since it was registered"):
        _promote(tracker, name)


def test_a_model_that_answers_nan_is_refused(tracker: Tracker, name: str, tmp_path: Path) -> None:
    model = build_save("save_tiny", image_size=64)
    with torch.no_grad():
        for parameter in model.mask_decoder.parameters():
            parameter.fill_(float("nan"))
    saved.save(model, tmp_path)
    _register(tracker, name, tmp_path, 0.9)
    with pytest.raises(ValueError, match="fails smoke inference: its answer holds NaN"):
        _promote(tracker, name)


def test_a_dry_run_moves_nothing(tracker: Tracker, name: str, model_folder: Path) -> None:
    _register(tracker, name, model_folder, 0.5)
    summary = _promote(tracker, name, dry_run=True)
    assert not summary["promoted"] and summary["version"] == 1
    assert _champion(tracker, name) is None and registry.history(tracker.client, name) == []


def test_the_command_refuses_with_one_sentence_and_succeeds_with_json(
    tracker: Tracker, name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--name", name, "--tracking", tracker.uri]
    with pytest.raises(SystemExit) as refused:
        main(promote, PromoteConfig, argv=argv)
    assert refused.value.code == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert "has no version with the alias 'candidate'" in errors[-1]
    _register(tracker, name, model_folder, 0.5)
    with pytest.raises(SystemExit) as done:
        main(promote, PromoteConfig, argv=argv)
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["promoted"] is True


def test_evaluate_scores_a_registered_model_and_tracks_it(
    tracker: Tracker, name: str, model_folder: Path, tmp_path: Path
) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"test": 4})
    _register(tracker, name, model_folder, 0.5)
    summary = evaluate(
        EvaluateConfig(
            model=f"models:/{name}@candidate",
            corpus=str(tmp_path),
            track=True,
            experiment="tests",
            tracking=tracker.uri,
        )
    )
    assert summary["corpus_sha256"] == corpus.sha256 and summary["frames"] == 4
    assert 0 <= summary["m_j"] <= 1 and summary["listening"]["scenes"] == 2
    assert {"m_j", "m_f"} <= summary["sound_swapped"].keys() & summary["silence"].keys()
    assert summary["sound_blind"]["m_j"] == pytest.approx(0.5, abs=0.01)
    run = tracker.client.get_run(summary["run_id"])
    assert run.data.metrics["test.m_j"] == pytest.approx(summary["m_j"])
    assert run.inputs.dataset_inputs[0].dataset.digest == corpus.sha256[:32]


def test_an_evaluated_model_can_be_registered_as_candidate(
    tracker: Tracker, model_folder: Path, name: str, tmp_path: Path
) -> None:
    corpus = write_made_corpus(str(tmp_path / "corpus"), samples={"test": 4}, size=64)
    summary = evaluate(
        EvaluateConfig(
            model=str(model_folder),
            corpus=corpus.uri,
            register=name,
            tracking=tracker.uri,
        )
    )
    candidate = registry.version_of(tracker.client, name, registry.CANDIDATE)
    assert candidate is not None and int(candidate.version) == summary["version"] == 1
    scored = registry.evaluation_of(candidate, summary["evaluation"])
    assert scored is not None and scored.corpus_sha256 == corpus.sha256
    assert scored.scores == {key: summary[key] for key in ("m_j", "m_f")}
    gate = PromoteConfig(name=name, evaluation=summary["evaluation"], tracking=tracker.uri)
    assert promote(gate)["promoted"]
