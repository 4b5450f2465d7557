"""What a stage comes from, as tags of its run: the corpus, and the parent with the run it is of."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping

from infra import storage
from infra.corpus import Corpus
from infra.tracking import open_client
from infra.tracking_account import RECORD
from model import saved
from training import models
from training.recipe import TrainConfig

logger = logging.getLogger("training")

_CHECKPOINT = re.compile(r"(?P<folder>.*/(?P<stage>[^/]+))/checkpoints/step-\d+")
_IN_RUN = re.compile(r"runs:/(?P<run_id>[0-9a-f]{32})/.+")


def lineage(config: TrainConfig, corpus: Corpus, known: Mapping[str, str]) -> dict[str, str]:
    """``stage``, ``corpus.uri``, ``corpus.sha256``, and where there is a parent ``parent.uri``,
    ``parent.sha256`` (of its weights), ``parent.run_id`` and ``parent.stage`` as far as they are
    known. What cannot be found out is left out with a word.

    Args:
        config: its ``parent`` is a checkpoint ``<output>/<stage>/checkpoints/step-...``,
            ``runs:/id/model``, ``models:/name@alias``, ``models:/name/version``, or any folder.
        known: tags that the run has already. An alias may have moved since the stage was begun, so
            a parent that was found out then stays.
    """
    tags = {"stage": config.stage, "corpus.uri": corpus.uri, "corpus.sha256": corpus.sha256}
    if config.parent is None or "parent.sha256" in known:
        return tags
    tags["parent.uri"] = config.parent
    for find in (_weights, _run):
        try:
            tags |= find(config.parent, config.tracking)
        except Exception as error:
            logger.warning("%s: the parent %s: %s", config.stage, config.parent, error)
    return tags


def _weights(uri: str, tracking: str | None) -> dict[str, str]:
    fs, path = storage.filesystem(storage.join(models.resolve(uri, tracking), saved.WEIGHTS))
    with fs.open(path, "rb") as file:
        return {"parent.sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _run(uri: str, tracking: str | None) -> dict[str, str]:
    checkpoint = _CHECKPOINT.fullmatch(uri.rstrip("/"))
    if checkpoint is not None:
        return _run_of_checkpoint(checkpoint["folder"], checkpoint["stage"])
    run_id = _run_id(uri, tracking)
    if run_id is None:
        return {}
    stage = open_client(tracking).get_run(run_id).data.tags.get("stage")
    return {"parent.run_id": run_id, **({"parent.stage": stage} if stage else {})}


def _run_of_checkpoint(folder: str, stage: str) -> dict[str, str]:
    """A stage that was never tracked has no run."""
    tags = {"parent.stage": stage}
    record = storage.join(folder, RECORD)
    if storage.exists(record):
        run_id = json.loads(storage.read_bytes(record))["run_id"]
        tags |= {"parent.run_id": run_id} if run_id else {}
    return tags


def _run_id(uri: str, tracking: str | None) -> str | None:
    in_run = _IN_RUN.fullmatch(uri)
    if in_run is not None:
        return in_run["run_id"]
    if not uri.startswith("models:/"):
        return None
    client = open_client(tracking)
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if at:
        return str(client.get_model_version_by_alias(name, alias).run_id)
    name, _, version = name.partition("/")
    return str(client.get_model_version(name, version).run_id)
