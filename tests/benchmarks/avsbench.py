"""A skeleton of all of AVSBench, checked, sharded, read and counted: time and peak memory.

::

    python -m tests.benchmarks.avsbench

Every clip of the three real tables (4,932 + 424 + 11,356) with its real name and split, and tiny
media. S4 and MS3 lie in folders, AVSBench-semantic in one zip file for each of its parts. Each
subset is checked and sharded in a process of its own, which tells its own peak memory and that of
the largest of its workers.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from infra import cluster
from infra.corpus import Corpus
from pipelines import shard_avsbench
from pipelines.shard_avsbench import ShardAvsbenchConfig
from synth import avsbench
from tests import made_avsbench as made

LABELS = Path(__file__).parents[3] / "shared" / "labels"
SUBSETS = ("s4", "ms3", "avss")


def build(folder: Path, clips: list[made.MadeClip]) -> None:
    """Loose folders for AVSBench-object, zip files for AVSBench-semantic."""
    loose = [clip for clip in clips if clip.subset not in made.SEMANTIC]
    packed = [clip for clip in clips if clip.subset in made.SEMANTIC]
    made.write_tree(folder, loose)
    made.write_files(folder / "semantic", made.tables(packed))
    contents = made.contents()
    for part in made.SEMANTIC:
        files = (file for clip in packed if clip.subset == part for file in made.files_of(clip))
        made.write_zip(
            folder / "semantic" / f"{part}.zip", ((path, contents[kind]) for path, kind in files)
        )


def measure(tree: str, subset: str, target: str, expected: Path) -> None:
    """Check and shard one subset in this process, and compare it with what it has to hold."""
    checked = _timed(
        f"{subset} check",
        lambda: shard_avsbench.run(ShardAvsbenchConfig(tree=tree, subset=subset, check=True)),  # type: ignore[arg-type]
    )
    for name in ("listed", "usable", "share_video_with_train", "odd"):
        print(f"  {name}: {json.dumps(checked[name])}", flush=True)
    job = ShardAvsbenchConfig(tree=tree, subset=subset, uri=target)  # type: ignore[arg-type]
    summary = _timed(f"{subset} shard", lambda: shard_avsbench.run(job))
    print(f"  {json.dumps({n: summary[n] for n in ('splits', 'shards', 'bytes_made')})}")
    _timed(f"{subset} shard again", lambda: shard_avsbench.run(job))
    verify(Corpus.open(target), subset, json.loads(expected.read_text()))


def verify(corpus: Corpus, subset: str, clips: list[dict[str, str]]) -> None:
    """Every clip is there once, in its split, and is read with all its members."""
    started = time.perf_counter()
    wanted: Counter[str] = Counter()
    listed: Counter[tuple[str, str]] = Counter()
    for fields in clips:
        clip = made.MadeClip(**fields)
        if clip.subset == subset or (subset == "avss" and clip.subset in made.SEMANTIC):
            key = avsbench.clip_key(clip.subset, clip.split, clip.name)
            listed[clip.split, key] += 1
            kinds = Counter(kind for _, kind in made.files_of(clip))
            wanted["frame"] += kinds["png"] + kinds["jpg"]
            wanted["mask"] += kinds["mask"] + kinds["labels"]
            wanted["label"] += kinds["labels"]
            wanted["audio"] += kinds["wav5"] + kinds["wav10"]
    members: Counter[str] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    for split in corpus.splits:
        for row in range(len(corpus.table(split))):
            sample = corpus.read(split, row)
            found[split, sample.key] += 1
            members.update(re.match(r"[a-z]+", name)[0] for name in sample.members)  # type: ignore[index]
    if found != listed:
        raise SystemExit(f"{subset}: other clips than the table has")
    if members != wanted:
        raise SystemExit(f"{subset}: {dict(members)} where {dict(wanted)} are published")
    counts = {split: len(corpus.table(split)) for split in corpus.splits}
    print(
        f"{f'{subset} read':<20}{time.perf_counter() - started:8.1f} s   "
        f"verified: {json.dumps(counts)} {json.dumps(dict(members))}",
        flush=True,
    )


def _timed(label: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    started = time.perf_counter()
    result = call()
    workers = [_peak(child.pid) for child in psutil.Process().children(recursive=True)]
    print(
        f"{label:<20}{time.perf_counter() - started:8.1f} s   peak {_peak():.2f} GiB, "
        f"largest other process {max(workers, default=0.0):.2f} GiB",
        flush=True,
    )
    return result


def _peak(process: int | str = "self") -> float:
    """GiB of main memory at most of a process so far."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # it has ended
        return 0.0
    return int(found[1]) / 2**20 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="every 100th clip: does it run at all")
    parser.add_argument("--labels", type=Path, default=LABELS, help="folder of the real tables")
    parser.add_argument("--subset", help="of a tree that stands, in this process")
    parser.add_argument("--work", type=Path, help="folder of that tree")
    options = parser.parse_args()
    if options.subset:
        logging.basicConfig(level=logging.WARNING)
        tree = options.work / "tree"
        if options.subset == "avss":
            tree /= "semantic"
        target = options.work / "corpora" / options.subset
        # What the check says of each clip is not of interest here.
        shard_avsbench.say = lambda text: None  # type: ignore[assignment]
        cluster.connect()
        measure(str(tree), options.subset, str(target), options.work / "clips.json")
        return
    clips = made.published(options.labels)[:: 100 if options.smoke else 1]
    print(f"{date.today()}, {len(clips)} clips", flush=True)
    with tempfile.TemporaryDirectory(prefix="save-avsbench-") as folder:
        started = time.perf_counter()
        build(Path(folder) / "tree", clips)
        (Path(folder) / "clips.json").write_text(json.dumps([vars(clip) for clip in clips]))
        files = sum(1 for path in Path(folder).rglob("*") if path.is_file())
        spent = time.perf_counter() - started
        print(f"{'build':<20}{spent:8.1f} s   {files} files on the disk", flush=True)
        for subset in SUBSETS:
            module = [sys.executable, "-m", "tests.benchmarks.avsbench"]
            subprocess.run([*module, "--subset", subset, "--work", folder], check=True)


if __name__ == "__main__":
    main()
