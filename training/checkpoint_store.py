"""Where a stage keeps its checkpoints, on any URI: committed, found again, thrown away.

::

    <uri>/step-00000100/...     the files of one
    <uri>/step-00000100.json    its commit: their sizes and sha256, and the score; written last

An object store has no atomic rename, so a single PUT is the commit: without it a folder is what a
killed run left. What is committed can still be damaged, so files are checked as they are fetched,
and an older checkpoint takes the place of a bad one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from infra import storage
from infra.config import canonical_json
from infra.scratch import scratch_folder

logger = logging.getLogger("training")

FORMAT_VERSION = 1
# What is waited longer for a checkpoint is told.
_LONG_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A checkpoint that was written to its end."""

    step: int
    m_j: float | None
    """Score on the val split, where it was validated."""
    files: Mapping[str, tuple[int, str]]
    """Bytes and sha256 by name."""


class CheckpointStore:
    """The checkpoints of one stage.

    Args:
        uri: the folder they lie in.
        keep: best ones to keep beside the newest.
        say: is told what people should know.
    """

    def __init__(
        self, uri: str, *, keep: int, say: Callable[[str], object] = logger.warning
    ) -> None:
        self.uri = storage.normalise(uri)
        self._keep = keep
        self._say = say
        # One thread: checkpoints are committed in the order in which they were made.
        self._uploads = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._upload: Future[None] | None = None
        # Whole by its sizes, and not what was committed: it must not pass for the newest one.
        self._damaged: set[int] = set()

    def folder(self, step: int) -> str:
        """URI of a checkpoint's folder."""
        return storage.join(self.uri, _name(step))

    def stays_busy(self, seconds: float) -> bool:
        """Whether a checkpoint is on its way and does not arrive within some seconds."""
        upload = self._upload
        return upload is not None and bool(wait([upload], timeout=seconds).not_done)

    def settle(self) -> None:
        """Wait for the checkpoint that is on its way.

        One that cannot be written costs a word and no more: an older one stands, and a newer one
        will come.
        """
        started = time.monotonic()
        try:
            self.wait()
        except (OSError, ValueError) as error:
            self._say(f"a checkpoint could not be written: {error}; training goes on")
        if (waited := time.monotonic() - started) > _LONG_SECONDS:
            self._say(f"waited {waited:.0f} s until the checkpoint before was written")

    def save(self, write: Callable[[Path], object], step: int, m_j: float | None) -> None:
        """Bring to its place, in the background, what ``write`` writes into a local folder.

        Waits for the checkpoint before, as ``settle`` does.
        """
        self.settle()
        self._upload = self._uploads.submit(self._bring, write, step, m_j)

    def wait(self) -> None:
        """Wait for the last upload.

        Raises:
            OSError: it failed.
        """
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.result()

    def committed(self) -> list[Committed]:
        """What was written to its end, the newest first."""
        found = []
        sizes = storage.list_sizes(self.uri)
        for name in sorted(sizes, reverse=True):
            if "/" in name or not name.endswith(".json"):
                continue
            try:
                commit = _parse(storage.read_bytes(storage.join(self.uri, name)))
            except (ValueError, KeyError, TypeError, AttributeError):
                self._say(f"{self.uri}/{name} is no commit of a checkpoint: skipped")
                continue
            prefix = name.removesuffix(".json")
            present = {file: sizes.get(f"{prefix}/{file}") for file in commit.files}
            wrong = [file for file, (size, _) in commit.files.items() if present[file] != size]
            if _name(commit.step) != prefix or wrong:
                what = f"{prefix}/{wrong[0]} is missing or cut" if wrong else "it is misnamed"
                self._say(f"the checkpoint {self.uri}/{prefix} is torn: {what}; skipped")
                continue
            found.append(commit)
        return found

    def newest_step(self) -> int:
        """Of the newest checkpoint that was written to its end, or -1 for none."""
        return max((one.step for one in self.committed()), default=-1)

    def fetch(self, checkpoint: Committed, folder: Path) -> None:
        """Copy a checkpoint into a local folder.

        Raises:
            ValueError: it is damaged.
            FileNotFoundError: it is gone.
        """
        for file, (size, sha256) in checkpoint.files.items():
            uri, local = storage.join(self.folder(checkpoint.step), file), folder / file
            storage.download(uri, local)
            if (local.stat().st_size, _sha256(local)) != (size, sha256):
                raise ValueError(f"{uri} is damaged: it is not what was committed")

    def fetch_newest(self, folder: Path) -> int | None:
        """Copy the newest sound checkpoint into a local folder; its step, or None for none."""
        for checkpoint in self.committed():
            try:
                self.fetch(checkpoint, folder)
                return checkpoint.step
            except (ValueError, FileNotFoundError) as error:
                self._damaged.add(checkpoint.step)
                self._say(f"{error}; the checkpoint before it is taken")
        return None

    def fetch_step(self, step: int, folder: Path) -> None:
        """Copy the checkpoint of a step, which another rank has found to be sound."""
        for checkpoint in self.committed():
            if checkpoint.step == step:
                return self.fetch(checkpoint, folder)
        raise FileNotFoundError(f"the checkpoint {self.folder(step)} is gone")

    def _bring(self, write: Callable[[Path], object], step: int, m_j: float | None) -> None:
        with scratch_folder("checkpoint") as folder:
            write(folder)
            files = {}
            for path in sorted(folder.iterdir()):
                files[path.name] = (path.stat().st_size, _sha256(path))
                storage.upload(path, storage.join(self.folder(step), path.name))
            document = {"format_version": FORMAT_VERSION, "step": step, "m_j": m_j, "files": files}
            self._damaged.discard(step)
            commit = storage.join(self.uri, f"{_name(step)}.json")
            storage.write_bytes(commit, canonical_json(document))
        try:
            self._prune()
        except OSError as error:
            # It stands all the same; the next one throws away what is left.
            self._say(f"older checkpoints could not be removed: {error}")

    def _prune(self) -> None:
        """Throw away all but the newest and the best, and what killed runs have left of some."""
        made = [one for one in self.committed() if one.step not in self._damaged]
        by_score = sorted((one for one in made if one.m_j is not None), key=better, reverse=True)
        kept = {_name(one.step) for one in [*made[:1], *by_score[: self._keep]]}
        names = [name for name in storage.list_sizes(self.uri) if name.startswith("step-")]
        # Commits first: what is half removed must not look whole.
        for name in sorted(names, key=lambda name: "/" in name):
            if name.partition("/")[0].removesuffix(".json") not in kept:
                storage.remove(storage.join(self.uri, name))


def better(checkpoint: Committed) -> tuple[float, int]:
    """By what the best one is told: its score, and of equal ones the later."""
    assert checkpoint.m_j is not None
    return checkpoint.m_j, checkpoint.step


def best(checkpoints: Sequence[Committed]) -> Committed:
    """The best of those that were validated."""
    return max((one for one in checkpoints if one.m_j is not None), key=better)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _parse(data: bytes) -> Committed:
    document = json.loads(data)
    if document["format_version"] != FORMAT_VERSION:
        raise ValueError
    files = {str(name): (int(size), str(sha)) for name, (size, sha) in document["files"].items()}
    if not all(re.fullmatch("[a-z]+\\.[a-z]+", name) for name in files):
        raise ValueError
    return Committed(step=int(document["step"]), m_j=document["m_j"], files=files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
