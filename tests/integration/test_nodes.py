"""A job on a cluster of two nodes, one of which dies in the middle."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import BIN, ROOT
from tests.integration.servers import (
    KillSwitch,
    free_ports,
    process_group,
    short_folder,
    wait_until,
)
from tests.integration.test_kills import (
    MANY,
    MANY_SHARDS,
    PATIENCE,
    contents,
    driver,
    write_tree,
)

pytestmark = pytest.mark.integration


@dataclass(frozen=True, kw_only=True)
class TwoNodes:
    """A head with one CPU, and a second node with two whose workers have the switch."""

    env: dict[str, str]
    """Of a driver."""
    switch: KillSwitch
    second_lives: Callable[[], bool]
    """``ray start --block`` ends when one of its node's own processes does."""


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    with short_folder("rn") as folder, ExitStack() as running:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        reach = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        gcs, client, *agents = free_ports(4)
        kept = {n: value for n, value in os.environ.items() if not n.startswith("RAY_")}
        env = {**kept, **reach, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""}
        switch = KillSwitch.install(folder / "switch")

        def start(
            name: str, agent: int, *options: str, python_path: str = ""
        ) -> Callable[[], bool]:
            log = folder / f"{name}.log"
            command = [
                *(str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1"),
                # The default ranges and this port are the same for both.
                *("--min-worker-port=0", "--max-worker-port=0"),
                *(f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", *options),
            ]
            alive = running.enter_context(
                process_group(command, env={**env, "PYTHONPATH": python_path}, log=log)
            )
            wait_until(lambda: "Ray runtime started" in log.read_text(), alive, log=log)
            return alive

        start(
            *("head", agents[0], "--head", f"--port={gcs}", f"--ray-client-server-port={client}"),
            *("--num-cpus=1", "--include-dashboard=false", f"--temp-dir={folder / 's'}"),
        )
        address = f"127.0.0.1:{gcs}"
        second_lives = start(
            *("second", agents[1], f"--address={address}", "--num-cpus=2"),
            python_path=str(switch.folder),
        )
        yield TwoNodes(
            env={**reach, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
            switch=switch,
            second_lives=second_lives,
        )


def test_a_node_that_dies_in_the_middle_changes_no_byte(nodes: TwoNodes, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "media")

    def made(name: str) -> dict[str, str]:
        uri, log = tmp_path / name, tmp_path / f"{name}.log"
        with driver(tree, uri, log, recipe=MANY, **nodes.env) as process:
            assert process.wait(PATIENCE) == 0, log.read_text()
        summary = json.loads(log.read_text().splitlines()[-1])
        assert summary["shards_made"] == summary["shards"] == MANY_SHARDS
        return contents(uri)

    calm = made("calm")
    # Only the second node has the switch; whichever of these shards it writes first is its last.
    nodes.switch.arm(("after", r"/shards/train-000[3-5]\d\.tar$", "node"))
    assert nodes.second_lives()
    disturbed = made("disturbed")
    assert nodes.switch.struck == 1 and not nodes.second_lives()
    assert disturbed == calm
