"""Tables of rows: the manners of a list, and content that does not depend on how it is kept."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synth.rows import Rows, schema
from synth.tables import Clip, Refused


def clip(number: int, **more: object) -> Clip:
    values = {
        "id": f"{number:06d}.wav",
        "class_name": ("dog", "cat", "Kuh, groß")[number % 3],
        "uri": f"vggsound:{number:06d}.wav",
        "source": "vggsound",
        "licence": ("CC BY 4.0", "")[number % 2],
        "author": "",
        "origin": "",
        "video": f"{number // 2:011d}",
        "seconds": 1.0 + number / 7,
        "loudest": 0.0,
        "rate": 16_000 + number,
        "rms": 0.1,
        "peak": 0.5,
        "sha256": f"{number * 2654435761 % 2**32:08x}" if number else "",
        "file_sha256": f"{number:064x}",
    }
    return Clip(**{**values, **more})  # type: ignore[arg-type]


ROWS = [clip(number) for number in range(20)]


def table(rows: list[Clip] = ROWS) -> Rows[Clip]:
    return Rows.of(Clip, rows)


def pieces(sizes: list[int], rows: list[Clip] = ROWS) -> Rows[Clip]:
    """The rows in chunks of these sizes, each with a dictionary of its own."""
    edges = np.cumsum([0, *sizes]).tolist()
    assert edges[-1] == len(rows)
    parts = [table(rows[a:b]).table for a, b in itertools.pairwise(edges)]
    return Rows(Clip, pa.concat_tables(parts))


def test_rows_have_the_manners_of_a_list() -> None:
    rows = table()
    assert len(rows) == 20 and list(rows) == ROWS
    assert rows[0] == ROWS[0] and rows[-1] == ROWS[-1] and rows[7] == ROWS[7]
    for part in (slice(3, 9), slice(None, None, -1), slice(-1, None), slice(2, 19, 5), slice(0)):
        assert list(rows[part]) == ROWS[part]
    assert list(rows[::-1][2:8][::2]) == ROWS[::-1][2:8][::2]
    assert rows[::-1][4] == ROWS[::-1][4]
    with pytest.raises(IndexError):
        rows[20]
    with pytest.raises(IndexError):
        rows[3:5][2]
    assert not rows[:0] and list(Rows.of(Clip, [])) == []


@pytest.mark.parametrize("sizes", [[20], [7, 13]])
def test_a_row_of_a_part_of_a_table_is_that_row(sizes: list[int]) -> None:
    rows = Rows(Clip, pieces(sizes).table.slice(3, 9))
    assert [rows[number] for number in range(9)] == ROWS[3:12]
    assert {type(value) for value in vars(rows[2]).values()} == {str, int, float}


def test_rows_are_taken_by_position_and_by_mask_of_what_is_chosen_already() -> None:
    chosen = table()[::-1].take(np.asarray([5, 0, 5, 19]))
    assert list(chosen) == [ROWS[14], ROWS[19], ROWS[14], ROWS[0]]
    assert list(chosen.take(np.asarray([True, False, False, True]))) == [ROWS[14], ROWS[0]]
    assert list(chosen.take(np.zeros(4, bool))) == []
    assert list(Rows.joined(Clip, [chosen, table()[:2]]).sorted_by_id()) == sorted(
        [ROWS[14], ROWS[19], ROWS[14], ROWS[0], ROWS[0], ROWS[1]], key=lambda row: row.id
    )


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [0, 7, 0, 13], [19, 1]])
def test_columns_and_content_do_not_depend_on_chunks(sizes: list[int]) -> None:
    for rows in (pieces(sizes), pieces(sizes)[::-1], pieces(sizes).take(np.arange(20) % 3 > 0)):
        expected = list(rows)
        assert rows == table(expected) and rows.digest() == table(expected).digest()
        assert [rows[i] for i in range(len(rows))] == expected
        assert rows.numbers("rate").tolist() == [row.rate for row in expected]
        for name in ("id", "class_name", "licence", "sha256"):
            texts = [getattr(row, name) for row in expected]
            assert rows.texts(name) == texts
            codes, values = rows.coded(name)
            assert [values[code] for code in codes] == texts
            assert len(set(values)) == len(values)
        for name in ("id", "sha256"):
            texts = [getattr(row, name) for row in expected]
            assert [texts[i] for i in rows.order_by(name)] == sorted(texts)
            assert rows.given(name).tolist() == [bool(text) for text in texts]


def test_the_digest_does_not_depend_on_the_order_of_a_dictionary() -> None:
    plain = table()
    names = plain.table.column("class_name").to_pylist()
    known = ["not used", *sorted(set(names), reverse=True)]
    coded = pa.DictionaryArray.from_arrays(
        pa.array([known.index(name) for name in names], pa.int32()), pa.array(known)
    )
    place = plain.table.column_names.index("class_name")
    field = plain.table.schema.field("class_name")
    other = Rows(Clip, plain.table.set_column(place, field, coded))
    assert other.coded("class_name")[1] != plain.coded("class_name")[1]
    assert other == plain and other.digest() == plain.digest()


def test_any_change_of_content_or_order_is_another_digest() -> None:
    changed = [
        ROWS[:-1],
        ROWS[::-1],
        [dataclasses.replace(ROWS[0], rms=0.2), *ROWS[1:]],
        [dataclasses.replace(ROWS[0], class_name="dog "), *ROWS[1:]],
        # The same letters, parted elsewhere.
        [
            dataclasses.replace(ROWS[0], author="ab"),
            dataclasses.replace(ROWS[1], author="c"),
            *ROWS[2:],
        ],
        [
            dataclasses.replace(ROWS[0], author="a"),
            dataclasses.replace(ROWS[1], author="bc"),
            *ROWS[2:],
        ],
    ]
    digests = {table(rows).digest() for rows in [ROWS, *changed]}
    assert len(digests) == 1 + len(changed)
    assert table() != Rows.of(Refused, []) and table() != ROWS


def test_rows_read_back_as_written_and_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    for name, rows in (("a", table()), ("b", pieces([3, 17])), ("c", table()[::-1][::-1])):
        rows.write(str(tmp_path / name))
        back = Rows.read(str(tmp_path / name), Clip)
        assert back == rows and list(back) == ROWS
        assert back.table.schema == schema(Clip)
    written = [(tmp_path / name).read_bytes() for name in "abc"]
    assert written[0] == written[1] == written[2]
    # Anybody's reader gets plain strings.
    assert pq.read_table(tmp_path / "a").to_pylist() == [vars(row) for row in ROWS]
    Rows.of(Clip, []).write(str(tmp_path / "none"))
    assert len(Rows.read(str(tmp_path / "none"), Clip)) == 0


def test_a_file_of_other_columns_or_types_is_refused_by_name(tmp_path: Path) -> None:
    Rows.of(Refused, [Refused(id="a", source="b", reason="c")]).write(str(tmp_path / "refused"))
    with pytest.raises(ValueError, match="not those of Clip"):
        Rows.read(str(tmp_path / "refused"), Clip)
    place = schema(Clip).names.index("rate")
    wrong = table().table.set_column(place, "rate", pa.array(["fast"] * 20))
    assert wrong.column_names == schema(Clip).names
    pq.write_table(wrong, tmp_path / "wrong")
    with pytest.raises(ValueError, match="is no table of Clip"):
        Rows.read(str(tmp_path / "wrong"), Clip)
    (tmp_path / "text").write_bytes(b"no table")
    with pytest.raises(ValueError, match="is no table"):
        Rows.read(str(tmp_path / "text"), Clip)


def test_a_selection_travels_to_other_processes() -> None:
    rows = table()[4:12]
    assert rows[0] == ROWS[4]  # whatever it keeps to be fast must not be in the way
    assert list(pickle.loads(pickle.dumps(rows))) == ROWS[4:12]


def test_a_hundred_thousand_rows_are_columns_and_selections_of_them_cost_their_positions() -> None:
    rows = Rows.of(Clip, (clip(number) for number in range(100_000)))
    codes, classes = rows.coded("class_name")
    tracemalloc.start()
    parts = [rows.take(codes == code) for code in range(len(classes))]
    halves = [part[::2].sorted_by_id() for part in parts]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, parts)) == 100_000
    assert all(part.table is rows.table for part in halves)
    # As many objects would be some 100 MB.
    assert peak < 8 << 20
    assert halves[0][-1].class_name == classes[0]
    assert sum(1 for _ in rows[::10]) == 10_000
    assert Rows.joined(Clip, [rows[:50_000], rows[50_000:]]).digest() == rows.digest()
