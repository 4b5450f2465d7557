"""Tables as users leave them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from infra import storage
from synth.sources.csv_rows import read_rows

COLUMNS = ["id", "label", "split"]


def table(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_headers_comments_marks_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    uri = table(
        tmp_path,
        "\ufeff# made on Sunday\r\n# id, label, split\r\nid,label,split\r\n\r\n"
        "a,dog,train\r\n,,\r\n\ufeffid,label,split\r\nb,cat,test\r\n",
    )
    expected = [
        {"id": "a", "label": "dog", "split": "train"},
        {"id": "b", "label": "cat", "split": "test"},
    ]
    assert list(read_rows(uri, COLUMNS)) == expected
    assert list(read_rows(uri)) == expected


def test_a_file_without_header_is_read_by_position(tmp_path: Path) -> None:
    uri = table(tmp_path, 'a, "dog barking, far away ""wow""", train\nb,Kätzchen,test')
    assert [row["label"] for row in read_rows(uri, COLUMNS)] == [
        'dog barking, far away "wow"',
        "Kätzchen",
    ]


def test_columns_in_another_order_are_found_by_name(tmp_path: Path) -> None:
    uri = table(tmp_path, "split,more,id\ntrain,x,a\nid,label,split\nb,dog,test\n")
    rows = list(read_rows(uri, COLUMNS, required=("id",)))
    assert [(row["id"], row["label"], row["split"]) for row in rows] == [
        ("a", "", "train"),
        ("b", "dog", "test"),
    ]


def test_a_short_long_or_unclosed_row_spoils_no_other(tmp_path: Path) -> None:
    uri = table(
        tmp_path, 'id,label,split\na\n"b,dog,train\nc,dog,test,more,still more\nd,cat,test\n'
    )
    rows = [tuple(row.values()) for row in map(dict, read_rows(uri))]
    assert [set(row) for row in rows[:2]] == [{"a", ""}, {"b,dog,train", ""}]
    assert [row["id"] for row in read_rows(uri)][2:] == ["c", "d"]


def test_a_huge_cell_is_left_out_and_counted(tmp_path: Path) -> None:
    uri = table(tmp_path, f"id,label,split\na,{'x' * 3_000_000},train\nb,cat,test\n")
    left_out: Counter[str] = Counter()
    assert [row["id"] for row in read_rows(uri, left_out=left_out)] == ["b"]
    assert left_out == {"line too long": 1}


def test_a_long_table_is_fetched_in_few_large_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = "cät" * 40
    uri = table(tmp_path, "id,label,split\n" + f"a,{label},train\n" * 50_000)
    pieces: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, offset: int, size: int) -> bytes:
        pieces.append(size)
        return read_range(uri, offset, size)

    monkeypatch.setattr(storage, "read_range", counted)
    assert sum(row["label"] == label for row in read_rows(uri)) == 50_000
    assert pieces[:2] == [4 << 20, 4 << 20] and len(pieces) == 3


def test_the_limit_of_the_process_is_left_alone(tmp_path: Path) -> None:
    uri = table(tmp_path, f"id,label,split\na,{'x' * 30_000},train\nb,cat,test\n")
    before = csv.field_size_limit(10_000)
    try:
        assert [row["id"] for row in read_rows(uri)] == ["b"]
        assert csv.field_size_limit() == 10_000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,label,split\na,dog,train\nb,\xff\xfe,test\n", "table.csv line 3: not text in UTF-8"),
        (b"id,label,split\na,d\0g,train\n", "table.csv line 2: not text in UTF-8"),
        ("id,label,split\n".encode("utf-16"), "line 1: not text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "line 1: not text in UTF-8"),
        (b"", "is no table with the columns id, label, split"),
        (b"<html>\n<p>gone</p>\n</html>\n", "is no table with the columns"),
        (b"id,name,split\na,dog,train\n", "no column label among id, name, split"),
    ],
)
def test_what_is_no_table_is_an_error_that_names_it(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        list(read_rows(table(tmp_path, content), COLUMNS, required=COLUMNS))


def test_a_missing_table_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        list(read_rows(str(tmp_path / "none.csv")))
    with pytest.raises(ValueError, match="a folder stands where a file is needed"):
        list(read_rows(str(tmp_path)))
