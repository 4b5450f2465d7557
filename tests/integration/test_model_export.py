"""The whole model as a graph that runs without this code, for any batch size."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch.export import ExportedProgram

from model import SAVE, build_save, export
from model import save as save_module
from tests.small_sam import relative_error, small_size, unsettle

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["save_tiny", "save_vit_b"])
def model(request: pytest.FixtureRequest) -> SAVE:
    """At 256 pixels; ViT-B with one windowed and one global block, which are all it is made of."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(save_module.SIZES, "save_vit_b", small_size())
        model = build_save(request.param, adapter_init="parent").eval()
    unsettle(model)
    return model


@pytest.fixture(scope="module")
def program(model: SAVE) -> ExportedProgram:
    return export.export_program(model)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(size)
    return torch.randn(size, 3, 256, 256), torch.randn(size, 1, 96, 64)


@torch.no_grad()
def test_the_exported_program_gives_the_same_masks_at_any_batch(
    model: SAVE, program: ExportedProgram
) -> None:
    for size in (1, 3):
        image, log_mel = batch(size)
        assert relative_error(program.module()(image, log_mel), model(image, log_mel)) < 1e-4


def test_the_onnx_file_gives_the_same_masks_in_onnxruntime_at_any_batch(
    model: SAVE, program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Exported once for both tests.
    monkeypatch.setattr(export, "export_program", lambda model: program)
    export.export_onnx(model, tmp_path / "save.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["save.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "save.onnx")
    for size in (1, 3):
        image, log_mel = batch(size)
        (logits,) = session.run(["logits"], {"image": image.numpy(), "log_mel": log_mel.numpy()})
        expected = model(image, log_mel).detach()
        assert relative_error(torch.from_numpy(logits), expected) < 1e-4
