"""A stage's accounts: its run in MLflow, written here in the driver alone, and files beside it.

Nothing here is waited for while a stage trains, and nothing that fails here stops it: what goes to
MLflow waits in an ``Account``, files are written by a thread.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from infra import storage
from infra.config import canonical_json, to_dict
from infra.corpus import Corpus
from model import saved
from training.recipe import TrainConfig

if TYPE_CHECKING:
    from infra.tracking import Run
    from infra.tracking_account import Account

logger = logging.getLogger("training")

# Seconds that are waited for a tracking server at the end of a stage while nothing is written.
PATIENCE = 60.0
# Who asks a process to end kills it soon after.
PATIENCE_WHEN_KILLED = 10.0
# Bytes of files that may wait while storage is slow; more are let go with a word.
MOST_WAITING_BYTES = 256 << 20

Point = dict[str, float]


class Report:
    """What a stage tells of itself. Nothing here waits or raises, from whichever thread."""

    def __init__(self, folder: str, account: Account | None) -> None:
        self._folder = folder
        self._account = account
        self._files = ThreadPoolExecutor(1, thread_name_prefix="report-files")
        self._lock = threading.Lock()
        self._waiting_bytes = 0

    @property
    def run_id(self) -> str | None:
        """The run in MLflow; None without tracking, and until the server was first reached."""
        return None if self._account is None else self._account.run_id

    def point(self, point: Point) -> None:
        """A point of the curves with its ``step``; one that was told before is left out."""
        if self._account is None or self._account.finished:
            return
        values = {name: float(value) for name, value in point.items() if name != "step"}
        with _only_logged("a point of the curves"):
            self._account.log_point(int(point["step"]), values)

    def file(self, name: str, data: bytes) -> None:
        """A file of the stage's folder, such as ``overlays/step-00000100.jpg``."""
        with self._lock:
            if self._waiting_bytes + len(data) > MOST_WAITING_BYTES:
                logger.warning("%s is not written: storage is too slow", name)
                return
            self._waiting_bytes += len(data)
        with _only_logged(name):
            self._files.submit(self._write_file, name, data)

    def finish(self, summary: dict[str, Any]) -> None:
        """The scores of a stage that is trained, and its model: the folder ``checkpoint``."""
        if self._account is None or self._account.finished:
            return
        from infra.tracking import MODEL_FOLDER, numbers

        # Whatever curves the server has not seen, should the backlog have died with its machine.
        for point in summary.get("history", ()):
            self.point(point)
        told = {key: value for key, value in summary.items() if key != "history"}
        with _only_logged("the summary"):
            self._account.log_point(int(summary.get("steps", 0)), numbers({"summary": told}))
            for name in (saved.CONFIG, saved.WEIGHTS):
                source = storage.join(summary["checkpoint"], name)
                self._account.log_file(f"{MODEL_FOLDER}/{name}", source)

    def _write_file(self, name: str, data: bytes) -> None:
        with _only_logged(name):
            path = storage.join(self._folder, name)
            storage.write_bytes(path, data)
            if self._account is not None:
                self._account.log_file(name, path)
        with self._lock:
            self._waiting_bytes -= len(data)

    def _close(self, status: str, reason: str | None, patience: float) -> None:
        self._files.shutdown(cancel_futures=status == "KILLED")
        if self._account is not None:
            with _only_logged("the end of the run"):
                self._account.close(
                    status, reason=reason, patience=patience, at_once=status == "KILLED"
                )


@contextmanager
def reporting(
    config: TrainConfig, corpus: Corpus, folder: str, tracking: str | None
) -> Iterator[Report]:
    """The accounts of a stage while it is run, in this call or in one that goes on with it.

    The run ends FINISHED with the block, FAILED with a ``reason`` when the block raises, and KILLED
    when the process is asked to end. A process that is killed leaves it RUNNING, and the next one
    goes on in it.

    Args:
        config: as a person gave it, so that the parent has the name by which it was chosen.
        folder: ``<output>/<stage>``, a path or ``s3://`` URI.
        tracking: URI of the tracking server, or None to write files alone.

    Raises:
        ValueError: ``tracking`` is no such URI.
        OSError: the folder cannot be reached.
    """
    report = Report(folder, None if tracking is None else _open(config, corpus, folder, tracking))
    status, reason, patience = "FINISHED", None, PATIENCE
    try:
        with _ending_by_exception():
            yield report
    except BaseException as error:
        asked = not isinstance(error, Exception)
        status, patience = ("KILLED", PATIENCE_WHEN_KILLED) if asked else ("FAILED", PATIENCE)
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise
    finally:
        report._close(status, reason, patience)


def _open(config: TrainConfig, corpus: Corpus, folder: str, tracking: str) -> Account:
    # MLflow takes seconds to import.
    from infra.tracking import CONFIG_FILE, absolute
    from infra.tracking_account import Account
    from training.lineage import lineage

    def describe(run: Run, account: Account) -> None:
        told = to_dict(config)
        run.log_params(told)
        run.log_corpus(corpus, name=config.stage, context="train")
        known = run.client.get_run(run.id).data.tags
        run.set_tags(lineage(config, corpus, known))
        # JSON is YAML.
        account.log_text(CONFIG_FILE, canonical_json(told).decode())

    return Account(
        absolute(tracking), storage.normalise(folder), name=config.stage, on_open=describe
    )


@contextmanager
def _only_logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        logger.warning("%s could not be recorded: %s", what, error)


@contextmanager
def _ending_by_exception() -> Iterator[None]:
    """Have SIGTERM raise SystemExit, unless somebody else (such as Ray) sees to that."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return

    def end(number: int, _: Any) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
