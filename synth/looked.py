"""What was found in whole batches of files, kept until the catalog that they are for stands.

    <catalog>/looked-<sha256 of the batch>.parquet    one column of JSON, a value for each file,
                                                      and in the metadata their sha256

A batch is known by all that its answers depend on but the bytes of its files: like a catalog that
stands, it is taken as it is while the same files are offered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage

PREFIX = "looked-"
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{64}}\.parquet")
_COLUMN = "rows"
_SHA256 = b"sha256"
_LIMIT = 4 << 30


class Looked:
    """Batches of answers below the URI of a catalog that is under way."""

    def __init__(self, catalog: str) -> None:
        self.catalog = catalog

    def find(self, batch: str) -> list[str] | None:
        """The answers that an earlier run kept for a batch; None where it has to be looked at."""
        try:
            data = pa.BufferReader(storage.read_bytes(self._uri(batch), limit=_LIMIT))
            table = pq.read_table(data)
            answers: list[str] = table.column(_COLUMN).to_pylist()
            is_whole = (table.schema.metadata or {}).get(_SHA256) == _digest(answers)
        except (ValueError, TypeError, KeyError, OSError):
            # Arrow tells of most damage by a plain OSError; and a storage that is away is met
            # again at the first file.
            return None
        return answers if is_whole else None

    def keep(self, batch: str, answers: Sequence[str]) -> None:
        """Write the answers of a batch, whole or not at all."""
        table = pa.table({_COLUMN: pa.array(answers, pa.string())})
        table = table.replace_schema_metadata({_SHA256: _digest(answers)})
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
        storage.write_bytes(self._uri(batch), buffer.getvalue().to_pybytes())

    def clear(self) -> None:
        """Remove all batches: the catalog has what they say."""
        for name in storage.list_sizes(self.catalog):
            if _NAME.fullmatch(name):
                storage.remove(storage.join(self.catalog, name))

    def _uri(self, batch: str) -> str:
        return storage.join(self.catalog, f"{PREFIX}{batch}.parquet")


def _digest(answers: Sequence[str]) -> bytes:
    total = hashlib.sha256()
    for answer in answers:
        total.update(hashlib.sha256(answer.encode()).digest())
    return total.hexdigest().encode()
