"""Tables of many rows: columns for planning, single rows for whoever needs one.

A million rows as Python objects would take gigabytes and minutes; as Arrow columns they take some
hundred megabytes, and processes of one machine share them. ``Rows`` is such a table, or a selection
of one, with the manners of a list.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, get_type_hints, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage

Row = TypeVar("Row")

_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
# Columns in which many rows say the same: each value is kept once.
_REPEATING = frozenset(
    ("absent", "author", "class_name", "collection", "file_sha256", "licence", "origin")
) | {"picture", "source", "uri", "video"}
_TABLE_LIMIT = 8 << 30


def schema(row_type: type[Any]) -> pa.Schema:
    """The Arrow schema of a row type; no column is nullable."""
    kinds = get_type_hints(row_type)

    def kind(name: str) -> pa.DataType:
        plain = _ARROW_TYPES[kinds[name]]
        return pa.dictionary(pa.int32(), plain) if name in _REPEATING else plain

    names = [field.name for field in dataclasses.fields(row_type)]
    return pa.schema([pa.field(name, kind(name), nullable=False) for name in names])


class Rows(Sequence[Row], Generic[Row]):
    """Rows of one dataclass over an Arrow table.

    Args:
        row_type: the dataclass, with fields of type str, int, float and bool.
        table: as ``schema(row_type)`` says.
        chosen: the rows of the table that are meant, in their order; all when None.
    """

    def __init__(
        self, row_type: type[Row], table: pa.Table, chosen: np.ndarray | None = None
    ) -> None:
        self.row_type = row_type
        self.table = table
        self.chosen = chosen
        self._cells: dict[str, Callable[[int], Any]] | None = None
        self._digest = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cells": None}

    @classmethod
    def of(cls, row_type: type[Row], rows: Iterable[Row]) -> Rows[Row]:
        """A table of rows at hand."""
        values = [vars(row) for row in rows]
        table = pa.Table.from_pylist(values, schema=_plain(row_type)).cast(schema(row_type))
        return cls(row_type, table)

    @classmethod
    def joined(cls, row_type: type[Row], parts: Sequence[Rows[Row]]) -> Rows[Row]:
        """The rows of several tables."""
        tables = [part.selected() for part in parts] or [schema(row_type).empty_table()]
        table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        return cls(row_type, table)

    def __len__(self) -> int:
        return self.table.num_rows if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Rows[Row]:
        if isinstance(index, slice):
            every = np.arange(len(self)) if self.chosen is None else self.chosen
            return Rows(self.row_type, self.table, every[index])
        number = range(len(self))[index]
        if self.chosen is not None:
            number = int(self.chosen[number])
        if self._cells is None:
            self._cells = {
                name: _cells(column.chunk(0) if column.num_chunks == 1 else column)
                for name, column in zip(self.table.column_names, self.table.columns, strict=True)
            }
        return self.row_type(**{name: cell(number) for name, cell in self._cells.items()})

    def __iter__(self) -> Iterator[Row]:
        # In batches: a row at a time through Arrow's scalars takes twenty times as long.
        selected = self.selected()
        for batch in selected.to_batches(max_chunksize=4096):
            for values in batch.to_pylist():
                yield self.row_type(**values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        return self.row_type is other.row_type and self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]

    def selected(self) -> pa.Table:
        """The table of just these rows."""
        return self.table if self.chosen is None else self.table.take(pa.array(self.chosen))

    def take(self, numbers: np.ndarray) -> Rows[Row]:
        """The rows at these positions, or where a mask of all of them is true."""
        if numbers.dtype == np.bool_:
            numbers = np.flatnonzero(numbers)
        chosen = numbers if self.chosen is None else self.chosen[numbers]
        return Rows(self.row_type, self.table, chosen)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers or truth values."""
        values = np.asarray(self.table.column(name))
        return values if self.chosen is None else values[self.chosen]

    def coded(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A column of strings as positions in the list of its different values."""
        column = self.table.column(name)
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        column = column.unify_dictionaries().combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        codes = np.asarray(column.indices)
        return (codes if self.chosen is None else codes[self.chosen]), column.dictionary.to_pylist()

    def distinct(self, name: str) -> list[str]:
        """The different values of a column of strings, sorted."""
        codes, values = self.coded(name)
        return sorted(values[code] for code in np.unique(codes).tolist())

    def texts(self, name: str) -> list[str]:
        """A column of strings."""
        return self._column(name).to_pylist()

    def given(self, name: str) -> np.ndarray:
        """Where a column of strings, none of which repeats, is not empty: bool ``[rows]``."""
        given = np.asarray(pc.binary_length(self.table.column(name))) > 0
        return given if self.chosen is None else given[self.chosen]

    def order_by(self, name: str) -> np.ndarray:
        """The positions of the rows in the order of a column of strings."""
        return np.asarray(pc.sort_indices(self._column(name)))

    def sorted_by_id(self) -> Rows[Row]:
        """The same rows in the order of their ids."""
        return self.take(self.order_by("id"))

    def _column(self, name: str) -> pa.ChunkedArray:
        """A column of just these rows."""
        column = self.table.column(name)
        return column if self.chosen is None else column.take(pa.array(self.chosen))

    def digest(self) -> str:
        """sha256 of the content, which does not depend on how the table is kept."""
        if not self._digest:
            total = hashlib.sha256()
            for field in _plain(self.row_type):
                # One column after the other: spelled out together they fill gigabytes.
                column = self._column(field.name).cast(field.type)
                total.update(f"{field.name} {column.type} {len(column)}\n".encode())
                for chunk in column.chunks:
                    if pa.types.is_string(chunk.type):
                        total.update(np.asarray(pc.binary_length(chunk)).astype("<i4").tobytes())
                    else:
                        total.update(np.ascontiguousarray(np.asarray(chunk)).tobytes())
                if pa.types.is_string(column.type):
                    for chunk in column.chunks:
                        total.update(_letters(chunk))
            self._digest = total.hexdigest()
        return self._digest

    def write(self, uri: str) -> None:
        """Write the rows as one Parquet file, equal rows in equal bytes."""
        buffer = io.BytesIO()
        table = self.selected().cast(_plain(self.row_type)).combine_chunks()
        pq.write_table(table, buffer, compression="zstd", version="2.6")
        storage.write_bytes(uri, buffer.getvalue())

    @classmethod
    def read(cls, uri: str, row_type: type[Row]) -> Rows[Row]:
        """The rows of a file that ``write`` wrote.

        Raises:
            FileNotFoundError: there is none.
            ValueError: not Parquet, or with other columns than ``row_type``.
        """
        repeating = [f.name for f in schema(row_type) if f.name in _REPEATING]
        try:
            data = pa.py_buffer(storage.read_bytes(uri, limit=_TABLE_LIMIT))
            table = pq.read_table(pa.BufferReader(data), read_dictionary=repeating)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{uri} is no table: {error}") from None
        if table.column_names != schema(row_type).names:
            raise ValueError(
                f"{uri} has the columns {table.column_names}, not those of {row_type.__name__}: "
                "make it again with this version"
            )
        try:
            table = table.cast(schema(row_type)).unify_dictionaries().combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{uri} is no table of {row_type.__name__}: {error}") from None
        return cls(row_type, table)


def _cells(column: pa.Array | pa.ChunkedArray) -> Callable[[int], Any]:
    """What a column says in a row: from its memory, because Arrow's scalars take thrice as long."""
    if isinstance(column, pa.ChunkedArray):
        return lambda number: column[number].as_py()
    if pa.types.is_dictionary(column.type):
        code, value = np.asarray(column.indices).item, _cells(column.dictionary)
        return lambda number: value(code(number))
    if pa.types.is_string(column.type):
        _, offsets, letters = column.buffers()
        start = np.frombuffer(offsets, np.int32)[column.offset :].item
        text = memoryview(letters or b"")
        return lambda number: str(text[start(number) : start(number + 1)], "utf-8")
    return np.asarray(column).item


def _letters(strings: pa.StringArray) -> pa.Buffer | bytes:
    """The UTF-8 of all strings, one after the other, without a copy."""
    _, offsets, letters = strings.buffers()
    if letters is None:
        return b""
    ends = np.frombuffer(offsets, np.int32)
    first, last = ends[strings.offset], ends[strings.offset + len(strings)]
    return letters.slice(int(first), int(last - first))


def _plain(row_type: type[Any]) -> pa.Schema:
    """The schema with every string spelled out."""
    fields = [
        field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field
        for field in schema(row_type)
    ]
    return pa.schema(fields)
