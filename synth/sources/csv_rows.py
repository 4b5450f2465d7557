"""Tables of comma-separated values as their publishers and users leave them.

UTF-8 with or without a byte order mark, any line endings, quoted commas, spaces after commas,
empty lines, comments (``#`` in the first cell), a header, none, or one that comes again where
files were joined. A line is a row: no table read here breaks a cell over lines, and so a quote
that nobody closed spoils its own row and no other.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from infra import storage

# Characters. Far more than an honest row has, and less than ``csv.field_size_limit()`` is unless
# somebody changed it: that limit belongs to the whole process and is left alone.
_MAX_LINE = 1 << 16


def read_rows(
    uri: str,
    columns: Sequence[str] | None = None,
    *,
    required: Collection[str] = (),
    left_out: Counter[str] | None = None,
) -> Iterator[dict[str, str]]:
    """Every row as column -> cell without surrounding space, one row in memory.

    Cells that a row lacks are empty, and those beyond its last column are dropped.

    Args:
        columns: the publisher's columns in the publisher's order. The file may then lack a
            header, and every row has these keys at least. Without them its first row is the
            header.
        required: the columns without which a header is that of another table.
        left_out: counts the lines that are too long to be a row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no text in UTF-8, no header where one is needed, or one without the required
            columns, or not a single row that could be one of this table.
    """
    known = set(columns or ())
    names = list(columns or ())
    needed = max((names.index(name) + 1 for name in required if name in known), default=len(names))
    is_table = False
    for line, cells in read_cells(uri, left_out=left_out):
        if not known or _is_header(cells, known):
            missing = set(required).difference(cells)
            if missing and not is_table:
                raise ValueError(
                    f"{uri} line {line}: no column {', '.join(sorted(missing))} among "
                    f"{', '.join(cells)[:200]}: give the table as its publisher wrote it"
                )
            if not missing:
                names = cells
                known = known or set(cells)
            is_table = True
            continue
        is_table = is_table or len(cells) >= needed
        row = dict.fromkeys(known, "")
        row.update(zip(names, cells, strict=False))
        yield row
    if not is_table:
        expected = f" with the columns {', '.join(columns)}" if columns else ""
        raise ValueError(f"{uri} is no table{expected}: give it as its publisher wrote it")


def _is_header(cells: list[str], known: set[str]) -> bool:
    """Two names are enough: a row of another table's columns must not pass for data."""
    if known.isdisjoint(cells):
        return False
    return len(known.intersection(cells)) >= min(2, len(cells), len(known))


def read_cells(
    uri: str, *, left_out: Counter[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """``(line number from 1, cells)`` of every line but empty ones and comments.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not text in UTF-8.
    """
    # Bytes that are no UTF-8 become surrogates, so that the line with them is known.
    file = storage.open_read(uri)
    with io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape") as text:
        number = 0
        while line := text.readline(_MAX_LINE):
            number += 1
            _check_text(uri, number, line)
            cells = _split(line)
            if cells is None:
                while line and not line.endswith("\n"):
                    line = text.readline(_MAX_LINE)
                if left_out is not None:
                    left_out["line too long"] += 1
            elif any(cells) and not cells[0].startswith("#"):
                yield number, cells


def _check_text(uri: str, number: int, line: str) -> None:
    if line.isascii() and "\0" not in line:
        return
    try:
        line.encode()
        damaged = "\0" in line
    except UnicodeEncodeError:
        damaged = True
    if damaged:
        raise ValueError(
            f"{uri} line {number}: not text in UTF-8: unpack the table or save it as UTF-8"
        )


def _split(line: str) -> list[str] | None:
    """The cells of a line, or None where it is longer than a row can be."""
    if len(line) >= _MAX_LINE:
        return None
    try:
        cells = next(csv.reader([line.strip("\ufeff\r\n")], skipinitialspace=True), [])
    except csv.Error:  # somebody set the limit of the process lower
        return None
    return [cell.strip() for cell in cells]
