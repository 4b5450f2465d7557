"""What was refused: looked at again when asked for, or too much of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from infra.corpus import Corpus
from infra.media import encode_wav
from pipelines import catalog as catalog_job
from pipelines import synthesize
from synth.catalog import Catalog
from synth.looking import build_catalog
from synth.sources import candidates
from tests.integration.test_synthesis_options import (
    RECIPE,
    SHARDS,
    files,
    made,
    own_media,
    refused,
    times,
    write_some,
)
from tests.made_media import tone

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_a_mended_sound_comes_in_when_refused_inputs_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media, uri = own_media(tmp_path / "media", seed=62), tmp_path / "corpus"
    sound = media / "sounds" / "drum" / "1.wav"
    whole = encode_wav(tone(266.0, seconds=1.5))
    sound.write_bytes(whole[:30])
    made(uri, media)
    assert list(refused(uri)) == ["sounds/drum/1.wav"]

    sound.write_bytes(whole)
    before = files(uri)
    assert made(uri, media)["shards_made"] == 0  # nobody asked for it
    assert files(uri) == before

    looked_at: list[str] = []
    look = catalog_job.map_rows

    def noted(rows: list[dict[str, Any]], *more: Any, **options: Any) -> Any:
        looked_at.extend(json.loads(row["candidate"])["path"] for row in rows)
        return look(rows, *more, **options)

    monkeypatch.setattr(catalog_job, "map_rows", noted)
    told = made(uri, media, retry_refused=True, dry_run=True)
    assert told["shards"] == SHARDS and files(uri) == before
    # Dying, it leaves no corpus of which a half is old.
    write_some(monkeypatch, 2)
    with pytest.raises(ConnectionError):
        made(uri, media, retry_refused=True)
    assert looked_at == ["sounds/drum/1.wav"] * 2
    with pytest.raises(FileNotFoundError, match="no corpus stands at"):
        Corpus.open(str(uri))
    assert made(uri, media)["shards_made"] == SHARDS - 2
    assert refused(uri) == {}
    made(tmp_path / "at once", media)
    assert files(tmp_path / "at once") == files(uri)


def test_only_the_shards_of_refused_samples_are_made_anew_when_their_file_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media, uri = own_media(tmp_path / "media", seed=93), tmp_path / "corpus"
    known = str(tmp_path / "catalog")
    build_catalog(str(media), candidates(str(media))).write(known)
    picture = media / "objects" / "siren" / "0.png"
    kept = picture.read_bytes()
    picture.unlink()

    strict = dataclasses.replace(RECIPE, max_refused=0.0)
    for _ in range(2):
        says = r"\d+ samples were refused \(\d+ missing\), .* objects/siren/0\.png"
        with pytest.raises(ValueError, match=says):
            made(uri, media, strict, catalog=known)
        assert not (uri / "corpus.json").exists()

    lenient = dataclasses.replace(RECIPE, max_refused=0.9)
    first = made(uri, media, lenient, catalog=known)
    assert list(refused(uri)) == ["objects/siren/0.png"] and first["samples"] < 13
    shards = Corpus.open(str(uri)).shards
    short = [shard for shard in shards if shard.refused]
    assert 0 < len(short) < SHARDS

    picture.write_bytes(kept)
    when = times(uri)
    assert made(uri, media, lenient, catalog=known)["shards_made"] == 0
    assert (uri / "corpus.json").exists()
    told = made(uri, media, lenient, catalog=known, retry_refused=True, dry_run=True)
    assert (told["shards"], told["shards_standing"]) == (len(short), SHARDS - len(short))

    # Dying, it leaves no manifest that vouches for shards that are others now.
    def gone(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the storage is gone")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="the storage is gone"):
        patch.setattr(synthesize, "_make", gone)
        made(uri, media, lenient, catalog=known, retry_refused=True)
    assert not (uri / "corpus.json").exists()
    second = made(uri, media, lenient, catalog=known, retry_refused=True)
    assert (second["shards_made"], second["samples"]) == (len(short), 13)
    assert refused(uri) == {}
    whole = {f"{shard.split}-" + shard.path[-9:-4] for shard in shards if not shard.refused}
    assert {n: at for n, at in times(uri).items() if n.partition(".")[0] in whole} == {
        n: at for n, at in when.items() if n.partition(".")[0] in whole
    }
    untouched = made(tmp_path / "untouched", media, lenient, catalog=known)
    assert second["manifest_sha256"] == untouched["manifest_sha256"]


def test_media_of_which_too_much_is_damaged_stop_the_job_with_a_report(tmp_path: Path) -> None:
    media, uri = own_media(tmp_path / "media", seed=124), tmp_path / "corpus"
    for picture in sorted((media / "backgrounds").iterdir())[:8]:
        picture.write_bytes(picture.read_bytes()[:100])
    for rehearsal in (True, False):
        with pytest.raises(ValueError, match=r"\d+% of the inputs cannot be used \(8 unreadable\)"):
            made(uri, media, dry_run=rehearsal)
    assert not (uri / "corpus.json").exists() and not (uri / "shards").exists()
    catalog = build_catalog(str(media), candidates(str(media)))
    assert isinstance(catalog, Catalog) and catalog.refused_by_reason == {"unreadable": 8}
