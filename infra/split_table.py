"""The table of a split: what the indexes of its shards say of each sample.

A shard's own index is committed with the shard. So that a reader need not fetch thousands of small
files, a job joins them when it commits the corpus::

    <uri>/index/{split}.parquet

The joined one is a copy. Where it is not the one that the manifest names (a job that extends the
corpus has not committed yet, or a file was damaged) the shards' own are read.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.member_index import check_index
from infra.shard_cache import DAMAGED
from infra.shards import INDEX_SCHEMA, ShardRecord

logger = logging.getLogger(__name__)


def write_joined(uri: str, split: str, records: Sequence[ShardRecord]) -> dict[str, Any]:
    """Join the indexes of a split's shards.

    Returns:
        its ``bytes`` and ``sha256``, for the manifest to tell.

    Raises:
        FileNotFoundError, ValueError: as for ``read_table``.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(_of_shards(uri, records), buffer, compression="zstd")
    data = buffer.getvalue().to_pybytes()
    storage.write_bytes(_joined_uri(uri, split), data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_table(
    uri: str, split: str, records: Sequence[ShardRecord], told: dict[str, Any] | None
) -> pa.Table:
    """One row per sample in one chunk, the shard's path among its columns.

    Args:
        told: what the manifest says of the joined index; None where there is none.

    Raises:
        FileNotFoundError: the index of a shard is not there.
        ValueError: it does not match its checksum or its tar.
    """
    table = None if told is None else _joined(_joined_uri(uri, split), records, told)
    if table is None:
        table = _of_shards(uri, records)
    shard_R = np.repeat(np.arange(len(records)), [record.samples for record in records])
    paths = pa.array([record.path for record in records], pa.string())
    return table.append_column("shard", paths.take(pa.array(shard_R)))


def _joined_uri(uri: str, split: str) -> str:
    return storage.join(uri, f"index/{split}.parquet")


def _joined(where: str, records: Sequence[ShardRecord], told: dict[str, Any]) -> pa.Table | None:
    try:
        data = storage.read_bytes(where, limit=told["bytes"])
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise ValueError("it does not match the manifest")
        table = pq.ParquetFile(pa.BufferReader(data)).read().combine_chunks()
        _check(table, records)
    except (FileNotFoundError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        logger.warning("%s is left aside (%s): the shards' own indexes are read", where, error)
        return None
    return table


def _of_shards(uri: str, records: Sequence[ShardRecord]) -> pa.Table:
    uris = [storage.join(uri, record.index) for record in records]
    tables = [
        _of_shard(record, where, data)
        for record, where, data in zip(records, uris, storage.read_many(uris), strict=True)
    ]
    table = pa.concat_tables(tables).combine_chunks() if tables else INDEX_SCHEMA.empty_table()
    try:
        _check(table, records)
    except ValueError:
        for record, where, own in zip(records, uris, tables, strict=True):
            try:
                _check(own.combine_chunks(), [record])
            except ValueError as error:
                raise ValueError(f"{where} does not fit its tar: {error}; write it again") from None
        raise
    return table


def _of_shard(record: ShardRecord, where: str, data: bytes | None) -> pa.Table:
    if data is None:
        raise FileNotFoundError(f"{where} does not exist: check the path or URI")
    if hashlib.sha256(data).hexdigest() != record.index_sha256:
        raise ValueError(f"{where} {DAMAGED}")
    try:
        # Not ``pq.read_table``, whose threads and datasets serve larger files.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        return table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{where} is no table of members ({error}): write it again") from None


def _check(table: pa.Table, records: Sequence[ShardRecord]) -> None:
    if table.schema != INDEX_SCHEMA:
        raise ValueError("it is no table of members")
    samples = [record.samples for record in records]
    if len(table) != sum(samples):
        raise ValueError(f"it has {len(table)} samples and not {sum(samples)}")
    first_K = np.fromiter(itertools.accumulate(samples, initial=0), np.int64)
    check_index(table, first_K, np.array([record.bytes for record in records], np.int64))
