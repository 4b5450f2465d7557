"""JSON too long to be held is read a record at a time, wherever its bytes are cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from synth.sources.json_records import read_records
from tests.made_coco import (
    annotation,
    coco_json,
    coco_photograph,
    picture,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_byte_order_mark_and_damaged_text_are_read_over(tmp_path: Path) -> None:
    data = json.dumps({"a": [{"name": "wörter", "b": "X"}]}, ensure_ascii=False, indent=1)
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + data.encode().replace(b"X", b"\xff"))
    assert list(read_records(str(path))) == [("a", {"name": "wörter", "b": "\ufffd"})]


def test_a_record_may_lie_across_any_number_of_reads(tmp_path: Path) -> None:
    rows: list[Any] = ["é" * length for length in (0, 1, 1 << 19, (1 << 20) + 3)] * 2 + [12345] * 9
    rows += [[1.5e-3] * 300_000]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": rows, "b": 1}, ensure_ascii=False))
    assert [value for _, value in read_records(str(path))] == rows


def test_a_number_may_lie_across_two_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for before in range((1 << 20) - 8, (1 << 20) + 2):
        path.write_text('{"a": ['.ljust(before) + "12345, -1.5e-3]}")
        assert [value for _, value in read_records(str(path))] == [12345, -0.0015]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    polygon = json.dumps([[round(1.37 * k % 640, 2) for k in range(1200)]])
    runs = json.dumps({"size": [480, 640], "counts": "o0Q1[2mb0" * 2900})
    (tmp_path / "annotations").mkdir()
    with (tmp_path / "annotations/instances_train2017.json").open("w") as file:
        file.write('{"annotations": [')
        for number in range(3000):
            # Two of three are of a class, and are kept on disk.
            record = annotation(number, number % 500, 1 + number % 3 * 2, "HERE")
            text = json.dumps(record).replace('"HERE"', polygon if number % 4 == 1 else runs)
            file.write(("," if number else "") + text)
        rest = coco_json([coco_photograph(number) for number in range(500)], [])
        del rest["annotations"]
        file.write("]," + json.dumps(rest)[1:])
        assert file.tell() > 60e6
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from Linux's /proc")
    (tmp_path / "train2017").mkdir()
    for number in range(500):
        (tmp_path / picture(number)).write_bytes(b"")
    code = """
import json, re, sys
from pathlib import Path
from synth.sources import coco
from synth.taxonomy import Labels
# getrusage would count what the parent of this process had in memory as well.
status = Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) >> 10
before, labels = peak(), Labels("coco")
found = [len(c.annotations) for c in coco.candidates(coco.CocoConfig(folder=sys.argv[1]), labels)]
print(json.dumps([len(found), sum(found), peak() - before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    photographs, annotations, grown_mb = json.loads(done.stdout)
    assert (photographs, annotations) == (500, 2000)
    assert grown_mb < 32, grown_mb
