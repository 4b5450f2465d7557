"""``ray_cluster.yaml`` is what Ray's launcher takes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

CLUSTER = yaml.safe_load((Path(__file__).parents[2] / "ray_cluster.yaml").read_text())


def ray_schema() -> dict:
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def test_the_cluster_file_fits_the_schema_of_ray() -> None:
    jsonschema.validate(CLUSTER, ray_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**CLUSTER, "cluster_nam": "x"}, ray_schema())


def test_every_node_starts_ray_with_tokens_on() -> None:
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in CLUSTER[commands] if "ray start" in line]
        assert starts and all("RAY_AUTH_MODE=token" in line for line in starts)


def test_the_head_node_is_one_of_the_node_types() -> None:
    assert CLUSTER["head_node_type"] in CLUSTER["available_node_types"]
