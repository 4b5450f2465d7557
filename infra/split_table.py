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


def joined_name(split: str) -> str:
    """Where the joined index of a split lies in its corpus."""
    return f"index/{split}.parquet"


def joined_bytes(table: pa.Table) -> bytes:
    """The joined index of a split, from its table."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table.select(INDEX_SCHEMA.names), buffer, compression="zstd")
    data: bytes = buffer.getvalue().to_pybytes()
    return data


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
    where = storage.join(uri, joined_name(split))
    table = None if told is None else _read_joined(where, records, told)
    if table is None:
        table = _read_shards(uri, records)
    shard_R = np.repeat(np.arange(len(records)), [record.samples for record in records])
    paths = pa.array([record.path for record in records], pa.string())
    return table.append_column("shard", paths.take(pa.array(shard_R)))


def _read_joined(
    where: str, records: Sequence[ShardRecord], told: dict[str, Any]
) -> pa.Table | None:
    try:
        data = storage.read_bytes(where, limit=min(told["bytes"], storage.DEFAULT_READ_LIMIT))
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise ValueError("it does not match the manifest")
        table = _parsed(data, sum(record.samples for record in records))
        _check(table, records)
    except (FileNotFoundError, PermissionError, KeyError, TypeError, ValueError) as error:
        logger.warning(
            "%s is left aside (%s): the shards' own indexes are read; the job that made the corpus "
            "mends it when it is run again",
            where,
            error,
        )
        return None
    return table


def _read_shards(uri: str, records: Sequence[ShardRecord]) -> pa.Table:
    uris = [storage.join(uri, record.index) for record in records]
    tables = [
        _parse_shard(record, where, data)
        for record, where, data in zip(records, uris, storage.read_many(uris), strict=True)
    ]
    table = pa.concat_tables(tables).combine_chunks() if tables else INDEX_SCHEMA.empty_table()
    try:
        _check(table, records)
    except ValueError:
        for record, where, own in zip(records, uris, tables, strict=True):
            try:
                _check(own, [record])
            except ValueError as error:
                raise ValueError(f"{where} does not fit its tar: {error}; write it again") from None
        raise
    return table


def _parse_shard(record: ShardRecord, where: str, data: bytes | None) -> pa.Table:
    if data is None:
        raise FileNotFoundError(f"{where} does not exist: check the path or URI")
    if hashlib.sha256(data).hexdigest() != record.index_sha256:
        raise ValueError(f"{where} {DAMAGED}")
    try:
        return _parsed(data, record.samples)
    except ValueError as error:
        raise ValueError(f"{where} is no table of members ({error}): write it again") from None


def _parsed(data: bytes, samples: int) -> pa.Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if file.metadata.num_rows != samples or file.schema_arrow != INDEX_SCHEMA:
            raise ValueError(f"it has other columns, or not {samples} samples")
        # Threads and datasets serve larger files than a shard's.
        return file.read(use_threads=False).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check(table: pa.Table, records: Sequence[ShardRecord]) -> None:
    samples = [record.samples for record in records]
    first_K = np.fromiter(itertools.accumulate(samples, initial=0), np.int64)
    check_index(table, first_K, np.array([record.bytes for record in records], np.int64))
