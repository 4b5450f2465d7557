"""What ``ray_cluster.yaml`` promises, as far as Ray's launcher can be asked without a cloud."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.aws.config import _check_ami
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NODES = CLUSTER["available_node_types"]
HOME = "~/save-pipelines"


def prepared() -> dict[str, Any]:
    """With Ray's own defaults for whatever the file leaves open."""
    return prepare_config(copy.deepcopy(CLUSTER))


def test_ray_takes_the_file_on_the_laptop_and_again_on_the_head() -> None:
    validate_config(prepared())
    validate_config(prepare_config(prepared()))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**CLUSTER, "cluster_nam": "x"}))


def test_every_node_starts_ray_with_the_token_that_is_mounted() -> None:
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in prepared()[commands] if "ray start" in line]
        assert starts
        for line in starts:
            before = line.split("ray start")[0].split()
            assert before == ["RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token"]


def test_only_who_can_log_in_to_the_head_reaches_the_dashboard() -> None:
    (start,) = [line for line in CLUSTER["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start


def test_the_image_is_never_the_one_that_ray_chooses() -> None:
    config = prepared()
    _check_ami(config)
    assert {node["node_config"]["ImageId"] for node in config["available_node_types"].values()} == {
        NODES["head"]["node_config"]["ImageId"]
    }


def test_every_node_may_use_the_bucket_and_has_room_for_the_environment() -> None:
    for node in NODES.values():
        assert node["node_config"]["IamInstanceProfile"]
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100


def test_what_the_owner_has_to_set_says_so_where_it_is_missing() -> None:
    # EC2 repeats in its error a name that it does not know.
    node = NODES["head"]["node_config"]
    assert re.match("SET-ImageId-IN-ray_cluster.yaml$|ami-", node["ImageId"])
    profile = node["IamInstanceProfile"]
    assert "SET-" not in str(profile) or profile == {
        "Name": "SET-IamInstanceProfile-IN-ray_cluster.yaml"
    }


@pytest.mark.parametrize(
    ("release", "suits"),
    [
        ('ID=ubuntu\nVERSION_ID="18.04"\nPRETTY_NAME="Ubuntu 18.04.6 LTS"', False),
        ('ID=amzn\nVERSION_ID="2023"\nPRETTY_NAME="Amazon Linux 2023"', False),
        ('ID=ubuntu\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"', True),
        ('ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.5 LTS"', True),
    ],
)
def test_an_image_that_does_not_suit_is_told_in_one_sentence(
    tmp_path: Path, release: str, suits: bool
) -> None:
    (tmp_path / "release").write_text(release)
    command = CLUSTER["setup_commands"][0].replace("/etc/os-release", str(tmp_path / "release"))
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) == suits and not ended.stderr
    assert ("set ImageId to one with Ubuntu 22.04 or later" in ended.stdout) == (not suits)
    assert len(ended.stdout.splitlines()) == (not suits)


def test_python_and_packages_are_pinned_on_every_node() -> None:
    lines = "\n".join(CLUSTER["setup_commands"])
    (python,) = {version for _, version in re.findall(r"python (install|find .*) ([\d.]+)", lines)}
    # Ray compares all three numbers.
    assert python.count(".") == 2 and python in SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"make -C {HOME} setup PYTHON=" in lines
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()
    # Nothing is installed beside those, as Ray's defaults would.
    assert prepared()["head_setup_commands"] == CLUSTER["setup_commands"]
    assert re.fullmatch(r"[\w -]* uv==\d+\.\d+\.\d+\)", *re.findall(r"pip install(.*)", lines))


def test_every_node_gets_what_the_environment_is_made_of_and_no_more() -> None:
    mounts = {
        remote.removeprefix(f"{HOME}/"): local
        for remote, local in CLUSTER["file_mounts"].items()
        if remote.startswith(f"{HOME}/")
    }
    # Ray takes them from the folder that it is called in.
    assert mounts == {name: name for name in mounts}
    project = PROJECT["project"]
    rooms = {package.split(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    told = {project["readme"], *project["license-files"]}
    assert set(mounts) == {"Makefile", "constraints.txt", "pyproject.toml", *told, *rooms}
    assert all((ROOT / name).exists() for name in mounts)


def test_a_shell_can_read_every_command() -> None:
    names = [name for name in CLUSTER if name.endswith("_commands")]
    for command in [command for name in names for command in CLUSTER[name]]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_setting_up_twice_changes_no_line_of_the_shell_twice(tmp_path: Path) -> None:
    (command,) = [line for line in CLUSTER["setup_commands"] if ".bashrc" in line]
    (tmp_path / ".bashrc").write_text("# the image's own\n")
    for _ in range(2):
        subprocess.run(
            ["bash", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, check=True
        )
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert lines[1:] == ["export RAY_AUTH_MODE=token PATH=$HOME/save-pipelines/.venv/bin:$PATH"]


def test_drivers_run_on_the_head_and_tasks_elsewhere() -> None:
    head = NODES[CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert all(node["resources"]["CPU"] > 0 for name, node in NODES.items() if name != "head")
