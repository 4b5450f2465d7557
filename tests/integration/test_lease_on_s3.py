"""The lease on a real SeaweedFS: of two jobs one proceeds, and a dead one's lease runs out."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra import lease, storage
from tests.integration.conftest import ObjectStore
from tests.integration.fault_proxy import fault_proxy
from tests.integration.servers import aws_variables, uploads_under_way
from tests.unit.test_lease import Job, standing

pytestmark = pytest.mark.integration


def test_of_two_jobs_at_once_exactly_one_proceeds(seaweedfs: ObjectStore) -> None:
    uri = f"{seaweedfs.uri}/two"
    jobs = [Job(uri, f"job-{number}") for number in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            said = dict(zip(pool.map(lambda job: job.says(), jobs), jobs, strict=True))
        (refusal,) = said.keys() - {"held"}
        assert "another job (job-" in refusal and f"writes at {uri} since " in refusal
        said["held"].go_on()
        assert said["held"].says() == "checked"
        assert said["held"].process.wait() == 0
        assert storage.list_files(uri) == []
    finally:
        for job in jobs:
            job.end()


def test_the_lease_of_a_killed_holder_expires_and_the_next_takes_over(
    seaweedfs: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{seaweedfs.uri}/killed"
    killed = Job(uri, "killed", seconds=2)
    assert killed.says() == "held"
    killed.end()
    # As another machine would see it, which cannot look for the process.
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    with pytest.raises(ValueError, match=r"another job \(killed on"):
        lease.hold(uri, owner="early").__enter__()
    time.sleep(2 + lease.GRACE + 1.1)
    with lease.hold(uri, owner="next") as held:
        held.check()
        assert standing(uri)["owner"] == "next"
    assert storage.list_files(uri) == []


# Is killed over an upload, of which one part is there.
UPLOADER = """
import sys
import boto3
bucket, _, prefix = sys.argv[1].removeprefix("s3://").partition("/")
store = boto3.client("s3", endpoint_url=sys.argv[2])
upload = {"Bucket": bucket, "Key": f"{prefix}/shards/train-00000.tar"}
upload["UploadId"] = store.create_multipart_upload(**upload)["UploadId"]
store.upload_part(**upload, PartNumber=1, Body=bytes(5 << 20))
print("uploading", flush=True)
sys.stdin.readline()
"""


def test_the_parts_that_a_killed_job_has_uploaded_are_cleared_by_the_next(
    seaweedfs: ObjectStore,
) -> None:
    uris = [f"{seaweedfs.uri}/{name}" for name in ("parts", "parts_of_others")]
    for uri in uris:
        killed = Job(uri, seaweedfs.endpoint, code=UPLOADER)
        assert killed.says() == "uploading"
        killed.end()
    keys = [f"{name}/shards/train-00000.tar" for name in ("parts", "parts_of_others")]
    assert sorted(uploads_under_way(seaweedfs)) == keys
    with lease.hold(uris[0], owner="next"):
        assert uploads_under_way(seaweedfs) == keys[1:]
    with lease.hold(uris[1], owner="next"):
        assert uploads_under_way(seaweedfs) == []


def test_a_lease_is_held_through_answers_that_are_lost(seaweedfs: ObjectStore) -> None:
    uri = f"{seaweedfs.uri}/stumbling"
    with (
        fault_proxy(seaweedfs.endpoint, seed=3, rate=0.4, pause=0.1) as proxy,
        aws_variables({"AWS_ENDPOINT_URL": proxy.endpoint}),
        lease.hold(uri, owner="tenacious") as held,
    ):
        for renewals in range(1, 11):
            held.check()
            assert json.loads(storage.read_bytes(f"{uri}/{lease.LEASE}"))["renewals"] == renewals
    assert any(kind.endswith("after") and not kind.startswith("slow") for kind in proxy.faults)
    assert storage.list_files(uri) == []
