"""Runs in MLflow, written from one place: the driver.

Workers never write here: sqlite does not take many writers, and a parameter is written once.
A run holds the resolved configuration (as parameters and as ``config.yaml``), the corpora it read
(by the digest of their manifests), curves, scores, pictures and the model's folder.

Nothing here touches MLflow's global state (active run, tracking URI); every call names its run.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from infra.corpus import Corpus

DEFAULT_URI = "sqlite:///runs/mlflow.db"
DEFAULT_EXPERIMENT = "save"
MODEL_FOLDER = "model"
CONFIG_FILE = "config.yaml"

# Limits of the tracking server (mlflow.utils.validation of 3.17).
LONGEST_KEY = 250
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
PARAMS_IN_A_BATCH = 100
METRICS_IN_A_BATCH = 1000
DIGEST_LENGTH = 32

_NOT_IN_KEYS = re.compile(r"[^\w .:/-]")


def open_client(uri: str | None = None) -> MlflowClient:
    """A client of the tracking server.

    Args:
        uri: ``sqlite:///path``, ``http://`` or ``https://``; ``$MLFLOW_TRACKING_URI``, or
            ``sqlite:///runs/mlflow.db`` below the working folder, when None.

    Raises:
        ValueError: the URI is none of these.
    """
    uri = absolute(uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
    database = _database(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def absolute(uri: str) -> str:
    """The URI of a tracking server in a form that means the same in every process.

    Raises:
        ValueError: it is neither ``sqlite:///path`` nor ``http://`` nor ``https://``.
    """
    database = _database(uri)
    if database is not None:
        return f"sqlite:///{database}"
    if uri.startswith(("http://", "https://")):
        return uri
    raise ValueError(
        f"{uri!r} is no tracking URI this can use: give sqlite:///path, http:// or https://"
    )


def _database(uri: str) -> Path | None:
    """The file of a sqlite URI, absolute, so that it means the same in every process."""
    if not uri.startswith("sqlite:///") or uri == "sqlite:///":
        return None
    return Path(uri.removeprefix("sqlite:///")).expanduser().absolute()


_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# Seconds without a word from the server while a file is sent.
_UPLOAD_TIMEOUT = "300"

# What an account that must not wait asks of MLflow, which takes it from the environment alone.
SETTINGS = {
    # Its own are 7 retries, minutes apart in the end, of up to 120 s each: the waiting is done
    # here, where it can be cut short.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    _TIMEOUT: "30",
    # Standard output is for the summary.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Tracker:
    """One experiment on a tracking server."""

    def __init__(self, uri: str | None = None, experiment: str = DEFAULT_EXPERIMENT) -> None:
        """Open the experiment, or make it.

        On sqlite the artifacts lie in ``artifacts`` beside the database; a server decides itself.
        """
        self.client = open_client(uri)
        self.uri = str(self.client.tracking_uri)
        found = self.client.get_experiment_by_name(experiment)
        if found is not None:
            self.experiment_id = str(found.experiment_id)
            return
        database = _database(self.uri)
        location = str(database.parent / "artifacts") if database else None
        self.experiment_id = self.client.create_experiment(experiment, artifact_location=location)

    @contextmanager
    def run(self, name: str) -> Iterator[Run]:
        """A run that ends with the block: FINISHED, or FAILED when the block raises."""
        run_id = self.client.create_run(self.experiment_id, run_name=name).info.run_id
        status = "FAILED"
        try:
            yield Run(self.client, run_id)
            status = "FINISHED"
        finally:
            self.client.set_terminated(run_id, status)


class Run:
    """What can be written to one run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id

    def put_under(self, parent: Run) -> None:
        """Show this run below another one of the same experiment."""
        self.set_tags({"mlflow.parentRunId": parent.id})

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The resolved configuration, flattened into parameters, and whole as ``config.yaml``."""
        self.log_params(config)
        self.client.log_dict(self.id, dict(config), CONFIG_FILE)

    def log_params(self, config: Mapping[str, Any]) -> None:
        """The resolved configuration, flattened into parameters.

        Parameters cannot be changed once written. When a resumed run differs from what it was
        started with, the new value becomes the tag ``resumed.<key>``.
        """
        written = self.client.get_run(self.id).data.params
        params = {key_of(key): _cut(value, LONGEST_PARAM) for key, value in flatten(config).items()}
        fresh = [Param(key, value) for key, value in params.items() if key not in written]
        for batch in _chunks(fresh, PARAMS_IN_A_BATCH):
            self.client.log_batch(self.id, params=batch)
        changed = {
            f"resumed.{key}": value
            for key, value in params.items()
            if written.get(key, value) != value
        }
        self.set_tags(changed)

    def log_corpus(self, corpus: Corpus, *, name: str, context: str) -> None:
        """Note that the run read a corpus; its digest is the sha256 of its manifest, shortened.

        Args:
            name: what people call the corpus.
            context: what it was read for, such as ``train`` or ``test``.
        """
        dataset = Dataset(
            name=name,
            digest=corpus.sha256[:DIGEST_LENGTH],
            source_type="corpus",
            source=json.dumps({"uri": corpus.uri}),
            profile=json.dumps(
                {"manifest_sha256": corpus.sha256, "splits": corpus.manifest["splits"]}
            ),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.id, [DatasetInput(dataset, tags)])

    def log_curves(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Many points of many curves at once: ``(step, {name: value})``."""
        now = milliseconds()
        self.log_points((now, step, values) for step, values in points)

    def log_points(self, points: Iterable[tuple[int, int, Mapping[str, float]]]) -> None:
        """Points with the time of each: ``(milliseconds, step, {name: value})``.

        A point that is written again with the same time changes nothing.
        """
        metrics = [
            Metric(key_of(name), float(value), when, step)
            for when, step, values in points
            for name, value in values.items()
        ]
        for batch in _chunks(metrics, METRICS_IN_A_BATCH):
            self.client.log_batch(self.id, metrics=batch, synchronous=True)

    def log_scores(self, scores: Mapping[str, Any]) -> None:
        """Nested numbers as metrics, ``{"s4_test": {"m_j": 0.5}}`` as ``s4_test.m_j``."""
        self.log_curves([(0, numbers(scores))])

    def last_steps(self) -> dict[str, int]:
        """The last step of each curve that the server has."""
        return {m.key: m.step for m in self.client.get_run(self.id).data.to_proto().metrics}

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """A file as an artifact, in ``folder`` of the run's artifacts."""
        self.client.log_artifact(self.id, str(path), folder)

    def log_model(self, folder: Path) -> None:
        """A model folder as the run's ``model``, which ``registry.register`` can register."""
        self.client.log_artifacts(self.id, str(folder), MODEL_FOLDER)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run; longer values than the server takes are cut."""
        entries = [RunTag(key_of(key), _cut(value, LONGEST_TAG)) for key, value in tags.items()]
        for batch in _chunks(entries, PARAMS_IN_A_BATCH):
            self.client.log_batch(self.id, tags=batch)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among nested values, flattened."""
    return {
        key: float(value)
        for key, value in flatten(values).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def milliseconds() -> int:
    """Now, as the tracking server counts time."""
    return time.time_ns() // 1_000_000


def key_of(name: str) -> str:
    """The name as the tracking server takes it."""
    return _NOT_IN_KEYS.sub("_", name)[:LONGEST_KEY]


def _cut(value: Any, longest: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    mark = " ... (cut)"
    return text if len(text) <= longest else text[: longest - len(mark)] + mark


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])


@contextmanager
def patient_upload() -> Iterator[None]:
    """More time than ``SETTINGS`` give, in which a server brings a file to its own store."""
    is_ours = os.environ.get(_TIMEOUT) == SETTINGS[_TIMEOUT]
    if is_ours:
        os.environ[_TIMEOUT] = _UPLOAD_TIMEOUT
    try:
        yield
    finally:
        # An account that was closed meanwhile has taken its settings back.
        if is_ours and _TIMEOUT in os.environ:
            os.environ[_TIMEOUT] = SETTINGS[_TIMEOUT]
