"""A catalog that is interrupted goes on from what was looked at, and keeps none of it."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from synth import looking
from synth.catalog import Catalog
from synth.looked import PREFIX, Looked
from synth.looking import build_catalog
from synth.sources import Offer
from tests.made_sources import natural_offer

Row = dict[str, str]


@pytest.fixture(scope="module")
def offer(tmp_path_factory: pytest.TempPathFactory) -> Offer:
    return natural_offer(tmp_path_factory.mktemp("media"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_BATCH", 5)


class Looker:
    """Looks at rows here, and is killed when it was asked ``calls`` times."""

    def __init__(self, calls: int | None = None) -> None:
        self.calls, self.seen = calls, list[str]()

    def __call__(self, rows: list[Row], fn: Callable[[Row], Row]) -> list[Row]:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls = None if self.calls is None else self.calls - 1
        self.seen += [json.loads(row["candidate"])["path"] for row in rows]
        return [fn(row) for row in rows]


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def test_what_was_looked_at_before_is_not_looked_at_again(
    offer: Offer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole = Looker()
    calm = build_catalog(offer.roots, offer, map_rows=whole)
    first, second = Looker(2), Looker()
    with pytest.raises(KeyboardInterrupt):
        build_catalog(offer.roots, offer, map_rows=first, looked=Looked(str(tmp_path)))
    assert len(kept(tmp_path)) == 2
    resumed = build_catalog(offer.roots, offer, map_rows=second, looked=Looked(str(tmp_path)))
    assert first.seen + second.seen == whole.seen and first.seen
    assert resumed == calm
    assert "(10 of them by an earlier run)" in caplog.text
    resumed.write(str(tmp_path))
    assert not kept(tmp_path)
    assert Catalog.read(str(tmp_path)) == calm


def test_batches_of_other_files_or_folders_are_not_taken(offer: Offer, tmp_path: Path) -> None:
    looked = Looked(str(tmp_path))
    build_catalog(offer.roots, offer, looked=looked)
    moved = {name: f"{folder}/elsewhere" for name, folder in offer.roots.items()}
    again = Looker()
    with pytest.raises(ValueError, match="no usable"):
        build_catalog(moved, offer, map_rows=again, looked=looked)
    assert len(again.seen) == len(list(offer))
    less = Looker()
    build_catalog(offer.roots, list(offer)[1:], map_rows=less, looked=looked)
    assert len(less.seen) == len(list(offer)) - 1


def test_a_damaged_batch_is_looked_at_again(offer: Offer, tmp_path: Path) -> None:
    looked = Looked(str(tmp_path))
    calm = build_catalog(offer.roots, offer, looked=looked)
    batch = kept(tmp_path)[0]
    whole = batch.read_bytes()
    draw = random.Random(0)
    places = draw.sample(range(len(whole)), 40)
    torn = [b"", whole[:-9], *(flipped(whole, place) for place in places)]
    known = batch.stem.removeprefix(PREFIX)
    answers = looked.find(known)
    assert answers
    for data in torn:
        batch.write_bytes(data)
        assert looked.find(known) in (None, answers)
    batch.write_bytes(torn[1])
    again = Looker()
    assert build_catalog(offer.roots, offer, map_rows=again, looked=looked) == calm
    assert len(again.seen) == len(answers)


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << place % 8
    return bytes(changed)
