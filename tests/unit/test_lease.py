"""Of two jobs at one place one proceeds, whatever becomes of the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import disk, lease, storage

ROOT = Path(__file__).parents[2]

# Takes the lease at once or says why not; says that it has it, and checks it when told to.
HOLDER = """
import sys
from infra import lease
try:
    with lease.hold(sys.argv[1], owner=sys.argv[2], seconds=float(sys.argv[3])) as held:
        print("held", flush=True)
        sys.stdin.readline()
        held.check()
        print("checked", flush=True)
except ValueError as error:
    print(error, flush=True)
"""


class Job:
    """Another process that wants the lease."""

    def __init__(self, uri: str, owner: str, *, seconds: float = 60.0, code: str = HOLDER) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, uri, owner, str(seconds)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def standing(uri: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(storage.read_bytes(f"{uri}/{lease.LEASE}"))
    return content


def of_another_machine(uri: str, *, seconds: float) -> None:
    """A lease whose holder cannot be looked at from here."""
    with lease.hold(uri, owner="far", seconds=seconds):
        content = {**standing(uri), "host": "far-away", "machine": "another", "pid": 1}
    storage.write_bytes(f"{uri}/{lease.LEASE}", json.dumps(content).encode())


def test_of_two_jobs_at_once_exactly_one_proceeds(tmp_path: Path) -> None:
    uri = str(tmp_path)
    jobs = [Job(uri, f"job-{number}") for number in range(2)]
    try:
        said = {job.says(): job for job in jobs}
        (refusal,) = said.keys() - {"held"}
        assert "another job (job-" in refusal and f"writes at {uri} since " in refusal
        assert "wait until it ends or, if it is dead, until its lease expires at " in refusal
        said["held"].go_on()
        assert said["held"].says() == "checked"
        assert said["held"].process.wait() == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        for job in jobs:
            job.end()


# Is killed over a shard, half of which it has written.
WRITER = """
import sys
from pathlib import Path
from infra import disk, lease
with lease.hold(sys.argv[1], owner="writer"), disk.aside(Path(sys.argv[1], sys.argv[2])) as aside:
    aside.write_bytes(b"half")
    print("written", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("name", ["shards/train-00000.tar", "corpus.json"])
def test_what_a_killed_job_has_left_is_cleared_by_the_next(tmp_path: Path, name: str) -> None:
    others = [".profile", ".config.original", "shards/.hidden", "shards/train-00001.tar"]
    for other in others:
        storage.write_bytes(tmp_path / other, b"somebody's")
    killed = Job(str(tmp_path), name, code=WRITER)
    assert killed.says() == "written"
    killed.end()
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    (left,) = before - {*others, lease.LEASE}
    assert (tmp_path / left).read_bytes() == b"half"
    with lease.hold(str(tmp_path), owner="next"):
        after = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert after == {*others, lease.LEASE}


def test_what_another_writes_to_take_the_lease_is_not_cleared(tmp_path: Path) -> None:
    place = tmp_path / lease.LEASE
    with disk.aside(place, os.link) as aside, lease.hold(str(tmp_path), owner="one"):
        assert aside.exists()
        place.unlink()
    assert [path.name for path in tmp_path.iterdir()] == [lease.LEASE]


def test_a_killed_job_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path)
    killed = Job(uri, "killed")
    assert killed.says() == "held"
    killed.end()
    assert standing(uri)["owner"] == "killed"
    with lease.hold(uri, owner="next") as held:
        held.check()
        assert standing(uri)["owner"] == "next"
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_was_asleep_for_too_long_loses_its_lease_and_stops(tmp_path: Path) -> None:
    uri = str(tmp_path)
    asleep = Job(uri, "asleep", seconds=0.5)
    try:
        assert asleep.says() == "held"
        os.kill(asleep.process.pid, signal.SIGSTOP)
        with pytest.raises(ValueError, match=r"another job \(asleep on"):
            lease.hold(uri, owner="early").__enter__()
        time.sleep(0.5 + lease.GRACE + 0.2)
        with lease.hold(uri, owner="next") as held:
            os.kill(asleep.process.pid, signal.SIGCONT)
            asleep.go_on()
            assert f"the lease on {uri} was lost" in asleep.says()
            held.check()
            assert standing(uri)["owner"] == "next"
    finally:
        asleep.end()


def test_a_lease_from_another_machine_counts_until_it_expires(tmp_path: Path) -> None:
    uri = str(tmp_path)
    of_another_machine(uri, seconds=0.3)
    with pytest.raises(ValueError, match=r"another job \(far on far-away, process 1\) writes at"):
        lease.hold(uri, owner="early").__enter__()
    time.sleep(0.3 + lease.GRACE + 0.2)
    with lease.hold(uri, owner="next"):
        assert standing(uri)["owner"] == "next"


def test_a_wrong_clock_on_the_machine_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path)
    of_another_machine(uri, seconds=60)
    for wrong in (-86_400.0, 86_400.0):
        clock = time.time() + wrong
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        with pytest.raises(ValueError, match="another job"):
            lease.hold(uri, owner="early").__enter__()


def test_a_lease_that_lives_is_renewed(tmp_path: Path) -> None:
    uri = str(tmp_path)
    with lease.hold(uri, owner="long", seconds=0.3) as held:
        end = time.monotonic() + 30
        while standing(uri)["renewals"] < 3 and time.monotonic() < end:  # type: ignore[operator]
            time.sleep(0.05)
        assert standing(uri)["renewals"] >= 3  # type: ignore[operator]
        held.check()


def test_a_lease_that_somebody_removed_is_lost(tmp_path: Path) -> None:
    uri = str(tmp_path)
    with lease.hold(uri, owner="one") as held:
        storage.remove(f"{uri}/{lease.LEASE}")
        with lease.hold(uri, owner="two") as other:
            for _ in range(2):
                with pytest.raises(ValueError, match="was lost"):
                    held.check()
            other.check()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_lease_is_told(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}", b"\xff"):
        (tmp_path / lease.LEASE).write_bytes(content)
        with pytest.raises(ValueError, match=r"lease\.json is no lease: remove it"):
            lease.hold(str(tmp_path), owner="one").__enter__()
