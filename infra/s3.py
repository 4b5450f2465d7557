"""What S3 asks for beyond a file system: conditions, parts, tags and times, a long walk.

``infra.storage`` calls these. Reads and writes are one attempt each, which it repeats where that
may help; what takes several requests repeats each of them itself.
"""

from __future__ import annotations

import email.utils
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn

from infra.retrying import S3_CONFIG, count_request, retrying, status_and_code

# Bytes of one request for a large object: small enough to be sent again without regret.
PART = 16 << 20
PARTS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object as it was read."""

    data: bytes
    etag: str
    """Changes with the content; what ``storage.replace_if`` takes."""
    age: float
    """Seconds since it was written, both times by the store's own clock. S3 tells whole seconds,
    so this may be off by up to one either way."""


def connect(*, own_retries: bool = False) -> fsspec.AbstractFileSystem:
    """The S3 that the AWS variables name; one instance a process.

    Args:
        own_retries: for callers that repeat nothing: an instance with s3fs's own attempts.
    """
    # Listings must show what other processes wrote a moment ago.
    options = {"use_listings_cache": False, "config_kwargs": S3_CONFIG}
    if own_retries:
        return fsspec.filesystem("s3", **options, skip_instance_cache=True)
    fs = fsspec.filesystem("s3", **options)
    if fs.retries != 1:  # a new one
        fs.retries = 1
        fs.connect()
        fs.s3.meta.events.register("request-created.s3", count_request)
    return fs


def read(fs: Any, path: str, *, limit: int, **how: str) -> Stored:
    """One GET, header and body.

    Raises:
        ValueError: there are more than ``limit`` bytes.
    """
    bucket, key, _ = fs.split_path(path)

    async def get() -> tuple[bytes, dict[str, Any]]:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **how)
        try:
            if answer["ContentLength"] > limit:
                raise ValueError(
                    f"s3://{path} is larger than the {limit} bytes that are read of such a file"
                )
            return await answer["Body"].read(), answer
        finally:
            answer["Body"].close()

    data, answer = fsspec.asyn.sync(fs.loop, get)
    if len(data) != answer["ContentLength"]:
        raise ConnectionResetError(f"only {len(data)} of {answer['ContentLength']} bytes came")
    now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    age = (now - answer["LastModified"]).total_seconds()
    return Stored(data=data, etag=answer["ETag"], age=age)


def read_part(fs: Any, path: str, info: dict[str, Any], start: int) -> bytes:
    """``PART`` bytes from ``start``, or what there is, of the very object that ``info`` is of.

    Raises:
        ValueError: another object stands there now.
    """
    end = min(start + PART, int(info["size"]))
    try:
        part = read(fs, path, limit=PART, IfMatch=info["ETag"], Range=f"bytes={start}-{end - 1}")
    except OSError as error:
        if status_and_code(error)[0] == 412:
            raise ValueError(f"s3://{path} was replaced while it was read: try again") from None
        raise
    return part.data


def write(fs: Any, path: str, data: bytes) -> None:
    """Write an object: one PUT, or parts that become an object together."""
    fs.pipe_file(path, data, chunksize=PART, max_concurrency=PARTS_AT_ONCE)
    if len(data) >= 2 * PART:
        abort_uploads(fs, path)


def upload(fs: Any, local: Path, path: str) -> None:
    """Write an object from a file, as ``write`` does."""
    fs.put_file(str(local), path, chunksize=PART, max_concurrency=PARTS_AT_ONCE)
    if local.stat().st_size >= 2 * PART:
        abort_uploads(fs, path)


def write_if(fs: Any, path: str, data: bytes, **condition: str) -> str | None:
    """A PUT under ``IfMatch`` or ``IfNoneMatch``; the new tag, or None where it does not hold."""
    bucket, key, _ = fs.split_path(path)
    try:
        answer = fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        return str(answer["ETag"])
    except Exception as error:
        # There is nothing that could match: 404.
        status, code = status_and_code(error)
        if status not in (404, 412) or code == "NoSuchBucket":
            raise
    # botocore may have sent it twice: done the first time, and the answer lost.
    try:
        standing = read(fs, path, limit=len(data))
    except (FileNotFoundError, ValueError):
        return None
    return standing.etag if standing.data == data else None


def abort_uploads(fs: Any, path: str, *, below: bool = False) -> None:
    """Remove the parts that uploads to ``path``, or to all ``below`` it, left when they were cut
    off; a thousand of them at most."""
    bucket, key, _ = fs.split_path(path)

    def abort() -> None:
        prefix = f"{key}/" if below else key
        answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        for found in answer.get("Uploads", []):
            if below or found["Key"] == key:
                with suppress(FileNotFoundError):
                    upload = {"Bucket": bucket, "Key": found["Key"], "UploadId": found["UploadId"]}
                    fs.call_s3("abort_multipart_upload", **upload)

    # Who may write need not be allowed to list; the object stands either way.
    with suppress(PermissionError):
        retrying(abort, what=f"s3://{path}")


def walk(fs: Any, path: str) -> Iterator[str]:
    """The name below ``path`` of every object; each page of the listing is asked for until it
    comes."""
    bucket, _, prefix = path.partition("/")
    start = f"{prefix}/" if prefix else ""
    page = {"Bucket": bucket, "Prefix": start}
    while True:
        answer = retrying(lambda: fs.call_s3("list_objects_v2", **page), what=f"s3://{path}")
        for item in answer.get("Contents", ()):
            # Some servers keep an empty folder where the last object of a prefix was.
            if not item["Key"].endswith("/"):
                yield item["Key"][len(start) :]
        if not answer.get("IsTruncated"):
            return
        page["ContinuationToken"] = answer["NextContinuationToken"]
