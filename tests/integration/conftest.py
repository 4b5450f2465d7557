"""Real parts for integration tests: a local Ray, a Ray head with its jobs API, an S3 server."""

from __future__ import annotations

import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from infra import cluster
from model import build_save, saved
from tests.integration.servers import (
    BIN,
    START_SECONDS,
    ObjectStore,
    end_session,
    free_ports,
    process_group,
    running_seaweedfs,
    session_members,
    short_folder,
    wait_until,
)

if TYPE_CHECKING:
    from infra.tracking import Tracker

__all__ = [
    "BIN",
    "ROOT",
    "START_SECONDS",
    "ObjectStore",
    "RayHead",
    "end_session",
    "free_ports",
    "process_group",
    "session_members",
    "wait_until",
]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """A Ray head of its own that asks for a token."""

    jobs: str
    """Address of its jobs API."""
    env: dict[str, str]
    """Environment of a client that has the token."""


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A local Ray with two CPUs; this process is its driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster.connect(num_cpus=2)
        yield
        cluster.disconnect()


@pytest.fixture(scope="module")
def seaweedfs() -> Iterator[ObjectStore]:
    """An S3 server on free ports. Ask for it before ``ray_local``: workers inherit the keys."""
    # Of a Ray that was started before, the workers would know no server, or another one.
    cluster.disconnect()
    with running_seaweedfs() as store:
        yield store
        cluster.disconnect()


@pytest.fixture(scope="module")
def ray_head() -> Iterator[RayHead]:
    """``ray start --head`` with token authentication and the jobs API, on free ports."""
    with short_folder("rh") as folder:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        gcs, dashboard, agent, client = free_ports(4)
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env.update(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(token),
            RAY_USAGE_STATS_ENABLED="0",
            PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            PYTHONPATH="",
        )
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"),
            *(f"--port={gcs}", f"--ray-client-server-port={client}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            # Its default is one fixed port, taken where another Ray runs on the machine.
            f"--dashboard-agent-listen-port={agent}",
            *(f"--temp-dir={folder / 's'}", "--disable-usage-stats"),
        ]
        log = folder / "head.log"
        jobs = f"http://127.0.0.1:{dashboard}"
        with process_group(command, env=env, log=log, cwd=folder) as alive:
            wait_until(lambda: _takes_jobs(jobs, env), alive, log=log)
            yield RayHead(jobs=jobs, env=env)


def _takes_jobs(jobs: str, env: dict[str, str]) -> bool:
    """Whether a job can be submitted: the API answers before its agent does."""
    request = urllib.request.Request(
        f"{jobs}/api/jobs/",
        data=b'{"entrypoint": "true"}',
        headers={
            "Authorization": f"Bearer {Path(env['RAY_AUTH_TOKEN_PATH']).read_text()}",
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, saved."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    saved.save(build_save("save_tiny", image_size=64), folder)
    return folder


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One database for all tests of a file: making it is what takes time."""
    # MLflow takes seconds to import, and most tests do without it.
    from infra.tracking import Tracker

    database = tmp_path_factory.mktemp("ml flow") / "runs" / "mlflow.db"
    return Tracker(f"sqlite:///{database}", "tests")
