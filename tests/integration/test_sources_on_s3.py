"""The field's own collections are read from ``s3://`` as from a folder, on a real SeaweedFS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra import storage
from synth import assets
from synth.catalog import Catalog
from synth.looking import build_catalog
from synth.sources import Offer
from tests.integration.conftest import ObjectStore
from tests.integration.servers import aws_variables
from tests.made_sources import (
    write_avs_synthetic,
    write_coco,
    write_esc50,
    write_open_images,
    write_vggsound,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Offer:
    folder = tmp_path_factory.mktemp("collections")
    return Offer(
        None,
        {
            "coco": write_coco(folder / "coco", photographs=8),
            "open_images": write_open_images(folder / "open_images")[0],
            "avs_synthetic": write_avs_synthetic(folder / "avs_synthetic")[0],
            "vggsound": write_vggsound(folder / "vggsound", clips=2),
            "esc50": write_esc50(folder / "esc50", clips=2),
        },
    )


@pytest.fixture(scope="module")
def there(here: Offer, seaweedfs: ObjectStore) -> Offer:
    """The same on S3."""
    sources = {}
    for name, source in here.sources.items():
        uri = f"{seaweedfs.uri}/collections/{name}"
        for path in storage.iter_files(source.folder):
            storage.upload(Path(source.folder, path), f"{uri}/{path}")
        sources[name] = replace(source, folder=uri)
    return Offer(None, sources)


@pytest.fixture(scope="module")
def catalog(there: Offer) -> Catalog:
    return build_catalog(there.roots, there)


def test_collections_on_s3_offer_what_they_do_in_a_folder(here: Offer, there: Offer) -> None:
    offered = list(there)
    assert offered == list(here)
    assert {candidate.source for candidate in offered} == here.sources.keys()
    for name, labels in here.labels.items():
        assert there.labels[name].left_out == labels.left_out
        assert there.labels[name].unknown == labels.unknown


def test_a_catalog_of_collections_on_s3_is_that_of_the_folders(
    here: Offer, catalog: Catalog
) -> None:
    assert all(folder.startswith("s3://") for folder in catalog.roots.values())
    assert len(catalog.objects) > 0 and len(catalog.clips) > 0
    assert catalog.fingerprint == build_catalog(here.roots, here).fingerprint


def test_an_account_that_may_not_read_stops_the_job(there: Offer, catalog: Catalog) -> None:
    offered = list(there)
    with aws_variables({"AWS_SECRET_ACCESS_KEY": "wrong"}):
        with pytest.raises(PermissionError, match=r"s3://.*may not be accessed.*AWS keys"):
            build_catalog(there.roots, offered)
        with pytest.raises(PermissionError, match=r"s3://.*may not be accessed.*AWS keys"):
            assets.load_sound(catalog.clips[0], catalog.roots)
