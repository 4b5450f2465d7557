"""A SAVE as a graph that runs without this code: torch.export and ONNX, for any batch size.

The graph takes ``image`` ``[B, 3, S, S]`` and ``log_mel`` ``[B, 1, 96, 64]``, float32, prepared as
for ``SAVE.forward``, and gives ``logits`` ``[B, 1, S, S]``. What ``SAVE.forward`` checks of values
is not part of it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from model.save import SAVE
from model.vggish import EXAMPLE_FRAMES, MEL_BANDS

INPUTS = ("image", "log_mel")
OUTPUT = "logits"
ONNX_PACKAGES = ("onnx", "onnxscript")
# Protobuf ends at 2 GiB; weights beyond that go into a file beside the graph.
LARGEST_SINGLE_FILE = 2**31 - 2**26


def export_program(model: SAVE) -> ExportedProgram:
    """The whole model as a ``torch.export`` program with a dynamic batch.

    Raises:
        ValueError: the model is no SAVE, or not float32 throughout.
    """
    if not isinstance(model, SAVE):
        raise ValueError(f"expected a SAVE from build_save, got {type(model).__name__}")
    dtypes = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if dtypes:
        raise ValueError(
            f"expected a float32 model, got {', '.join(sorted(map(str, dtypes)))}: cast it first "
            "with model.float()"
        )
    device = next(model.parameters()).device
    side = model.config.image_size
    # Two samples: a batch of one would be taken for a constant.
    image = torch.zeros(2, 3, side, side, device=device)
    log_mel = torch.zeros(2, 1, EXAMPLE_FRAMES, MEL_BANDS, device=device)
    batch = Dim("batch")
    was_training = model.training
    try:
        with torch.no_grad():
            return torch.export.export(
                model.eval(), (image, log_mel), dynamic_shapes={name: {0: batch} for name in INPUTS}
            )
    finally:
        model.train(was_training)


def export_onnx(model: SAVE, path: str | Path) -> None:
    """Write the whole model as an ONNX file with a dynamic batch.

    Args:
        model: on the CPU or on an accelerator, float32.
        path: ``*.onnx`` in a folder that exists. A model of more than 2 GB gets a second file
            beside it, ``*.onnx.data``.

    Raises:
        ValueError: the model is no SAVE or not float32, or the path does not end in ``.onnx``.
        FileNotFoundError: the path's folder does not exist.
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"expected a path that ends in .onnx, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"export to ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    program = export_program(model)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # Without gradients, as the program was made: attention lays out its result otherwise with them,
    # and the program's views would not fit.
    with torch.no_grad():
        torch.onnx.export(
            program,
            f=path,
            dynamo=True,
            # The runtime folds constants and fuses as it loads; here it costs most of the time.
            optimize=False,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            external_data=size > LARGEST_SINGLE_FILE,
            verbose=False,
        )
