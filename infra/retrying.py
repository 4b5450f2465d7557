"""What a stumbling object store is allowed: which failures are tried again, how often, how long.

Two layers, each for what the other cannot see. botocore repeats a single request (``S3_CONFIG``):
an answer of 500, 502, 503 or 504, a reset connection, a timeout. It knows nothing of a body that
breaks after its headers, nor of an upload that is gone because the answer to its completion was
lost; ``retrying`` repeats the whole operation for those, and for an outage that lasts longer than
botocore's patience. s3fs has a third layer of its own between the two, which would multiply both:
``storage`` turns it off.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

S3_CONFIG: dict[str, Any] = {
    # Waits are random between 0 and 1, 2, 4, ... seconds.
    "retries": {"mode": "standard", "total_max_attempts": 5},
    "connect_timeout": 10.0,
    # Also bounds how long the server may take to receive a part of an upload.
    "read_timeout": 60.0,
    # Of one process; its default is what reading many small objects would wait for.
    "max_pool_connections": 64,
}
ATTEMPTS = 7
FIRST_WAIT = 0.5
LONGEST_WAIT = 20.0
# Seconds after which no further attempt begins, however few there were.
PATIENCE = 180.0

# Answers below 500 that another attempt can mend.
_STATUS = (408, 409, 425, 429)
_CODES = (
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "RequestTimeout",
    "SlowDown",
    # Its completion was done and the answer lost, or somebody cleaned up: send it again.
    "NoSuchUpload",
)
# Never the global generator: what is drawn from that one must not depend on the weather.
_jitter = random.Random()
_lock = threading.Lock()
_count = 0


def retries() -> int:
    """Requests and operations that this process has tried again so far."""
    return _count


def count_retry() -> None:
    """Count one."""
    global _count
    with _lock:
        _count += 1


def count_request(request: Any, **_: Any) -> None:
    """botocore's ``request-created``: count a request that is sent again."""
    if request.context.get("retries", {}).get("attempt", 1) > 1:
        count_retry()


def retrying(action: Callable[[], Result], *, what: str) -> Result:
    """``action()``, again after a failure that may pass; ``what`` is for the log.

    The waits double from half a second to 20, each between half and all of that. What cannot
    pass (nothing there, no permission, a bad request) is raised at once.
    """
    start = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return action()
        except Exception as error:
            spent = time.monotonic() - start
            if not is_transient(error) or attempt >= ATTEMPTS or spent > PATIENCE:
                raise
            wait = min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT) * _jitter.uniform(0.5, 1)
            logger.warning(
                "%s: %s; attempt %d of %d in %.1f s",
                what,
                error or type(error).__name__,
                attempt + 1,
                ATTEMPTS,
                wait,
            )
        count_retry()
        time.sleep(wait)
    raise AssertionError("unreachable")


def status_and_code(error: BaseException) -> tuple[int, str]:
    """HTTP status and S3 error code of a failure, ``(0, "")`` where no answer came."""
    # s3fs raises built-in errors from botocore's.
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(answer.get("Error", {}).get("Code", ""))
    return 0, ""


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    status, code = status_and_code(error)
    if status or code:
        return code in _CODES or status in _STATUS or (status >= 500 and status != 501)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    # Importing these takes long, and what they raise has imported them.
    if type(error).__module__.partition(".")[0] not in ("aiobotocore", "aiohttp", "botocore"):
        return False
    import aiohttp
    from botocore import exceptions, parsers  # type: ignore[import-untyped]

    return isinstance(
        error,
        (
            aiohttp.ClientError,
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.IncompleteReadError,
            # Some answer to too many requests with what is no XML.
            parsers.ResponseParserError,
        ),
    )
