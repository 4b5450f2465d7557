"""Registered models: versions, the aliases ``candidate`` and ``champion``, and who was champion.

A version points at the model folder of a run. MLflow itself registers any path that it is told,
so a source is checked here twice: when it is registered and whenever it is resolved.

MLflow keeps no history of aliases. Every promotion is therefore written twice: as tags of the
version, and as an entry (``promotion.00001``) on the registered model.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from infra import storage
from infra.tracking import MODEL_FOLDER, open_client

CANDIDATE = "candidate"
CHAMPION = "champion"
MODEL_FILES = ("save.json", "save.safetensors")

_EVALUATION = "evaluation."
_PROMOTION = "promotion."
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_IN_RUN = re.compile(r"runs:/(?P<run_id>[0-9a-f]{32})/(?P<path>[\w./-]+)")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scored on one split of one corpus."""

    corpus: str
    corpus_sha256: str
    """Of the corpus's manifest: scores on different data are not compared."""
    split: str
    scores: dict[str, float] = field(default_factory=dict)


def evaluation_name(kind: str, split: str) -> str:
    """What an evaluation on a split of a corpus of this kind is called: ``ms3_test``."""
    return f"{kind.removeprefix('avsbench_')}_{split}"


def register(
    client: MlflowClient,
    *,
    name: str,
    run_id: str,
    evaluations: Mapping[str, Evaluation],
) -> int:
    """Register the model folder that was logged in a run, as the candidate; returns the version.

    Args:
        evaluations: what it scored, by a name such as ``s4_test``; the promotion gate reads them.

    Raises:
        ValueError: the name is not allowed, or the run holds no model folder.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no model name: use 1 to 100 letters, digits, '_' and '-'")
    source = f"{_artifact_root(client, run_id)}/{MODEL_FOLDER}"
    folder = _local_or_s3(client, source)
    for file in MODEL_FILES:
        if not storage.exists(storage.join(folder, file)):
            raise ValueError(
                f"run {run_id} holds no model: {MODEL_FOLDER}/{file} is missing; log a model folder"
            )
    tags = {"model_sha256": model_sha256(folder)}
    for what, evaluation in evaluations.items():
        tags[_EVALUATION + what] = json.dumps(asdict(evaluation), sort_keys=True)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(name, source, run_id, tags=tags)
    client.set_registered_model_alias(name, CANDIDATE, str(version.version))
    return int(version.version)


def version_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that has the alias, or None."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def evaluation_of(version: ModelVersion, what: str) -> Evaluation | None:
    """The evaluation saved under this name when the version was registered, or None."""
    text = version.tags.get(_EVALUATION + what)
    if text is None:
        return None
    try:
        return Evaluation(**json.loads(text))
    except (TypeError, ValueError):
        raise ValueError(
            f"the evaluation {what!r} of {version.name} version {version.version} is damaged: "
            "evaluate and register the model again"
        ) from None


def resolve(uri: str, tracking_uri: str | None = None) -> str:
    """The folder of a model: a path or an ``s3://`` URI.

    Args:
        uri: ``models:/name@alias``, ``models:/name/version``, ``runs:/<run id>/model``, or a folder
            (a path, ``file://``, ``s3://``), which is returned as it is.
        tracking_uri: as ``tracking.open_client`` takes it.

    Raises:
        ValueError: the URI has none of these forms, or its version points out of its run.
        FileNotFoundError: there is no such model, alias, version or run.
    """
    if not uri.startswith(("models:", "runs:")):
        return storage.normalise(uri)
    in_run, registered = _IN_RUN.fullmatch(uri), _REGISTERED.fullmatch(uri)
    if in_run is None and registered is None:
        raise ValueError(
            f"{uri!r} names no model: write models:/name@alias, models:/name/version or "
            "runs:/<run id>/model"
        )
    client = open_client(tracking_uri)
    try:
        if in_run is not None:
            run_id = in_run["run_id"]
            source = f"{_artifact_root(client, run_id)}/{in_run['path']}"
        else:
            assert registered is not None
            name = registered["name"]
            if registered["alias"]:
                version = client.get_model_version_by_alias(name, registered["alias"])
            else:
                version = client.get_model_version(name, registered["version"])
            run_id, source = str(version.run_id), str(version.source)
        return folder_of(client, run_id, source)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise FileNotFoundError(
                f"{uri} is not in the registry at {client.tracking_uri}: {error.message}"
            ) from None
        raise


def folder_of(client: MlflowClient, run_id: str, source: str) -> str:
    """The folder behind a version's source: a path or an ``s3://`` URI.

    Raises:
        ValueError: the source does not lie in the artifacts of its run.
    """
    root = _artifact_root(client, run_id)
    inside = source.removeprefix(root + "/")
    if inside == source or any(part in ("", ".", "..") for part in inside.split("/")):
        raise ValueError(
            f"{source} does not lie in the artifacts of run {run_id} ({root}): "
            "register the model from the run that logged it"
        )
    return _local_or_s3(client, source)


def promote(
    client: MlflowClient, name: str, version: ModelVersion, *, gate: Mapping[str, Any]
) -> dict[str, Any]:
    """Make a version the champion; returns the entry that history keeps.

    The alias moves last: whatever dies before has promoted nothing. A second attempt then adds an
    entry of its own, since entries are never changed.

    Args:
        gate: what was compared, for the record.
    """
    champion = version_of(client, name, CHAMPION)
    entry = {
        "version": int(version.version),
        "previous_champion": int(champion.version) if champion else None,
        "promoted_by": getpass.getuser(),
        "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "gate": dict(gate),
    }
    number = len(history(client, name)) + 1
    for key, value in entry.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        client.set_model_version_tag(name, version.version, key, text)
    client.set_registered_model_tag(
        name, f"{_PROMOTION}{number:05d}", json.dumps(entry, sort_keys=True)
    )
    client.set_registered_model_alias(name, CHAMPION, version.version)
    return entry


def history(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """Every promotion, oldest first: version, previous champion, who, when, and the gate."""
    tags = client.get_registered_model(name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(_PROMOTION)]


def model_sha256(folder: str) -> str:
    """sha256 (hex) over the files of a model folder.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    digest = hashlib.sha256()
    for name in MODEL_FILES:
        fs, path = storage.filesystem(storage.join(folder, name))
        with fs.open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _artifact_root(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.artifact_uri).rstrip("/")


def _local_or_s3(client: MlflowClient, source: str) -> str:
    """Artifacts that only the tracking server can reach are copied into the cache."""
    if source.startswith(("file://", "s3://", "/")):
        return storage.normalise(source)
    name = hashlib.sha256(f"{client.tracking_uri} {source}".encode()).hexdigest()[:32]
    target = storage.cache_folder() / "models" / name
    target.mkdir(parents=True, exist_ok=True)
    return str(
        mlflow.artifacts.download_artifacts(
            artifact_uri=source, dst_path=str(target), tracking_uri=client.tracking_uri
        )
    )
