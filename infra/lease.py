"""One writer at a time: a lease on a place in storage, held as long as it is renewed.

``<uri>/lease.json`` says who writes there. It is created only where none stands and replaced only
where the one that was read still stands, both by the store itself (``storage.create`` and
``storage.replace_if``), so of two jobs that begin at once one proceeds.

Whether a lease lives is judged without comparing the clocks of two machines:

- Others judge its age by the store's clock alone: when it was written and what time it is now both
  come from the store. It has run out when it is older than its duration and ``GRACE``, which
  covers that S3 tells whole seconds and that gateways of one store may differ a little.
- The holder replaces it at a third of its duration, and asks the store in ``check``: if the lease
  that it wrote last still stands there, nobody can have taken it, however long it was asleep.
- A holder that died on this machine is seen to be dead, and its lease is taken over at once.

Between ``check`` and the write that follows a holder could still be put to sleep for longer than
its lease. Writers of a corpus can bear this: what they write is the same, byte for byte.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra import storage
from infra.config import canonical_json
from infra.errors import USER_ERRORS

logger = logging.getLogger(__name__)

LEASE = "lease.json"
GRACE = 2.0
_LIMIT = 1 << 16
_TURNS = 5


@dataclass(frozen=True, kw_only=True)
class _Lease:
    """The content of ``lease.json``."""

    owner: str
    host: str
    machine: str
    """The boot and the process namespace in which ``pid`` means something."""
    pid: int
    process_start: str
    since: str
    """When it was taken, by the holder's clock: for people."""
    seconds: float
    token: str
    """Random, so that no two holders write the same bytes."""
    renewals: int = 0

    def is_dead(self) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        here = _machine()
        return bool(here) and self.machine == here and _started(self.pid) != self.process_start


class Held:
    """A lease that this process holds."""

    def __init__(self, uri: str, lease: _Lease, etag: str) -> None:
        self._uri = uri
        self._lease = lease
        self._etag: str | None = etag
        self._lock = threading.Lock()

    def check(self) -> None:
        """Renew the lease now, before something that only its holder may do.

        Raises:
            ValueError: it was lost; the job must stop.
            ConnectionError: the store does not answer.
        """
        with self._lock:
            if self._etag is not None:
                # An attempt that failed is repeated with the same bytes: it may have been done.
                renewed = replace(self._lease, renewals=self._lease.renewals + 1)
                place = storage.join(self._uri, LEASE)
                self._etag = storage.replace_if(place, _bytes(renewed), self._etag)
                self._lease = renewed
        if reason := self.lost():
            raise ValueError(reason)

    def lost(self) -> str:
        """Why the job must stop, or nothing: what the last renewal found, without asking anew."""
        if self._etag is not None:
            return ""
        return (
            f"the lease on {self._uri} was lost: this job was out of reach for too long and "
            "another may write there; run it again when that one has ended"
        )

    def release(self) -> None:
        """Give the lease back, if it is still held."""
        with suppress(ValueError):
            # Just renewed it cannot be anybody else's when it is removed.
            self.check()
            storage.remove(storage.join(self._uri, LEASE))


@contextmanager
def hold(uri: str, *, owner: str, seconds: float = 60.0) -> Iterator[Held]:
    """Be the only writer at ``uri`` while the block runs.

    What writers before it were killed over is cleared away first (``storage.clear_leftovers``).

    Args:
        owner: what people call this job, for instance its id.
        seconds: how long the lease outlives a holder that is not seen to be dead.

    Raises:
        ValueError: another job holds it.
    """
    if seconds <= 0:
        raise ValueError(f"a lease of {seconds} seconds cannot be held: use more than 0")
    uri = storage.normalise(uri)
    lease = _Lease(
        owner=owner,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_start=_started(os.getpid()),
        since=_clock(datetime.now(UTC)),
        seconds=seconds,
        token=secrets.token_hex(16),
    )
    held = Held(uri, lease, _take(uri, lease))
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(held, done, seconds / 3), daemon=True)
    renewing.start()
    try:
        try:
            storage.clear_leftovers(uri)
        except OSError as error:
            logger.warning("what killed jobs have left at %s stays there (%s)", uri, error)
        yield held
    finally:
        done.set()
        renewing.join()
        try:
            held.release()
        except USER_ERRORS as error:
            logger.warning("the lease on %s could not be given back (%s)", uri, error)


def _take(uri: str, lease: _Lease) -> str:
    """Write ``lease`` where none lives; its tag."""
    place = storage.join(uri, LEASE)
    for _ in range(_TURNS):
        etag = storage.create(place, _bytes(lease))
        if etag is not None:
            return etag
        standing = storage.read_stored(place, limit=_LIMIT)
        if standing is None:
            continue  # given back a moment ago
        try:
            other = _Lease(**json.loads(standing.data))
            left = float(other.seconds) + GRACE - standing.age
        except (ValueError, TypeError):
            raise ValueError(f"{place} is no lease: remove it if no job writes at {uri}") from None
        if left > 0 and not other.is_dead():
            end = _clock(datetime.now(UTC) + timedelta(seconds=left))
            raise ValueError(
                f"another job ({other.owner} on {other.host}, process {other.pid}) writes at {uri} "
                f"since {other.since}; wait until it ends or, if it is dead, until its lease "
                f"expires at {end}"
            )
        etag = storage.replace_if(place, _bytes(lease), standing.etag)
        if etag is not None:
            logger.warning("took over the lease of %s on %s at %s", other.owner, other.host, uri)
            return etag
    raise ValueError(
        f"several jobs want to write at {uri} at once: let one end, then start another"
    )


def _renew(held: Held, done: threading.Event, every: float) -> None:
    while not done.wait(every):
        try:
            held.check()
        except ValueError as error:
            logger.error("%s", error)
            return
        except OSError as error:
            logger.warning("a lease could not be renewed (%s)", error)


def _bytes(lease: _Lease) -> bytes:
    return canonical_json(asdict(lease))


def _clock(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _machine() -> str:
    """Where process numbers mean the same as here; empty where Linux does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine began, in clock ticks after the boot; empty if it ended."""
    try:
        # After the name in brackets, which may hold anything: the state, and 18 fields later this.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "XZ" else fields[19]
