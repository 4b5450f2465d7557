"""A Ray cluster of several nodes on this machine, each of which can die."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.conftest import BIN, ROOT
from tests.integration.servers import (
    end_session,
    free_ports,
    session_of,
    short_folder,
    wait_until,
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node beside the head."""

    lives: Callable[[], bool]
    """``ray start --block`` ends when one of its node's own processes does."""
    kill: Callable[[], None]
    """SIGKILL its raylet and all of its workers at once."""


class Nodes:
    """A head and the nodes that were started beside it."""

    def __init__(self, folder: Path, running: ExitStack, *, head_cpus: int) -> None:
        self._folder, self._running, self._started = folder, running, 0
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        reach = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        kept = {n: value for n, value in os.environ.items() if not n.startswith("RAY_")}
        self._env = {**kept, **reach, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""}
        gcs, client = free_ports(2)
        self.address = f"127.0.0.1:{gcs}"
        self.driver_env = {**reach, "RAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)}
        """What a driver needs to find the cluster."""
        self._start(
            *("--head", f"--port={gcs}", f"--ray-client-server-port={client}"),
            *(f"--num-cpus={head_cpus}", "--include-dashboard=false"),
            f"--temp-dir={folder / 's'}",
        )

    def start(self, *, cpus: int, python_path: str = "") -> Node:
        """Another node."""
        return self._start(
            f"--address={self.address}", f"--num-cpus={cpus}", python_path=python_path
        )

    def announce_end_of_second(self, *, seconds: int) -> None:
        """Give notice, as a cloud does, that a node beside the head will be taken away."""
        code = "import json, ray; ray.init(log_to_driver=False); print(json.dumps(ray.nodes()))"
        state = subprocess.run(
            [sys.executable, "-c", code],
            env={**self._env, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(state.stdout.splitlines()[-1])
        (node,) = (
            n for n in found if n["Alive"] and "node:__internal_head__" not in n["Resources"]
        )
        subprocess.run(
            [
                *(str(BIN / "ray"), "drain-node", f"--address={self.address}"),
                *(f"--node-id={node['NodeID']}", "--reason=DRAIN_NODE_REASON_PREEMPTION"),
                *("--reason-message=spot", f"--deadline-remaining-seconds={seconds}"),
            ],
            env={**self._env},
            check=True,
        )

    def _start(self, *options: str, python_path: str = "") -> Node:
        self._started += 1
        log = self._folder / f"node-{self._started}.log"
        (agent,) = free_ports(1)
        command = [
            *(str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1"),
            # The default ranges and this port are the same for all of them.
            *("--min-worker-port=0", "--max-worker-port=0"),
            *(f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", *options),
        ]
        session = session_of(command, env={**self._env, "PYTHONPATH": python_path}, log=log)
        process = self._running.enter_context(session)

        def lives() -> bool:
            return process.poll() is None

        wait_until(lambda: "Ray runtime started" in log.read_text(), lives, log=log)
        return Node(lives=lives, kill=lambda: end_session(process.pid))


@contextmanager
def running_nodes(*, head_cpus: int) -> Iterator[Nodes]:
    """A head with so many CPUs; all nodes end with the block."""
    with short_folder("rn") as folder, ExitStack() as running:
        yield Nodes(folder, running, head_cpus=head_cpus)
