"""Models and checkpoints on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import SAVE, build_save, saved
from model import save as save_module
from model.vggish import SmallVGGish
from tests.small_sam import small_sam, small_size
from training import checkpoint, models
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
    assert torch.equal(answer(models.load_model(str(tmp_path))), answer(model))


def test_a_model_folder_holds_weights_and_plain_json_only(tmp_path: Path) -> None:
    saved.save(tiny(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["save.json", "save.safetensors"]
    assert json.loads((tmp_path / "save.json").read_text())["model"]["name"] == "save_tiny"


def test_a_model_of_another_configuration_is_refused(tmp_path: Path) -> None:
    saved.save(tiny(), tmp_path)
    with pytest.raises(ValueError, match="another configuration: image_size 32 instead of 48"):
        models.load_weights(tiny(image_size=48), str(tmp_path))
    with pytest.raises(ValueError, match="save_tiny at 32 pixels"):
        models.check_model(str(tmp_path), "save_tiny", 48)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    saved.save(tiny(), tmp_path)
    data = (tmp_path / saved.WEIGHTS).read_bytes()
    (tmp_path / saved.WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged"):
        models.load_model(str(tmp_path))
    (tmp_path / saved.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        models.load_model(str(tmp_path))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        models.load_model(str(tmp_path / "nothing"))


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A small SAM and VGGish on disk, on which ``save_vit_b`` then stands."""
    torch.manual_seed(3)
    monkeypatch.setitem(save_module.SIZES, "save_vit_b", small_size())
    files = {"sam_checkpoint": tmp_path / "sam.pth", "vggish_checkpoint": tmp_path / "vggish.pth"}
    torch.save(small_sam().state_dict(), files["sam_checkpoint"])
    torch.save(SmallVGGish().state_dict(), files["vggish_checkpoint"])
    return files


def trained_on(base: dict[str, Path]) -> SAVE:
    """As after training: no trained tensor is what the checkpoint holds."""
    model = build_save("save_vit_b", image_size=32, **base).eval()
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def test_on_published_weights_only_what_is_trained_is_saved(
    base: dict[str, Path], tmp_path: Path
) -> None:
    model = trained_on(base)
    saved.save(model, tmp_path / "model")
    trained = {name for name, _ in model.trainable_parameters()}
    assert load_file(tmp_path / "model" / saved.WEIGHTS).keys() == trained
    description = json.loads((tmp_path / "model" / saved.CONFIG).read_text())
    assert description["base_sha256"] == {
        name: hashlib.sha256(base[f"{name}_checkpoint"].read_bytes()).hexdigest()
        for name in ("sam", "vggish")
    }
    assert torch.equal(answer(saved.load(tmp_path / "model", **base)), answer(model))


def test_another_base_is_refused(base: dict[str, Path], tmp_path: Path) -> None:
    saved.save(trained_on(base), tmp_path / "model")
    sam = tmp_path / "other.pth"
    torch.save(small_sam().state_dict(), sam)
    for given, words in (
        ({**base, "sam_checkpoint": sam}, "on the SAM checkpoint with sha256 .* name that file as"),
        (
            {"vggish_checkpoint": base["vggish_checkpoint"]},
            "on the SAM .* got none: .* sam_checkpoint",
        ),
        (
            {"sam_checkpoint": base["sam_checkpoint"]},
            "on the VGGish .* got none: .* vggish_checkpoint",
        ),
    ):
        with pytest.raises(ValueError, match=f"model was trained {words}"):
            saved.load(tmp_path / "model", **given)


def test_weights_without_a_published_file_are_saved_whole(
    base: dict[str, Path], tmp_path: Path
) -> None:
    """Nobody could build them again: a random start, and SAM's positional matrix with it."""
    model = trained_on({"vggish_checkpoint": base["vggish_checkpoint"]})
    saved.save(model, tmp_path / "model")
    kept = load_file(tmp_path / "model" / saved.WEIGHTS).keys()
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in kept
    assert not any(name.startswith("audio_encoder.") for name in kept)
    torch.manual_seed(5)
    again = saved.load(tmp_path / "model", vggish_checkpoint=base["vggish_checkpoint"])
    assert torch.equal(answer(again), answer(model))
    with pytest.raises(ValueError, match=r"without a published SAM .* leave sam_checkpoint out"):
        saved.load(tmp_path / "model", **base)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("audio_adapter.input.bias"), r"missing: audio_adapter\.input\.bias"),
        (lambda w: w.update(extra=torch.ones(1)), "unexpected: extra"),
        (
            lambda w: w.update({"audio_adapter.input.bias": torch.ones(3)}),
            r"expected shape audio_adapter\.input\.bias \[256\] but got \[3\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[dict[str, torch.Tensor]], None], words: str, tmp_path: Path
) -> None:
    saved.save(tiny(), tmp_path)
    weights = load_file(tmp_path / saved.WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / saved.WEIGHTS)
    with pytest.raises(ValueError, match=f"does not fit save_tiny; {words}"):
        saved.load(tmp_path)


def test_a_folder_with_a_part_of_a_model_is_refused(tmp_path: Path) -> None:
    saved.save(tiny(), tmp_path)
    (tmp_path / saved.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"save\.safetensors is missing"):
        saved.load(tmp_path)
    description = json.loads((tmp_path / saved.CONFIG).read_text())
    description["model"]["colour"] = "red"
    (tmp_path / saved.CONFIG).write_text(json.dumps(description))
    with pytest.raises(ValueError, match="damaged: it does not describe a SAVE"):
        saved.load(tmp_path)


def test_a_checkpoint_is_a_model_folder_and_knows_its_place(tmp_path: Path) -> None:
    learner = Learner(tiny(), classes=2, class_weight=0.5)
    weights = {name: p.detach() + 1.0 for name, p in learner.trainable()}
    mean, square = (
        {name: torch.full_like(p, value) for name, p in weights.items()} for value in (2.0, 3.0)
    )
    progress = Progress(
        step=7, digest="abc", training_seconds=0.5, history=[{"step": 7.0, "loss": 1.0}]
    )
    gathered = {"weights": weights, "exp_avg": mean, "exp_avg_sq": square}
    taken = checkpoint.snapshot(learner, gathered=gathered, mean=None, progress=progress)
    taken.write(tmp_path)
    assert checkpoint.read_progress(tmp_path) == progress
    loaded = dict(models.load_model(str(tmp_path)).named_parameters())
    assert torch.equal(loaded["audio_adapter.input.bias"], weights["save.audio_adapter.input.bias"])
    kept = load_file(tmp_path / checkpoint.OPTIMIZER)
    assert torch.equal(kept["weights/heads.sound.bias"], weights["heads.sound.bias"])
    assert bool((kept["exp_avg_sq/heads.sound.bias"] == 3.0).all())


def test_with_a_running_mean_that_is_the_model_and_the_weights_lie_beside(tmp_path: Path) -> None:
    learner = Learner(tiny(), classes=2, class_weight=0.5)
    weights = {name: p.detach() + 1.0 for name, p in learner.trainable()}
    mean = {name: p.detach() + 5.0 for name, p in learner.trainable()}
    moments = {key: {k: v.clone() for k, v in weights.items()} for key in checkpoint.MOMENTS}
    gathered = {"weights": weights, **moments}
    progress = Progress(step=1)
    checkpoint.snapshot(learner, gathered=gathered, mean=mean, progress=progress).write(tmp_path)
    name = "audio_adapter.input.bias"
    loaded = dict(models.load_model(str(tmp_path)).named_parameters())
    assert torch.equal(loaded[name], mean[f"save.{name}"])
    kept = load_file(tmp_path / checkpoint.OPTIMIZER)
    assert torch.equal(kept[f"weights/save.{name}"], weights[f"save.{name}"])
    assert torch.equal(kept["mean/heads.sound.bias"], mean["heads.sound.bias"])


def test_training_that_goes_on_changes_nothing_of_a_checkpoint_not_yet_written(
    tmp_path: Path,
) -> None:
    learner = Learner(tiny(), classes=0)
    weights = {name: p.detach().clone() for name, p in learner.trainable()}
    before = {name: value.clone() for name, value in learner.save.state_dict().items()}
    progress = Progress(step=1, history=[{"step": 1.0}])
    moments = {key: {k: v.clone() for k, v in weights.items()} for key in checkpoint.MOMENTS}
    gathered = {"weights": weights, **moments}
    taken = checkpoint.snapshot(learner, gathered=gathered, mean=None, progress=progress)
    progress.history.append({"step": 2.0})
    with torch.no_grad():
        for value in learner.save.state_dict().values():
            value.zero_()
    taken.write(tmp_path)
    written = load_file(tmp_path / saved.WEIGHTS)
    assert all(torch.equal(value, before[name]) for name, value in written.items())
    assert checkpoint.read_progress(tmp_path).history == [{"step": 1.0}]


def test_a_torn_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / checkpoint.STATE).write_text('{"format_version": 2, "step":')
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        checkpoint.read_progress(tmp_path)
