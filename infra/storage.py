"""One way to reach bytes: a path, ``file://`` or ``s3://`` (any S3 server).

The S3 endpoint and keys come from the standard AWS environment variables
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``).

Object stores have no atomic rename, so nothing here relies on one: an object appears whole or
not at all, on S3 because a PUT does, on a disk because the bytes are written aside and renamed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

# Larger than any document (manifest, table, marker) that is read whole.
DEFAULT_READ_LIMIT = 1 << 30

_SCHEMES = ("s3://", "file://")


def cache_folder() -> Path:
    """``$SAVE_CACHE``, or ``save-pipelines`` in the user's cache folder."""
    named = os.environ.get("SAVE_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "save-pipelines"


def normalise(uri: str | Path) -> str:
    """A URI that means the same in every process: paths become absolute.

    Raises:
        ValueError: the scheme is none of a path, ``file://`` and ``s3://``.
    """
    text = str(uri)
    if text.startswith("file://"):
        text = text[len("file://") :]
    if text.startswith("s3://"):
        if not text[len("s3://") :].strip("/"):
            raise ValueError(f"{uri!r} names no bucket: write s3://bucket/prefix")
        return text.rstrip("/")
    if "://" in text:
        raise ValueError(f"{uri!r} is no URI this can read: use a path, file:// or s3://")
    if not text:
        raise ValueError("an empty path was given where a path, file:// or s3:// URI is needed")
    return str(Path(text).expanduser().absolute())


def filesystem(uri: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem that holds ``uri`` and the path of ``uri`` in it."""
    text = normalise(uri)
    if not text.startswith("s3://"):
        return fsspec.filesystem("file"), text
    # Listings must show what other processes wrote a moment ago.
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    return s3, text[len("s3://") :]


def join(uri: str | Path, *parts: str) -> str:
    """``uri/part/...``; no part may be absolute or climb out of ``uri``."""
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise ValueError(f"{part!r} leads out of {uri}: use a name inside it")
    return "/".join([normalise(uri).rstrip("/"), *parts])


@contextmanager
def _plain_errors(uri: str | Path) -> Iterator[None]:
    """Turn the storage libraries' many errors into one sentence that names the URI."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} does not exist: check the path or URI") from None
    except PermissionError as error:
        raise PermissionError(
            f"{uri} may not be accessed ({error}): check its rights or the AWS keys"
        ) from None
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        raise ValueError(
            f"{uri} cannot be used: a folder stands where a file is needed, or a file where a "
            "folder is"
        ) from None
    except Exception as error:
        # botocore's errors share no built-in class, and importing it takes long.
        if not type(error).__module__.startswith("botocore."):
            raise
        raise ConnectionError(
            f"{uri} cannot be reached ({error}): check AWS_ENDPOINT_URL and the AWS keys"
        ) from None


def size(uri: str | Path) -> int:
    """Bytes of one object."""
    fs, path = filesystem(uri)
    with _plain_errors(uri):
        return int(fs.info(path)["size"])


def read_bytes(uri: str | Path, *, limit: int = DEFAULT_READ_LIMIT) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is larger than ``limit`` bytes.
    """
    fs, path = filesystem(uri)
    with _plain_errors(uri), fs.open(path, "rb") as file:
        data: bytes = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{uri} is larger than the {limit} bytes that are read of such a file")
    return data


def read_range(uri: str | Path, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset``; ValueError when the object ends before."""
    fs, path = filesystem(uri)
    with _plain_errors(uri):
        data: bytes = fs.cat_file(path, start=offset, end=offset + size)
    if len(data) != size:
        raise ValueError(
            f"{uri} ends after {offset + len(data)} bytes where {offset + size} are needed: "
            "the file is damaged, write it again"
        )
    return data


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write an object whole or not at all."""
    fs, path = filesystem(uri)
    with _plain_errors(uri):
        if not _is_local(fs):
            fs.pipe_file(path, data)
            return
        with _aside(Path(path)) as aside, aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def upload(local: Path, uri: str | Path) -> None:
    """Copy a local file to ``uri``, whole or not at all."""
    fs, path = filesystem(uri)
    with _plain_errors(uri):
        if not _is_local(fs):
            fs.put_file(str(local), path)
            return
        with _aside(Path(path)) as aside:
            shutil.copyfile(local, aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())


def download(uri: str | Path, local: Path) -> None:
    """Copy the object ``uri`` to a local file, whole or not at all."""
    fs, path = filesystem(uri)
    with _plain_errors(uri), _aside(local) as aside:
        fs.get_file(path, str(aside))


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A file beside ``target`` that takes its name when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", dir=target.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def exists(uri: str | Path) -> bool:
    """Whether an object or a folder with something in it stands at ``uri``."""
    fs, path = filesystem(uri)
    with _plain_errors(uri):
        return bool(fs.exists(path))


def list_files(uri: str | Path, suffix: str = "") -> list[str]:
    """Every object below ``uri`` (at any depth) whose name ends with ``suffix``, sorted.

    Names that begin with a dot are files still being written and are left out.
    """
    fs, path = filesystem(uri)
    prefix = "" if _is_local(fs) else "s3://"
    with _plain_errors(uri):
        found = fs.find(path)
    return sorted(
        prefix + name
        for name in found
        if name.endswith(suffix) and not name.rsplit("/", 1)[-1].startswith(".")
    )


def remove(uri: str | Path) -> None:
    """Remove one object if it is there."""
    fs, path = filesystem(uri)
    with _plain_errors(uri):
        if fs.exists(path):
            fs.rm_file(path)


def for_arrow(uri: str | Path) -> tuple[str, Any]:
    """``(path, filesystem)`` as Ray Train's and pyarrow's ``storage_path`` pair wants them."""
    import pyarrow.fs

    fs, path = filesystem(uri)
    if _is_local(fs):
        return path, pyarrow.fs.LocalFileSystem()
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in fs.protocol
