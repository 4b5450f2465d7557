"""Real parts for integration tests: a local Ray, a Ray head with its jobs API, an S3 server."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra import cluster

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 90.0
_SERVERS = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """A running SeaweedFS; the AWS variables of this process point at it."""

    uri: str
    """``s3://`` and its bucket."""
    endpoint: str


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
    import s3fs

    with _short_folder("sw") as folder, pytest.MonkeyPatch.context() as patch:
        keys = {"AWS_ACCESS_KEY_ID": "saveaccess", "AWS_SECRET_ACCESS_KEY": "savesecret"}
        named = list(zip(_SERVERS, free_ports(len(_SERVERS), grpc_too=True), strict=True))
        options = [
            *(f"-{name}.port={port}" for name, port in named),
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-bucket=save-corpus",
        ]
        command = [str(BIN / "weed"), f"-logdir={folder}", "mini", f"-dir={folder}", *options]
        endpoint = f"http://127.0.0.1:{dict(named)['s3']}"
        env = {**os.environ, **keys, "TMPDIR": str(folder)}
        with process_group(command, env=env, log=folder / "weed.log") as alive:
            reach = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
            for name, value in {**keys, **reach}.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            store = s3fs.S3FileSystem(use_listings_cache=False)
            wait_until(lambda: "save-corpus" in store.ls(""), alive, log=folder / "weed.log")
            yield ObjectStore(uri="s3://save-corpus", endpoint=endpoint)
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def ray_head() -> Iterator[RayHead]:
    """``ray start --head`` with token authentication and the jobs API, on free ports."""
    with _short_folder("rh") as folder:
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


@contextlib.contextmanager
def process_group(
    command: list[str], *, env: dict[str, str], log: Path, cwd: Path | None = None
) -> Iterator[Callable[[], bool]]:
    """A process in a session of its own, ended with all its children at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**env, "OMP_NUM_THREADS": "1"},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield lambda: process.poll() is None
    finally:
        end_session(process.pid)
        process.wait()


def session_members(session: int) -> list[int]:
    """The living processes of a session, by their ids."""
    members = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name)
            state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                members.append(pid)
    return members


def end_session(session: int) -> None:
    """SIGKILL every process of a session that a test started."""
    for _ in range(50):
        members = session_members(session)
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def wait_until(ready: Callable[[], bool], alive: Callable[[], bool], *, log: Path) -> None:
    """Wait for a server; a server that ends or takes too long fails the test with its log."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if ready():
                return
        if not alive():
            break
        time.sleep(0.25)
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def free_ports(count: int, *, grpc_too: bool = False) -> list[int]:
    """Ports that nobody listens on; with ``grpc_too`` those 10000 above are free as well."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(12_000)
        wanted = [port, port + 10_000] if grpc_too else [port]
        if port not in found and all(_is_free(p) for p in wanted):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _short_folder(name: str) -> Iterator[Path]:
    """A temporary folder with a short path: those of unix sockets may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
