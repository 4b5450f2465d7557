"""Models and checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model import SAVE, build_save, saved
from training import checkpoint
from training.checkpoint import Progress
from training.step import Learner


def tiny(seed: int = 0, image_size: int = 32) -> SAVE:
    torch.manual_seed(seed)
    return build_save("save_tiny", image_size=image_size).eval()


def answer(model: SAVE) -> torch.Tensor:
    torch.manual_seed(9)
    image_13SS, log_mel_11MF = torch.randn(1, 3, 32, 32), torch.randn(1, 1, 96, 64)
    with torch.no_grad():
        return model(image_13SS, log_mel_11MF)


def test_a_saved_model_answers_as_before(tmp_path: Path) -> None:
    model = tiny()
    saved.save(model, tmp_path)
    assert torch.equal(answer(checkpoint.load_model(str(tmp_path))), answer(model))


def test_a_model_folder_holds_weights_and_plain_json_only(tmp_path: Path) -> None:
    saved.save(tiny(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["save.json", "save.safetensors"]
    assert json.loads((tmp_path / "save.json").read_text())["model"]["name"] == "save_tiny"


def test_a_model_of_another_configuration_is_refused(tmp_path: Path) -> None:
    saved.save(tiny(), tmp_path)
    with pytest.raises(ValueError, match="another configuration: image_size 32 instead of 48"):
        checkpoint.load_weights(tiny(image_size=48), str(tmp_path))
    with pytest.raises(ValueError, match="save_tiny at 32 pixels"):
        checkpoint.check_model(str(tmp_path), "save_tiny", 48)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    saved.save(tiny(), tmp_path)
    data = (tmp_path / saved.WEIGHTS).read_bytes()
    (tmp_path / saved.WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load_model(str(tmp_path))
    (tmp_path / saved.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load_model(str(tmp_path))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        checkpoint.load_model(str(tmp_path / "nothing"))


def test_a_model_is_loaded_only_on_the_published_weights_that_it_was_trained_on(
    tmp_path: Path,
) -> None:
    model = tiny()
    model.base = {"sam": "1" * 64, "vggish": "2" * 64}
    saved.save(model, tmp_path)
    matrix = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert matrix in model.state_dict() and matrix not in load_file(tmp_path / saved.WEIGHTS)
    saved.load_weights(model, tmp_path)
    with pytest.raises(ValueError, match="sam_checkpoint"):
        saved.load_weights(tiny(), tmp_path)


def test_a_checkpoint_is_a_model_folder_and_knows_its_place(tmp_path: Path) -> None:
    learner = Learner(tiny(), classes=2, class_weight=0.5)
    weights = {name: p.detach() + 1.0 for name, p in learner.trainable()}
    mean, square = (
        {name: torch.full_like(p, value) for name, p in weights.items()} for value in (2.0, 3.0)
    )
    progress = Progress(step=7, digest="abc", m_j=0.5, history=[{"step": 7.0, "loss": 1.0}])
    checkpoint.write(
        tmp_path,
        learner=learner,
        gathered={"weights": weights, "exp_avg": mean, "exp_avg_sq": square},
        progress=progress,
    )
    assert checkpoint.read_progress(tmp_path) == progress
    loaded = dict(checkpoint.load_model(str(tmp_path)).named_parameters())
    assert torch.equal(loaded["audio_adapter.input.bias"], weights["save.audio_adapter.input.bias"])
    kept = load_file(tmp_path / checkpoint.OPTIMIZER)
    assert torch.equal(kept["weights/heads.sound.bias"], weights["heads.sound.bias"])
    assert bool((kept["exp_avg_sq/heads.sound.bias"] == 3.0).all())


def test_a_torn_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / checkpoint.STATE).write_text('{"format_version": 1, "step":')
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        checkpoint.read_progress(tmp_path)
