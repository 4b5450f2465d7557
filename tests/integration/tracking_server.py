"""A real MLflow server for tests, which can be away, and what it then has of a stage."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from infra.tracking import open_client
from infra.tracking_account import RECORD
from tests.integration.servers import BIN, free_ports, process_group, wait_until


class Server:
    """``mlflow server`` on one port and one database, which can be away for a while."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        self._command = [
            *(str(BIN / "mlflow"), "server", f"--port={port}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
            f"--artifacts-destination={folder}/artifacts",
        ]
        self._running = contextlib.ExitStack()
        self.is_running = False

    def start(self) -> None:
        """Have it run. It needs seconds for that, so most tests find it running."""
        if self.is_running:
            return
        log = self.folder / "server.log"
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        alive = self._running.enter_context(
            process_group(self._command, env=env, log=log, cwd=self.folder)
        )
        health = f"{self.uri}/health"
        wait_until(lambda: urllib.request.urlopen(health).status == 200, alive, log=log)
        self.is_running = True

    def stop(self) -> None:
        """Kill it in whatever it is doing."""
        self._running.close()
        self.is_running = False

    @property
    def client(self) -> MlflowClient:
        return open_client(self.uri)

    def run(self, folder: Path) -> Run:
        """The run of the stage in ``folder``."""
        return self.client.get_run(json.loads((folder / RECORD).read_text())["run_id"])

    def curve(self, folder: Path, key: str) -> list[tuple[int, float]]:
        """Steps and values in the order in which they happened."""
        history = self.client.get_metric_history(self.run(folder).info.run_id, key)
        return [(m.step, m.value) for m in sorted(history, key=lambda m: m.timestamp)]

    def times(self, folder: Path, key: str) -> list[int]:
        """When the points of a curve happened, in milliseconds."""
        history = self.client.get_metric_history(self.run(folder).info.run_id, key)
        return sorted(m.timestamp for m in history)

    def artifacts(self, folder: Path) -> Path:
        """Where the artifacts of the run are."""
        run = self.run(folder).info
        return self.folder / "artifacts" / run.experiment_id / run.run_id / "artifacts"
