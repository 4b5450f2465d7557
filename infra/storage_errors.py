"""What goes wrong with files on a disk or on object storage, in one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import space_for
from infra.retrying import is_transient

FOLDER = "a folder stands where a file is needed"


class Unreadable(ValueError):
    """A file on a disk that this user may not read."""


@contextmanager
def refusable(uri: str | Path, name: str) -> Iterator[None]:
    """Turn the lack of permission for one file on a disk into ``Unreadable``, which names it.

    Of object storage it says something about the account, and not about this file: it stays as
    it is.
    """
    try:
        yield
    except PermissionError:
        if str(uri).startswith("s3://"):
            raise
        raise Unreadable(f"unreadable: {name} may not be read by this user") from None


@contextmanager
def plain_errors(uri: str | Path) -> Iterator[None]:
    """Turn the storage libraries' many errors into one sentence that names the URI."""
    try:
        with space_for(uri):
            yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} does not exist: check the path or URI") from None
    except PermissionError as error:
        raise PermissionError(
            f"{uri} may not be accessed ({error}): check its rights or the AWS keys"
        ) from None
    except IsADirectoryError:
        raise ValueError(f"{uri} cannot be used: {FOLDER}") from None
    except (NotADirectoryError, FileExistsError):
        raise ValueError(f"{uri} cannot be used: a file stands where a folder is needed") from None
    except Exception as error:
        # botocore's errors share no built-in class, and importing it takes long.
        if not is_transient(error) and not type(error).__module__.startswith("botocore."):
            raise
        raise ConnectionError(
            f"{uri} cannot be reached ({error}): check AWS_ENDPOINT_URL and the AWS keys"
        ) from None
