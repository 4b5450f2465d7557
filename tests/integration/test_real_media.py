"""The Debian packages themselves: fetched once into the media cache, then catalogued on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from infra import media, storage
from synth import distribute, sources
from synth.catalog import Catalog
from synth.looking import build_catalog
from synth.sources import debian_media

pytestmark = pytest.mark.integration

STAMPS = "usr/share/tuxpaint/stamps/animals"


@pytest.fixture(scope="module")
def folder() -> Path:
    return debian_media.fetch(storage.cache_folder())


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Catalog:
    return build_catalog(str(folder), list(sources.candidates(str(folder))))


@pytest.fixture
def local_ray() -> Iterator[None]:
    root = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()


def test_a_second_fetch_reuses_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian_media, "_run", lambda *a, **k: pytest.fail("ran a command again"))
    assert debian_media.fetch(storage.cache_folder()) == folder


def test_every_file_of_the_table_is_there_and_no_container_is_left(folder: Path) -> None:
    missing = [row.path for row in debian_media.read_table() if not (folder / row.path).is_file()]
    assert missing == []
    assert not list(folder.rglob("*.rcc")) and not list(folder.rglob("*.cat"))


def test_the_catalog_has_every_class_and_enough_of_everything(catalog: Catalog) -> None:
    assert len(catalog.classes) == 77  # beaver loses its only sound, which is the badger's
    assert (len(catalog.objects), len(catalog.clips)) == (111, 188)
    assert (len(catalog.backgrounds), len(catalog.photos)) == (78, 57)
    assert len(catalog.silent) >= 220
    assert {row.collection for row in catalog.backgrounds} == {"monuments", "renewable"}


def test_silent_files_are_refused_with_their_reason(catalog: Catalog) -> None:
    silent = {row.id for row in catalog.refused if row.reason.startswith("silent: rms 0.000000")}
    assert silent == {
        f"{STAMPS}/birds/nandou.ogg",
        f"{STAMPS}/lizards/iguana.ogg",
        f"{STAMPS}/mammals/giraffe.ogg",
        f"{STAMPS}/marsupials/wombat.ogg",
    }


def test_sounds_under_two_names_are_refused_although_their_files_differ(
    folder: Path, catalog: Catalog
) -> None:
    reasons = {row.id: row.reason for row in catalog.refused}
    for again, first in (
        ("mammals/rodents/beaver.ogg", "mammals/badger.ogg"),
        ("mammals/bovines/ram.ogg", "mammals/bovines/mountaingoat.ogg"),
    ):
        files = [folder / STAMPS / name for name in (again, first)]
        assert files[0].read_bytes() != files[1].read_bytes()
        assert reasons[f"{STAMPS}/{again}"].startswith("duplicate: ")
        assert reasons[f"{STAMPS}/{again}"].endswith(f"{STAMPS}/{first}")


def test_speech_and_drawings_are_refused_with_their_reason(catalog: Catalog) -> None:
    counts = catalog.refused_by_reason
    assert counts["speech"] >= 7433 and counts["drawing"] >= 300
    reasons = {row.id: row.reason for row in catalog.refused}
    assert reasons[f"{STAMPS}/insects/bee.png"].startswith("drawing: ")
    assert reasons["usr/share/tuxpaint/stamps/space/apollo_lander.ogg"].startswith("speech: ")
    accepted = {row.id for row in [*catalog.objects, *catalog.clips, *catalog.silent]}
    assert not [name for name in accepted if "_desc" in name or "/cartoon/" in name]


def test_what_a_row_says_is_what_its_file_decodes_to(catalog: Catalog) -> None:
    cow = next(row for row in catalog.clips if row.uri.endswith(".cat!/37_cow.wav"))
    wave_N, rate = media.decode_audio(storage.read_bytes(catalog.uri_of(cow)))
    assert (cow.rate, cow.seconds) == (rate, pytest.approx(wave_N.size / rate, abs=1e-5))
    dog = next(row for row in catalog.objects if row.class_name == "dog")
    image_HWC = media.decode_image(storage.read_bytes(catalog.uri_of(dog)))
    assert image_HWC.shape == (dog.height, dog.width, 4)
    assert dog.mask_fraction == pytest.approx(np.mean(image_HWC[..., 3] >= 128), abs=1e-5)


def test_catalog_bytes_do_not_depend_on_worker_count_or_order(
    catalog: Catalog, folder: Path, tmp_path: Path, local_ray: None
) -> None:
    offered = list(sources.candidates(str(folder)))
    catalog.write(str(tmp_path / "here"))
    for workers, order in ((1, 1), (2, -1)):
        map_rows = partial(distribute.map_rows, parallelism=workers)
        made = build_catalog(str(folder), offered[::order], map_rows=map_rows)
        made.write(str(tmp_path / f"workers-{workers}"))
    here, one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("here", "workers-1", "workers-2")
    )
    assert here == one == two
