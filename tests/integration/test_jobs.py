"""Jobs as a cluster runs them: submitted to a Ray head that asks for a token."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from infra.corpus import Corpus
from tests.integration.conftest import BIN, ROOT, RayHead
from tests.made_corpus import write_made_corpus
from tests.made_media import write_made_media

pytestmark = pytest.mark.integration

SMALL = (
    "--corpus.classes=[bell,drum,horn,siren]",
    "--corpus.backgrounds=[]",
    "--corpus.image_size=64",
    '--corpus.samples={"train":4,"val":2,"test":2,"unseen":2}',
    "--corpus.samples_per_shard=4",
)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_made_media(tmp_path_factory.mktemp("media"))


def submit(
    head: RayHead, *entrypoint: str, env: dict[str, str] | None = None, carry: bool = True
) -> subprocess.CompletedProcess[str]:
    """``ray job submit``; with ``carry`` the checkout travels along as the working directory."""
    where = ("--working-dir", ".") if carry else ()
    return subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--address", head.jobs, *where, "--", *entrypoint],
        cwd=ROOT if carry else "/",
        env={**(head.env if env is None else env), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def summary_of(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The summary, which is the last line of the job that is JSON: the client adds its own."""
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    summary = json.loads(lines[-1])
    assert isinstance(summary, dict)
    return summary


def test_a_job_without_the_token_is_refused(ray_head: RayHead) -> None:
    for headers in ({}, {"Authorization": f"Bearer {'0' * 64}"}):
        request = urllib.request.Request(
            f"{ray_head.jobs}/api/jobs/", data=b'{"entrypoint": "true"}', headers=headers
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code in (401, 403)
    kept = {n: v for n, v in ray_head.env.items() if not n.startswith("RAY_AUTH")}
    ended = submit(ray_head, "true", env={**kept, "RAY_AUTH_MODE": "disabled"}, carry=False)
    assert ended.returncode != 0
    assert "authentication is enabled" in ended.stdout + ended.stderr


def test_the_working_directory_carries_the_code_and_nothing_else(ray_head: RayHead) -> None:
    ignored = ROOT / "runs" / "test-of-what-travels"
    ignored.mkdir(parents=True, exist_ok=True)
    (ignored / "large.bin").write_bytes(b"x")
    try:
        ended = submit(ray_head, "find", ".", "-mindepth", "1", "-maxdepth", "3")
    finally:
        (ignored / "large.bin").unlink()
        ignored.rmdir()
    assert ended.returncode == 0, ended.stderr
    carried = {line[2:] for line in ended.stdout.splitlines() if line.startswith("./")}
    assert {"infra/corpus.py", "pipelines/recipes/synthesize.yaml", "synth/page.html"} <= carried
    tops = {path.split("/")[0] for path in carried}
    for name in (".git", ".venv", "runs", ".mypy_cache", ".ruff_cache"):
        assert name not in tops
    assert not [path for path in carried if "__pycache__" in path]


@pytest.mark.parametrize("carry", [True, False], ids=["working-dir", "installed"])
def test_synthesis_runs_as_a_submitted_job(
    ray_head: RayHead, media: str, tmp_path: Path, carry: bool
) -> None:
    where = ["pipelines/synthesize.py"] if carry else ["-m", "pipelines.synthesize"]
    flags = [f"--uri={tmp_path / 'corpus'}", f"--media.folder={media}", *SMALL]
    ended = submit(ray_head, sys.executable, *where, *flags, carry=carry)
    summary = summary_of(ended)
    assert summary["samples"] == 10
    assert summary["manifest_sha256"] == Corpus.open(str(tmp_path / "corpus")).sha256


@pytest.mark.parametrize("carry", [True, False], ids=["working-dir", "installed"])
def test_training_runs_as_a_submitted_job(ray_head: RayHead, tmp_path: Path, carry: bool) -> None:
    write_made_corpus(str(tmp_path / "corpus"), samples={"train": 8, "val": 4})
    where = ["training/pretrain.py"] if carry else ["-m", "training.pretrain"]
    flags = [
        f"--corpus={tmp_path / 'corpus'}",
        f"--output={tmp_path / 'runs'}",
        "--model.image_size=64",
        "--batch=4",
        "--steps=2",
        "--validate_every=2",
        f"--workers.count={2 if carry else 1}",
    ]
    summary = summary_of(submit(ray_head, sys.executable, *where, *flags, carry=carry))
    assert summary["steps"] == 2
    assert Path(summary["checkpoint"]).is_dir()


def test_a_job_that_fails_says_why_and_fails(ray_head: RayHead) -> None:
    ended = submit(
        ray_head, sys.executable, "-m", "pipelines.synthesize", "--uri=gs://bucket/x", carry=False
    )
    assert ended.returncode != 0
    assert "error: 'gs://bucket/x' is no URI this can read" in ended.stdout + ended.stderr
