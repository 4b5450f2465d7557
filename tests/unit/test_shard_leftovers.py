"""A writer of shards that is killed leaves nothing behind in the machine's temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from infra.shards import Sample, write_shard

def samples():
    for number in range(9):
        meta = {"scene": "s", "classes": ["dog"], "frames": 1}
        yield Sample(key=f"k{number}", members={"frame0.jpg": bytes(1 << 20)}, meta=meta)
    print("written", flush=True)
    sys.stdin.readline()

write_shard(sys.argv[1], "train", 0, samples(), plan="p")
"""


def test_a_writer_that_is_killed_over_a_shard_leaves_nothing_behind(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "corpus")],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(spool)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"written\n"
        writer.kill()
    assert list(spool.iterdir()) == []
    assert not (tmp_path / "corpus").exists()
