"""The model as a graph that runs without this code, for any batch size."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch.export import ExportedProgram

from model import SAVE, build_save, export
from tests.small_sam import relative_error

pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript")


@pytest.fixture(scope="module")
def model() -> SAVE:
    torch.manual_seed(0)
    return build_save("save_tiny", image_size=256, adapter_init="parent").eval()


@pytest.fixture(scope="module")
def program(model: SAVE) -> ExportedProgram:
    return export.export_program(model)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(size)
    return torch.randn(size, 3, 256, 256), torch.randn(size, 1, 96, 64)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
def test_the_exported_program_gives_the_same_masks_at_any_batch(
    model: SAVE, program: ExportedProgram, size: int
) -> None:
    image, log_mel = batch(size)
    assert relative_error(program.module()(image, log_mel), model(image, log_mel)) < 1e-4


@torch.no_grad()
def test_the_onnx_file_gives_the_same_masks_in_onnxruntime_at_any_batch(
    model: SAVE, program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Exported once for all tests here.
    monkeypatch.setattr(export, "export_program", lambda model: program)
    export.export_onnx(model, tmp_path / "save.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["save.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "save.onnx")
    for size in (1, 3):
        image, log_mel = batch(size)
        (logits,) = session.run(["logits"], {"image": image.numpy(), "log_mel": log_mel.numpy()})
        assert relative_error(torch.from_numpy(logits), model(image, log_mel)) < 1e-4


def test_what_cannot_be_exported_is_refused_in_one_sentence(model: SAVE, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.onnx, got .*save\.pt"):
        export.export_onnx(model, tmp_path / "save.pt")
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        export.export_onnx(model, tmp_path / "absent" / "save.onnx")
    with pytest.raises(ValueError, match="expected a SAVE from build_save, got Linear"):
        export.export_onnx(torch.nn.Linear(1, 1), tmp_path / "save.onnx")  # type: ignore[arg-type]
    half = build_save("save_tiny", image_size=32).bfloat16()
    with pytest.raises(ValueError, match=r"float32 model, got torch\.bfloat16: cast it first"):
        export.export_onnx(half, tmp_path / "save.onnx")
    assert not list(tmp_path.iterdir())
