"""The benchmarks run, in small and untimed; those of the model with nothing installed but what they
say they need.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
# Where ``tests.benchmarks.avsbench`` looks for them.
LABELS = ROOT.parent / "shared" / "labels"
# What this project needs otherwise, by import name.
FOREIGN = [
    "ray",
    "deepspeed",
    "mlflow",
    "torchaudio",
    "safetensors",
    "pyarrow",
    "webdataset",
    "fsspec",
    "s3fs",
    "boto3",
    "av",
    "soundfile",
    "pycocotools",
    "jsonargparse",
    "scipy",
]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder", ["relative difference", "forward, float32", "forward and backward", "ratio"]),
        ("train_step", ["loss of step 2", "training step", "peak memory", "ratio"]),
        ("inference", ["image encoder", "mask decoder", "frames/s", "ratio"]),
    ],
)
def test_benchmarks_need_torch_torchvision_and_segment_anything_only(
    name: str, words: list[str]
) -> None:
    code = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {FOREIGN!r}:
            raise ModuleNotFoundError(f'no {{name}} here', name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ['benchmark', '--smoke', '--pairs', '1', '--batch', '1', '--threads', '1']
runpy.run_module('tests.benchmarks.{name}', run_name='__main__')
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("synthesis", ["files, whole", "decoded here", "through Ray", "two ", "ratio"]),
        ("planning", ["together"]),
        ("resume", ["resume by the markers alone", "ratio to the bare listing"]),
        ("loader", ["ratio"]),
        ("avsbench", ["shard again", "verified"]),
        ("training --only step", ["Ray and DeepSpeed", "waits for data"]),
        ("training --only checkpoint", ["the loop waits", "load"]),
        ("pretraining_claim --arms pretrained --subsets s4", ["pretraining alone", "labels"]),
    ],
)
def test_benchmarks_of_data_and_training_run(told: str, words: list[str]) -> None:
    name, *options = told.split()
    if name == "avsbench" and not LABELS.is_dir():
        pytest.skip("the tables that it builds its tree from are not here")
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--smoke", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
