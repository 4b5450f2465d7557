"""Servers for tests and benchmarks: processes in their own sessions, free ports, an S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
START_SECONDS = 90.0
_SERVERS = ("s3", "master", "volume", "filer", "admin")
KEYS = {"AWS_ACCESS_KEY_ID": "saveaccess", "AWS_SECRET_ACCESS_KEY": "savesecret"}


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """A running SeaweedFS; the AWS variables of this process point at it."""

    uri: str
    """``s3://`` and its bucket."""
    endpoint: str


@contextlib.contextmanager
def aws_variables(values: dict[str, str]) -> Iterator[None]:
    """Set them in this process for a while; S3 connections made before are forgotten."""
    import s3fs

    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def running_seaweedfs() -> Iterator[ObjectStore]:
    """An S3 server on free ports, with one bucket."""
    import s3fs

    with short_folder("sw") as folder:
        named = list(zip(_SERVERS, free_ports(len(_SERVERS), grpc_too=True), strict=True))
        options = [
            *(f"-{name}.port={port}" for name, port in named),
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            # Catalogs of tables, each on a port of its own that two servers could not share.
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-bucket=save-corpus",
        ]
        command = [str(BIN / "weed"), f"-logdir={folder}", "mini", f"-dir={folder}", *options]
        endpoint = f"http://127.0.0.1:{dict(named)['s3']}"
        reach = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
        env = {**os.environ, **KEYS, "TMPDIR": str(folder)}
        log = folder / "weed.log"
        with (
            process_group(command, env=env, log=log) as alive,
            aws_variables({**KEYS, **reach}),
        ):
            store = s3fs.S3FileSystem(use_listings_cache=False)
            wait_until(lambda: "save-corpus" in store.ls(""), alive, log=log)
            yield ObjectStore(uri="s3://save-corpus", endpoint=endpoint)


def uploads_under_way(store: ObjectStore) -> list[str]:
    """Keys of the multipart uploads that were neither completed nor aborted."""
    import boto3

    client = boto3.client("s3", endpoint_url=store.endpoint)
    bucket = store.uri.removeprefix("s3://")
    return [u["Key"] for u in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


@contextlib.contextmanager
def process_group(
    command: list[str], *, env: dict[str, str], log: Path, cwd: Path | None = None
) -> Iterator[Callable[[], bool]]:
    """A process in a session of its own, ended with all its children at the end."""
    with session_of(command, env=env, log=log, cwd=cwd) as process:
        yield lambda: process.poll() is None


@contextlib.contextmanager
def session_of(
    command: list[str], *, env: dict[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The same, as the process itself."""
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
        yield process
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


def children_titled(word: str) -> list[psutil.Process]:
    """Living processes under this one whose title has that word; Ray titles its by their task."""
    found = []
    for process in psutil.Process().children(recursive=True):
        # What has ended since it was listed has no title any more.
        with contextlib.suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


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
    end_of_log = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"the server did not start:\n{end_of_log}")


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
def short_folder(name: str) -> Iterator[Path]:
    """A temporary folder with a short path: those of unix sockets may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# As ``sitecustomize`` it is part of every Python that has its folder on the path. What makes a file
# of a corpus on a disk stand is ``os.replace``.
_SWITCH = """
import json, os, pathlib, re, signal, time

folder = pathlib.Path(__file__).parent
replace = os.replace


def strike(moment, target):
    for number, (when, pattern, whom) in enumerate(json.loads((folder / "plan").read_text())):
        if when != moment or not re.search(pattern, target):
            continue
        try:
            (folder / f"struck-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        while whom == "hold" and not (folder / "go").exists():
            time.sleep(0.05)
        victims = [os.getpid()] if whom != "hold" else []
        if whom == "job":
            victims.insert(0, int((folder / "driver").read_text()))
        if whom == "node":
            victims.insert(0, os.getppid())
        for pid in victims:
            os.kill(pid, signal.SIGKILL)


def replacing(source, target, **how):
    strike("before", str(target))
    replace(source, target, **how)
    strike("after", str(target))


os.replace = replacing
"""


@dataclass(frozen=True, kw_only=True)
class KillSwitch:
    """Kills processes right before or after a file of a corpus on a disk stands."""

    folder: Path
    """Belongs on the PYTHONPATH of whom it concerns."""

    @classmethod
    def install(cls, folder: Path) -> KillSwitch:
        """One that does nothing yet."""
        folder.mkdir(parents=True)
        switch = cls(folder=folder)
        switch.arm()
        (folder / "sitecustomize.py").write_text(_SWITCH)
        return switch

    def arm(self, *plan: tuple[str, str, str]) -> None:
        """Have each strike happen once, the first time that its pattern is met.

        Args:
            plan: ``before`` or ``after``, a pattern of the file's path, and whom it strikes: the
                ``worker`` that writes it, the whole ``job`` (its driver too, see ``watch``) or
                the worker's ``node``; ``hold`` makes the writer wait for ``release``.
        """
        for mark in (*self.folder.glob("struck-*"), self.folder / "go"):
            mark.unlink(missing_ok=True)
        aside = self.folder / "plan.new"
        aside.write_text(json.dumps(plan))
        aside.replace(self.folder / "plan")

    def watch(self, driver: int) -> None:
        """Tell which process is the driver."""
        (self.folder / "driver").write_text(str(driver))

    def release(self) -> None:
        """Let go who is held."""
        (self.folder / "go").touch()

    @property
    def struck(self) -> int:
        """How many strikes of the plan have happened."""
        return len(list(self.folder.glob("struck-*")))
