"""JSON files too long to be held: one object with arrays of records, read a record at a time.

Python's own parser does the parsing, out of a window that holds a record and what came with it.
Incremental parsers are stricter (``NaN``, which many tools write, ends the file) and build the
path of every value, so that a few hundred thousand opening brackets fill the memory.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from infra import storage

# Characters. What a value takes in memory is up to twenty times as much.
MAX_RECORD = 4 << 20

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(strict=False)


def read_records(uri: str) -> Iterator[tuple[str, Any]]:
    """``(name of the array, record)`` for every record of every array in the outermost object.

    NaN and Infinity are read as Python's own ``json`` reads and writes them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, or ends early, or a record is too long or too deep.
    """
    with storage.open_read(uri) as file:
        yield from _records(_Window(uri, file))


def _records(window: _Window) -> Iterator[tuple[str, Any]]:
    window.take("{")
    while window.next() != "}":
        name = window.name()
        window.take(":")
        if window.next() == "[":
            window.take("[")
            while window.next() != "]":
                yield name, window.value()
                if window.next() != "]":
                    window.take(",")
            window.take("]")
        else:
            window.value()
        if window.next() != "}":
            window.take(",")


class _Window:
    """The part of a long JSON text that is being read: a record, and what came with it."""

    def __init__(self, uri: str, file: BinaryIO) -> None:
        self._uri = uri
        self._file = file
        # Bytes that are no UTF-8 spoil the text that they are in, not the file.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""
        self._at = 0
        self._read = 0

    def next(self) -> str:
        """The character that comes next behind any space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space
            self._at = space.end()
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> None:
        """Step over a character; ValueError where another one comes next."""
        if self.next() != expected:
            raise self._damage(f"{expected!r} is missing", self._at)
        self._at += 1

    def name(self) -> str:
        """Read the name that comes next; ValueError where there is none."""
        if self.next() != '"':
            raise self._damage("a name is missing", self._at)
        return self.value()

    def value(self) -> Any:
        """Read the value that comes next; ValueError where there is none."""
        self.next()
        while True:
            reason, place = "it ends inside a value", len(self._text)
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # A number at the window's edge might go on behind it.
                if end < len(self._text):
                    self._at = end
                    return value
            except RecursionError:
                raise self._damage("brackets are nested too deeply", self._at) from None
            except json.JSONDecodeError as error:
                reason, place = error.msg, error.pos
            except ValueError as error:  # a whole number of thousands of digits
                reason, place = str(error), self._at
            if len(self._text) - self._at > MAX_RECORD:
                raise self._damage(f"{reason}, or more than {MAX_RECORD} in one value", place)
            if not self._read_on():
                raise self._damage(reason, place)

    def _read_on(self) -> bool:
        data = self._file.read(_CHUNK)
        self._read += len(data)
        self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        self._at = 0
        return bool(data)

    def _damage(self, reason: str, place: int) -> ValueError:
        byte = self._read - len(self._text) + place
        return ValueError(
            f"{self._uri} is no whole JSON object, near byte {byte} of the {self._read} read: "
            f"{reason[:200]}: fetch or unpack it again"
        )
