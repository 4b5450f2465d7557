"""One run in MLflow that outlives its process and the absence of its server.

Beside what the run tells of lies ``tracking.json``, which names the run, so that whoever goes on
goes on in the same one. What is to be written waits in a ``Backlog``, from which one thread writes
it in order whenever the server can be reached. What is left at the end stays beside the run as
``tracking_backlog.jsonl``, and is written by whoever opens the account again.

Nothing is doubled, although an entry may be written twice: every point carries the time when it
happened, and a point whose step a curve already has is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException, RestException

from infra import storage
from infra.config import canonical_json
from infra.scratch import scratch_folder
from infra.tracking import (
    DEFAULT_EXPERIMENT,
    SETTINGS,
    Run,
    Tracker,
    key_of,
    milliseconds,
    patient_upload,
)
from infra.tracking_backlog import Backlog

logger = logging.getLogger(__name__)

RECORD = "tracking.json"
BACKLOG = "tracking_backlog.jsonl"

FINISHED = "FINISHED"
FAILED = "FAILED"
KILLED = "KILLED"

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
CLOSING_WAIT = 2.0
# Points that are sent at once; an answer that refuses them leads to one at a time.
POINTS_AT_ONCE = 100
# Attempts at a file while the server answers; then its store, not the server, is what fails.
FILE_ATTEMPTS = 5

# By this tag a run is found again whose creation was done and the answer lost.
_TICKET_TAG = "account.ticket"
_REASON_TAG = "reason"
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


class Account:
    """Takes what is to be written without waiting; a thread writes it when it can.

    Files on S3 are kept on this machine while the account is open.
    """

    def __init__(
        self, uri: str, folder: str, *, name: str, on_open: Callable[[Run, Account], None]
    ) -> None:
        """Open the account in ``folder``, or go on with the one that it holds.

        Args:
            uri: of the tracking server, as ``tracking.open_client`` takes it.
            folder: path or URI of the folder that the run tells of.
            name: of the run.
            on_open: called in the account's thread when the run is there, before anything else is
                written, to say what it is; once in each process, and again should that fail.

        Raises:
            OSError: the folder cannot be reached.
        """
        self.uri = uri
        self.folder = folder
        self._name = name
        self._on_open = on_open
        self._record: dict[str, Any] = {}
        self._record = self._read_record()
        self._local = _local_backlog(folder)
        kept = storage.join(folder, BACKLOG)
        if not self._local.exists() and folder.startswith("s3://") and storage.exists(kept):
            storage.download(kept, self._local)
        self._backlog = Backlog(self._local)
        self.finished = self._record["finished"] or any(
            entry["op"] == "end" and entry["status"] == FINISHED for entry in self._backlog
        )
        """Whether everything was said by a process before, though some may wait to be written."""
        self._run: Run | None = None
        self._last: dict[str, int] = {}
        self._at_once = POINTS_AT_ONCE
        self._attempts = 0
        self._away = False
        self._is_sending = False
        self._written_at = 0.0
        self._news = threading.Event()
        self._closing = threading.Event()
        self._closed = False
        self._settings = {k: v for k, v in SETTINGS.items() if k not in os.environ}
        os.environ.update(self._settings)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The run, or None while the server could not be asked for one."""
        return self._record["run_id"]

    def log_point(self, step: int, values: dict[str, float]) -> None:
        """A point of some curves, now. Of each curve the steps must rise; others are left out."""
        self._append({"op": "point", "time": milliseconds(), "step": step, "values": values})

    def log_file(self, name: str, source: str) -> None:
        """The file at the path or URI ``source``, whose name ends as ``name`` does, as artifact."""
        self._append({"op": "file", "name": name, "source": source})

    def log_text(self, name: str, text: str) -> None:
        """A text as an artifact."""
        self._append({"op": "text", "name": name, "text": text})

    def close(
        self, status: str, *, reason: str | None = None, patience: float, at_once: bool = False
    ) -> None:
        """End the run with a status, and wait until all is written.

        Whatever is left is kept when nothing was written for ``patience`` seconds; a file that is
        on its way may take longer. An account that was finished before stays finished.

        Args:
            at_once: wait for ``patience`` seconds and no more.
        """
        if not self.finished:
            entry = {"op": "end", "status": status, "reason": reason, "time": milliseconds()}
            self._append(entry)
        self._closing.set()
        self._news.set()
        try:
            if at_once:
                self._thread.join(patience)
            else:
                self._wait_while_written(patience)
        finally:
            self._closed = True
            for name in self._settings:
                os.environ.pop(name, None)
            self._keep_what_is_left()

    def _wait_while_written(self, patience: float) -> None:
        self._written_at = time.monotonic()
        while self._is_sending or time.monotonic() < self._written_at + patience:
            self._thread.join(min(patience, 0.5))
            if not self._thread.is_alive():
                return

    def _append(self, entry: dict[str, Any]) -> None:
        self._backlog.append(entry)
        self._news.set()

    def _keep_what_is_left(self) -> None:
        kept = storage.join(self.folder, BACKLOG)
        left = self._backlog.close()
        if self.folder.startswith("s3://"):
            if left:
                storage.upload(self._local, kept)
                self._local.unlink()
            else:
                storage.remove(kept)
        if left:
            logger.warning(
                "%s: %d entries could not be written to %s and are kept in %s: "
                "run this again to write them",
                *(self._name, left, self.uri, kept),
            )

    # What follows runs in the account's thread.

    def _work(self) -> None:
        wait = FIRST_WAIT
        while not self._closed:
            self._news.clear()
            entries = self._backlog.take()
            if not entries and (self._run or self.finished):
                if self._closing.is_set():
                    return
                self._news.wait()
                continue
            try:
                run = self._open()
                if entries:
                    self._write(run, entries)
            except Exception as error:
                self._tell_absence(error)
                self._pause(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                wait = FIRST_WAIT
                self._written_at = time.monotonic()
                if self._away:
                    self._away = False
                    logger.info("%s: %s can be reached again", self._name, self.uri)

    def _tell_absence(self, error: Exception) -> None:
        if not self._away and not self._closed:
            self._away = True
            logger.warning(
                "%s: cannot write to %s, which stops nothing and is done later: %s",
                *(self._name, self.uri, " ".join(str(error).split())[:300]),
            )

    def _pause(self, seconds: float) -> None:
        if not self._closing.wait(seconds):
            return
        time.sleep(min(seconds, CLOSING_WAIT))

    def _open(self) -> Run:
        """The run: found again, or made."""
        if self._run is not None:
            return self._run
        tracker = Tracker(self.uri, self._record["experiment"])
        client = tracker.client
        run_id = self._record["run_id"]
        if run_id is not None and not self._is_active(Run(client, run_id)):
            logger.warning(
                "%s: %s does not have the run %s any more: a new one is begun",
                *(self._name, self.uri, run_id),
            )
            run_id = None
            self._write_record(run_id=None, ticket=uuid.uuid4().hex)
        if run_id is None:
            ticket = self._record["ticket"]
            mine = f"tags.`{_TICKET_TAG}` = '{ticket}'"
            found = client.search_runs([tracker.experiment_id], mine) or [
                client.create_run(
                    tracker.experiment_id, run_name=self._name, tags={_TICKET_TAG: ticket}
                )
            ]
            run_id = str(found[0].info.run_id)
        self._write_record(uri=self.uri, run_id=run_id)
        run = Run(client, run_id)
        if not self.finished:
            client.update_run(run_id, status="RUNNING")
            if _REASON_TAG in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, _REASON_TAG)
        self._last = run.last_steps()
        self._on_open(run, self)
        self._run = run
        return run

    def _write(self, run: Run, entries: list[dict[str, Any]]) -> None:
        """Write the first entry, or the points at the beginning together."""
        points = list(takewhile(lambda entry: entry["op"] == "point", entries[: self._at_once]))
        try:
            if points:
                self._write_points(run, points)
            else:
                self._write_one(run, entries[0])
        except Exception as error:
            if not self._is_refusal(error):
                raise
            if not self._is_active(run):
                self._run = None
            elif len(points) > 1:
                self._at_once = 1
            else:
                logger.warning("%s: %s refuses %s: %s", self._name, self.uri, entries[0], error)
                self._backlog.done(1)
                self._at_once = POINTS_AT_ONCE
            return
        self._backlog.done(len(points) or 1)

    def _write_points(self, run: Run, points: list[dict[str, Any]]) -> None:
        fresh = []
        last = dict(self._last)
        for point in points:
            step = int(point["step"])
            values = {
                name: value
                for name, value in point["values"].items()
                if step > last.get(key_of(name), -1)
            }
            last |= {key_of(name): step for name in values}
            fresh.append((int(point["time"]), step, values))
        run.log_points(fresh)
        self._last = last

    def _write_one(self, run: Run, entry: dict[str, Any]) -> None:
        match entry["op"]:
            case "file" | "text":
                self._write_file(run, entry)
            case "end":
                if entry["reason"]:
                    run.set_tags({_REASON_TAG: entry["reason"]})
                run.client.set_terminated(run.id, entry["status"], entry["time"])
                self._write_record(finished=entry["status"] == FINISHED)
            case _:
                logger.warning("%s: a line of %s is damaged", self._name, BACKLOG)

    def _write_file(self, run: Run, entry: dict[str, Any]) -> None:
        folder, _, name = entry["name"].rpartition("/")
        self._is_sending = True
        try:
            with scratch_folder("tracking") as temporary:
                path = temporary / name
                if entry["op"] == "text":
                    path.write_text(entry["text"])
                elif entry["source"].startswith("s3://"):
                    storage.download(entry["source"], path)
                else:
                    path = Path(entry["source"])
                with patient_upload():
                    run.log_file(path, folder or None)
            self._attempts = 0
        except FileNotFoundError:
            logger.warning("%s: %s is gone before it was tracked", self._name, entry["source"])
        except Exception as error:
            # Raises when it is the server that is away: then everything waits. The first answer may
            # be lost with a connection that the upload has broken.
            with suppress(MlflowException):
                run.client.get_run(run.id)
            run.client.get_run(run.id)
            self._attempts += 1
            if self._attempts < FILE_ATTEMPTS:
                raise
            self._attempts = 0
            logger.warning("%s: %s is not taken as artifact: %s", self._name, entry["name"], error)
            self._backlog.keep_first()
        finally:
            self._is_sending = False

    def _is_active(self, run: Run) -> bool:
        """Whether the server still has the run; raises where it does not answer."""
        try:
            found = run.client.get_run(run.id)
        except MlflowException as error:
            if self._is_refusal(error):
                return False
            raise
        return bool(found.info.lifecycle_stage == LifecycleStage.ACTIVE)

    def _is_refusal(self, error: Exception) -> bool:
        """Whether the server itself will not have it, now or later.

        A proxy in front of it may say "not found" as well, but not in MLflow's words.
        """
        kind = RestException if self.uri.startswith("http") else MlflowException
        return isinstance(error, kind) and error.error_code in _REFUSALS

    def _read_record(self) -> dict[str, Any]:
        path = storage.join(self.folder, RECORD)
        try:
            record = json.loads(storage.read_bytes(path))
            assert isinstance(record, dict)
            return record
        except FileNotFoundError:
            pass
        except ValueError:
            logger.warning("%s: %s is damaged: a new run is begun", self._name, path)
        # Written before a run is asked for: whoever comes after a death in between finds it.
        return self._write_record(
            uri=self.uri,
            experiment=DEFAULT_EXPERIMENT,
            run_id=None,
            ticket=uuid.uuid4().hex,
            finished=False,
        )

    def _write_record(self, **changes: Any) -> dict[str, Any]:
        # What is told of it from here on stands in the file already.
        record = {**self._record, **changes}
        storage.write_bytes(storage.join(self.folder, RECORD), canonical_json(record))
        self._record = record
        return record


def _local_backlog(folder: str) -> Path:
    if not folder.startswith("s3://"):
        return Path(folder) / BACKLOG
    name = hashlib.sha256(folder.encode()).hexdigest()[:32]
    return storage.cache_folder() / "tracking" / f"{name}.jsonl"
