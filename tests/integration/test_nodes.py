"""A job on a cluster whose nodes die."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.servers import KillSwitch
from tests.integration.test_kills import (
    MANY,
    MANY_SHARDS,
    PATIENCE,
    contents,
    driver,
    write_tree,
)
from tests.integration.two_nodes import running_nodes

pytestmark = pytest.mark.integration


# Where a shard can be left: without anything, with its tar, with its index too, whole but untold.
STRIKES = (("before", "tar"), ("after", "tar"), ("after", "parquet"), ("after", "json"))


def test_nodes_that_die_at_each_commit_of_a_shard_change_no_byte(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "media")
    switches = [KillSwitch.install(tmp_path / f"{moment}-{file}") for moment, file in STRIKES]
    with running_nodes(head_cpus=1) as nodes:

        def made(name: str) -> dict[str, str]:
            uri, log = tmp_path / name, tmp_path / f"{name}.log"
            with driver(tree, uri, log, recipe=MANY, **nodes.driver_env) as process:
                assert process.wait(PATIENCE) == 0, log.read_text()
            # Ray adds what a dead node's raylet wrote last.
            (line,) = [line for line in log.read_text().splitlines() if line.startswith("{")]
            summary = json.loads(line)
            assert summary["shards_made"] == summary["shards"] == MANY_SHARDS
            return contents(uri)

        calm = made("calm")
        others = []
        for switch, (moment, file) in zip(switches, STRIKES, strict=True):
            # Only this node has the switch: whichever shard it writes first is its last.
            switch.arm((moment, rf"/shards/[a-z]+-\d+\.{file}$", "node"))
            others.append(nodes.start(cpus=1, python_path=str(switch.folder)))
        assert all(node.lives() for node in others)
        disturbed = made("disturbed")
        assert [switch.struck for switch in switches] == [1] * len(STRIKES)
        assert not any(node.lives() for node in others)
        assert disturbed == calm
