"""What is no model to export, or no place to export it to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import build_save, export


def test_what_cannot_be_exported_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ONNX_PACKAGES", ())
    model = build_save("save_tiny", image_size=32)
    with pytest.raises(ValueError, match=r"ends in \.onnx, got .*save\.pt"):
        export.export_onnx(model, tmp_path / "save.pt")
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        export.export_onnx(model, tmp_path / "absent" / "save.onnx")
    with pytest.raises(ValueError, match="expected a SAVE from build_save, got Linear"):
        export.export_onnx(torch.nn.Linear(1, 1), tmp_path / "save.onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"float32 model, got torch\.bfloat16: cast it first"):
        export.export_onnx(model.bfloat16(), tmp_path / "save.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("torch", "no_such_package"))
    model = build_save("save_tiny", image_size=32)
    with pytest.raises(ModuleNotFoundError, match="pip install no_such_package"):
        export.export_onnx(model, tmp_path / "save.onnx")
