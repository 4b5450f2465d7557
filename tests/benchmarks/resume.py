"""Resuming a corpus of many small shards on S3, against a bare listing of the same keys.

::

    python -m tests.benchmarks.resume

Starts a SeaweedFS on this machine, so client and server share its cores. Resuming is what
``write_shards`` does before it writes: with the corpus committed, and with its markers alone, as
after a job that was killed. The floor is boto3's ``list_objects_v2``, page by page.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import boto3

from infra import storage
from infra.commit import build_manifest, commit, standing_shards
from infra.corpus import Sample, ShardRecord, write_shard
from tests.integration.servers import running_seaweedfs

WRITERS = 16


def fill(uri: str, shards: int) -> list[ShardRecord]:
    """Write so many shards of one small sample each."""

    def write(number: int) -> ShardRecord:
        meta = {"scene": f"scene-{number}", "classes": ["bell"], "frames": 1}
        sample = Sample(key=f"s{number}", members={"frame0.png": b"picture"}, meta=meta)
        record, _ = write_shard(uri, "train", number, [sample], plan=f"plan-{number}")
        return record

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(write, range(shards)))


def list_bare(client: Any, uri: str) -> int:
    """Keys that a plain client lists."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return sum(len(page.get("Contents", [])) for page in pages)


def timed(label: str, call: Callable[[], int], *, repeats: int) -> float:
    """Print and return the median."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        count = call()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    print(
        f"{label:<44}{median:8.2f} s  ({min(seconds):.2f}-{max(seconds):.2f}, "
        f"{repeats} times, {count} found)",
        flush=True,
    )
    return median


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shards", type=int, default=10_000, help="shards of the corpus")
    options.add_argument("--repeats", type=int, default=3, help="timed turns of each")
    options.add_argument("--smoke", action="store_true", help="few shards: does it run at all")
    chosen = options.parse_args()
    shards, repeats = (50, 1) if chosen.smoke else (chosen.shards, chosen.repeats)
    print(f"{date.today()}, {shards} shards, SeaweedFS on the same machine", flush=True)
    with running_seaweedfs() as store:
        uri = f"{store.uri}/corpus"
        plans = {("train", number): f"plan-{number}" for number in range(shards)}
        started = time.perf_counter()
        records = fill(uri, shards)
        print(f"filled in {time.perf_counter() - started:.1f} s", flush=True)

        def resume() -> int:
            return len(standing_shards(uri, plans))

        markers = timed("resume by the markers alone", resume, repeats=repeats)
        manifest = build_manifest(
            kind="made",
            seed=0,
            recipe={},
            sources={},
            licences=[],
            shards=records,
            refused=[],
        )
        commit(uri, manifest)
        manifest_too = timed("resume of a committed corpus", resume, repeats=repeats)
        client = boto3.client("s3", endpoint_url=store.endpoint)
        floor = timed("bare boto3 listing", lambda: list_bare(client, uri), repeats=repeats)
        print(
            f"ratio to the bare listing: committed {manifest_too / floor:.2f}, "
            f"markers {markers / floor:.2f}; requests sent again: {storage.retries()}"
        )


if __name__ == "__main__":
    main()
