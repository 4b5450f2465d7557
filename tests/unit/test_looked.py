"""Looking at all candidates: what is kept on the way, looked at again, or told in no Unicode."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import media
from synth import looking
from synth.catalog import Catalog
from synth.inspection import inspect
from synth.looked import PREFIX, Looked
from synth.looking import build_catalog, look_again
from synth.sources import Offer
from synth.tables import Annotation, Candidate, Object, Refused
from tests.made_sources import PLACES, ellipse, natural_offer, photograph

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
    own = tmp_path / "objects" / "looked-at-me.png"
    own.parent.mkdir()
    own.touch()
    resumed.write(str(tmp_path))
    assert not kept(tmp_path) and own.exists()
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


def test_a_second_look_says_what_a_first_one_would_say_now(tmp_path: Path) -> None:
    offer = natural_offer(tmp_path)
    table = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    whole = json.loads(table.read_bytes())
    broken = json.loads(table.read_bytes())
    kinds = [(a["image_id"], a["category_id"]) for a in broken["annotations"]]
    several = next(kind for kind in kinds if kinds.count(kind) > 1)
    broken["annotations"][kinds.index(several)]["segmentation"] = [[1, 2, 3]]
    table.write_text(json.dumps(broken))
    before = build_catalog(offer.roots, offer)
    table.write_text(json.dumps(whole))
    calm, again = build_catalog(offer.roots, offer), look_again(before, offer)
    assert sum(row.partial for row in before.objects) > sum(row.partial for row in calm.objects)
    assert again.fingerprint == calm.fingerprint


def test_a_name_that_is_no_unicode_is_refused_and_the_rest_is_looked_at(offer: Offer) -> None:
    # As os.listdir spells a name that is not UTF-8, and as JSON may.
    sound = Candidate(role="sound", source="made", root="esc50", path="audio/geb\udce4ll.wav")
    author = dataclasses.replace(sound, path="audio/x.wav", author="bad \ud800")
    mark = Annotation(id="a\udc80", class_name="dog", mask_path="m.png")
    marked = Candidate(
        role="annotated", source="made", root="coco", path="y.png", annotations=(mark,)
    )
    calm = build_catalog(offer.roots, offer)
    catalog = build_catalog(offer.roots, [*offer, sound, author, marked])
    told = {r.id for r in catalog.refused if r.reason.startswith("text: ")}
    assert told == {"esc50:audio/geb\\udce4ll.wav", "esc50:audio/x.wav", "coco:y.png"}
    assert catalog.clips == calm.clips and catalog.objects == calm.objects


def test_where_a_mask_is_refused_its_class_is_not_wholly_marked() -> None:
    broken = Annotation(id="broken", class_name="dog", segmentation="[[1, 2, 3]]")
    shown = Candidate(
        role="annotated",
        source="made",
        path="x.png",
        annotations=(
            Annotation(id="dog", class_name="dog", mask_path="dog.png"),
            Annotation(id="cat", class_name="cat", mask_path="cat.png"),
            broken,
        ),
    )
    masks_of = {"dog.png": ellipse(PLACES[0]), "cat.png": ellipse(PLACES[1])}
    rows = inspect(
        shown,
        photograph(0, [("dog", PLACES[0]), ("cat", PLACES[1])]),
        lambda path: media.encode_png(masks_of[path]),
    )
    partial = {row.class_name: row.partial for row in rows if isinstance(row, Object)}
    assert partial == {"dog": True, "cat": False}
    assert sum(isinstance(row, Refused) for row in rows) == 1
