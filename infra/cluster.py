"""Where jobs run: the Ray cluster that is named, or one of their own on this machine.

``connect`` takes the cluster that ``RAY_ADDRESS`` names, which is also what ``ray job submit``
sets for the jobs that it starts, and otherwise starts a local Ray that lives as long as the
process. It never joins a cluster merely because one happens to run on the same machine.

Token authentication is on: whoever reaches a Ray cluster can run anything there. A local cluster
gets a token of its own in a temporary folder. For a cluster that is named, Ray's own variables
hold (``RAY_AUTH_MODE=token`` with ``RAY_AUTH_TOKEN_PATH`` or ``RAY_AUTH_TOKEN``).
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
"""The folder that holds the rooms: the checkout, an unpacked job package or site-packages."""

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_LOCAL_WORKERS = 2
_QUIET_LOGGERS = ("ray._private.authentication", "ray.train", "ray.data")
# What the workers need of the driver's surroundings when they live on other machines.
_CARRIED_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "SAVE_CACHE",
    "SAVE_CACHE_BYTES",
)
_QUIET = {
    # Off: usage reports to the outside, a notice about GPUs, and coloured prefixes.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
}


def connect(*, num_cpus: int | None = None) -> None:
    """Connect to the named cluster or start a local one; a second call does nothing.

    What workers print stays in Ray's log files unless ``RAY_LOG_TO_DRIVER`` is 1.

    Args:
        num_cpus: CPUs that a local cluster offers; by default those of the machine, and at
            least two, so that two workers can always be placed.

    Raises:
        ConnectionError: ``RAY_ADDRESS`` names a cluster that does not answer.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_AUTH_TOKEN_PATH") or os.environ.get("RAY_AUTH_TOKEN"):
        # Ray reads this when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        return
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        _join(os.environ["RAY_ADDRESS"])
    else:
        _start(num_cpus or max(_LOCAL_WORKERS, os.cpu_count() or 1))


def job_name(what: str) -> str:
    """What people call this job: as it was submitted, or by its process."""
    return os.environ.get("RAY_JOB_SUBMISSION_ID") or f"{what}, process {os.getpid()}"


def disconnect() -> None:
    """Leave the cluster; a local one ends. Never ``ray stop``, which ends everyone's Ray."""
    import ray

    ray.shutdown()


def works_here_alone() -> bool:
    """Whether all tasks would now run on this machine, so that they see the files on it.

    What tells machines apart is their address: a machine may run several of a cluster's nodes.
    """
    import ray

    if not ray.is_initialized():
        return True
    nodes = [node for node in ray.nodes() if node["Alive"]]
    this = ray.get_runtime_context().get_node_id()
    here = {node["NodeManagerAddress"] for node in nodes if node["NodeID"] == this}
    return {node["NodeManagerAddress"] for node in nodes if node["Resources"].get("CPU")} == here


def _join(address: str) -> None:
    import ray

    # A job brings its environment along; a driver of its own has to send code and keys.
    in_job = _JOB_VARIABLE in os.environ
    runtime_env: dict[str, object] | None = None
    if not in_job:
        carried = {name: os.environ[name] for name in _CARRIED_VARIABLES if name in os.environ}
        runtime_env = {"env_vars": carried}
        if (CHECKOUT / "pyproject.toml").is_file():
            runtime_env["working_dir"] = str(CHECKOUT)
            runtime_env["excludes"] = ["/.git/", "/runs/", "/.venv/"]
    try:
        ray.init(
            address=address,
            runtime_env=runtime_env,
            **_quiet(),
        )
    except ConnectionError:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: start one, set RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN_PATH if it asks for a token, or unset RAY_ADDRESS to run on this "
            "machine alone"
        ) from None


def _start(num_cpus: int) -> None:
    import ray

    if "RAY_AUTH_TOKEN_PATH" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ:
        # Otherwise Ray would write one to the home folder and leave it there. One for the whole
        # process, because Ray reads it only once.
        folder = tempfile.mkdtemp(prefix="save-ray-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    # Workers of a local cluster inherit this environment. Setting the path here and not in a
    # runtime environment lets Ray use workers that it has started ahead.
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if str(CHECKOUT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *paths])
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            # Costs seconds and memory, and a local cluster ends with its job anyway.
            include_dashboard=False,
            **_quiet(),
        )
    except Exception as error:
        # Ray gives its own parts 30 seconds to start, and raises a plain Exception after that.
        raise ConnectionError(
            f"Ray did not start on this machine ({error}): it may be too busy; try again, or name "
            "a running cluster with RAY_ADDRESS"
        ) from error


def _quiet() -> dict[str, Any]:
    return {
        "configure_logging": False,
        "logging_level": logging.WARNING,
        "log_to_driver": os.environ.get("RAY_LOG_TO_DRIVER", "0") == "1",
    }
