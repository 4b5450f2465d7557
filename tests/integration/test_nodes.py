"""A job on a cluster of two nodes, one of which dies in the middle."""

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


def test_a_node_that_dies_in_the_middle_changes_no_byte(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "media")
    switch = KillSwitch.install(tmp_path / "switch")
    with running_nodes(head_cpus=1) as nodes:
        second = nodes.start(cpus=2, python_path=str(switch.folder))

        def made(name: str) -> dict[str, str]:
            uri, log = tmp_path / name, tmp_path / f"{name}.log"
            with driver(tree, uri, log, recipe=MANY, **nodes.driver_env) as process:
                assert process.wait(PATIENCE) == 0, log.read_text()
            summary = json.loads(log.read_text().splitlines()[-1])
            assert summary["shards_made"] == summary["shards"] == MANY_SHARDS
            return contents(uri)

        calm = made("calm")
        # Only the second node has the switch; whichever of these shards it writes first is its
        # last.
        switch.arm(("after", r"/shards/train-000[3-5]\d\.tar$", "node"))
        assert second.lives()
        disturbed = made("disturbed")
        assert switch.struck == 1 and not second.lives()
        assert disturbed == calm
