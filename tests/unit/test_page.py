"""The page of a corpus: one file, nothing from elsewhere, no markup from names, never too large."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import media, storage
from infra.commit import build_manifest
from infra.corpus import Corpus, Refused, Sample, write_shard
from infra.shards import INDEX_SCHEMA
from synth.page import MOST_BYTES, draw_page
from tests.made_corpus import write_made_corpus

EVIL = '<script src="http://evil/x.js">&"\''


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.sections: dict[str, str] = {}
        self._section = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""

    def handle_data(self, data: str) -> None:
        self.text += data
        self.sections[self._section] = self.sections.get(self._section, "") + " " + data.strip()

    def all(self, tag: str, name: str) -> list[str]:
        return [attributes[name] or "" for kind, attributes in self.tags if kind == tag]


def page(
    corpus: Corpus, manifest: dict[str, Any] | None = None, refused: list[Refused] | None = None
) -> tuple[str, Reader]:
    shown = Corpus(corpus.uri, manifest or corpus.manifest, sha256="")
    text = draw_page(shown, refused or []).decode()
    reader = Reader()
    reader.feed(text)
    return text, reader


def measured(corpus: Corpus, **columns: list[float | None]) -> dict[str, Any]:
    """The manifest once the indexes of the first split's only shard hold ``columns``."""
    manifest = json.loads(json.dumps(corpus.manifest))
    record = manifest["shards"][0]
    path = Path(corpus.uri) / record["path"].replace(".tar", ".parquet")
    index = pq.read_table(path)
    for name, values in columns.items():
        kept = [column for column in index.column_names if column != name]
        index = index.select(kept).append_column(name, pa.array(values, pa.float64()))
    pq.write_table(index.select(INDEX_SCHEMA.names), path)
    record["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return manifest


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_made_corpus(str(tmp_path), samples={"train": 8, "val": 8})


def test_names_from_outside_are_text_and_never_markup(corpus: Corpus) -> None:
    manifest = {
        **corpus.manifest,
        "kind": f"made {EVIL}",
        "notes": [EVIL],
        "licences": [EVIL, ""],
        "sources": {EVIL: EVIL},
        "usage": {EVIL: {EVIL: 1}},
        "held_out": {EVIL: {EVIL: 1}},
        "unknown_labels": {EVIL: {EVIL: 3}},
        "left_out": {EVIL: {EVIL: 2}},
        "splits": {
            **corpus.manifest["splits"],
            "val": {**corpus.manifest["splits"]["val"], "classes": {EVIL: 3}},
        },
    }
    refused = [Refused(id=EVIL, source=EVIL, reason=f"silent: {EVIL}")]
    _, reader = page(corpus, manifest, refused)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(EVIL) >= 16
    assert "not stated" in reader.text


def test_the_page_needs_nothing_but_itself(corpus: Corpus) -> None:
    text, reader = page(corpus)
    references = [
        value or ""
        for _, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    outside = [value for value in references if not value.startswith(("data:", "#"))]
    assert references and outside == []
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert {value[1:] for value in references if value.startswith("#")} <= ids
    assert not re.search(r"https?:|url\(|@import", text)
    assert not {"script", "iframe", "base"} & {tag for tag, _ in reader.tags}
    assert "default-src 'none'" in text


def test_every_split_and_class_is_counted_and_shown(corpus: Corpus) -> None:
    _, reader = page(corpus)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("figure") == tags.count("audio") > 0
    assert len(reader.all("img", "alt")) == 2 * tags.count("figure")
    for split in corpus.splits:
        silent = corpus.table(split)["classes"].to_pylist().count([])
        classes = len(corpus.manifest["splits"][split]["classes"])
        told = " ".join(reader.sections["splits"].split())
        # Their areas were not recorded, so that their masks are not known to be empty.
        assert f" {split} 8 0 {silent} 8 {classes} 1 " in told
    for name in corpus.classes:
        count = sum(s["classes"].get(name, 0) for s in corpus.manifest["splits"].values())
        assert re.search(rf"{name} +{count}\b", reader.sections["classes"])
        assert sum(name in section for section in reader.sections.values()) >= 2
    assert "silence" in reader.text and "Nothing was refused" in reader.text


def test_a_class_is_shown_from_every_split_and_no_sample_twice(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 60, "val": 60}, classes=3)
    _, reader = page(corpus)
    keys = [label.split()[-1] for label in reader.all("audio", "aria-label")]
    assert len(keys) == len(set(keys)) == 3 * 4 + 4
    for name in range(3):
        shown = reader.sections[f"class-{name}"]
        assert f"tone{name}" in shown and shown.count("train,") == shown.count("val,") == 2
    # Drawn, not the first of the corpus.
    assert max(int(key[-5:]) for key in keys) >= 30


def test_the_mask_lies_over_its_own_picture(corpus: Corpus) -> None:
    text, reader = page(corpus)
    shown = re.findall(
        r"Switch the mask of (\S+?)\".*?image/jpeg;base64,(.*?)\".*?image/png;base64,(.*?)\"", text
    )
    assert len(shown) == [tag for tag, _ in reader.tags].count("figure")
    for key, picture, overlay in shown:
        split, number = key.split("-")[1:]
        sample = corpus.read(split, int(number))
        overlay_HW4 = media.decode_image(base64.b64decode(overlay))
        mask_HW = media.decode_mask(sample.members["mask0.png"])
        assert np.array_equal(overlay_HW4[..., 3] > 0, mask_HW)
        image_HW3 = media.decode_image(base64.b64decode(picture)).astype(int)
        truth_HW3 = media.decode_image(sample.members["frame0.png"]).astype(int)
        assert np.abs(image_HW3 - truth_HW3).mean() < 12


def test_where_one_frame_is_annotated_that_one_is_shown(tmp_path: Path) -> None:
    plain = write_made_corpus(str(tmp_path), samples={"train": 1}, frames=3)
    sample = plain.read("train", 0)
    for name in ("mask0.png", "mask1.png"):
        del sample.members[name]
    record, _ = write_shard(plain.uri, "train", 0, [sample], plan="x")
    manifest = build_manifest(
        kind="made", seed=0, recipe={}, sources={}, licences=[], shards=[record], refused=[]
    )
    text, _ = page(plain, manifest)
    overlay = re.findall(r"image/png;base64,(.*?)\"", text)[0]
    mask_HW = media.decode_mask(sample.members["mask2.png"])
    assert np.array_equal(media.decode_image(base64.b64decode(overlay))[..., 3] > 0, mask_HW)


def test_a_long_sound_is_cut_and_the_page_says_so(tmp_path: Path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 1}, frames=5)
    text, _ = page(corpus)
    sound = base64.b64decode(re.findall(r"audio/flac;base64,(.*?)\"", text)[0])
    wave_N, rate = media.decode_audio(sound)
    truth_N, _ = media.decode_audio(corpus.read("train", 0).members["audio.flac"])
    assert rate == media.SAMPLE_RATE and len(wave_N) == 3 * rate < len(truth_N)
    assert np.abs(wave_N - truth_N[: len(wave_N)]).max() < 1e-3
    assert f"first 3 of {len(truth_N) / rate:.3g} s" in text


def test_areas_and_levels_are_counted_in_their_bins(corpus: Corpus) -> None:
    manifest = measured(
        corpus,
        mask_area=[0.0, 0.0, 0.03, 0.04, 0.04, 0.3, 0.0005, None],
        loudness_db=[-20.0, -20.0, -20.0, -90.0, -1.0, None, None, -20.0],
    )
    text, reader = page(corpus, manifest)
    assert "Empty masks: 2." in reader.sections["mask-area"]
    assert "without a level: 2." in reader.sections["loudness"]
    titles = {t: n for t, n in re.findall(r'title="(.+?): (\d+)"', text)}
    assert titles == {
        "0 to 0.1 %": "1",
        "2 to 5 %": "3",
        "20 to 50 %": "1",
        "-60 to -57 dBFS": "1",
        "-21 to -18 dBFS": "4",
        "-3 to 0 dBFS": "1",
    }
    assert "5 samples, median 4 %" in reader.sections["mask-area"]


def test_what_was_not_recorded_is_said(corpus: Corpus) -> None:
    nothing: list[float | None] = [None] * 8
    _, reader = page(corpus, measured(corpus, mask_area=nothing, loudness_db=nothing))
    for section in ("mask-area", "loudness", "held-out", "labels-outside-the-taxonomy"):
        assert "ot recorded" in reader.sections[section], section


def test_unknown_labels_are_listed_the_most_frequent_first(corpus: Corpus) -> None:
    labels = {f"label{n}": n for n in range(1, 31)}
    _, reader = page(corpus, {**corpus.manifest, "unknown_labels": {"x": labels, "y": {}}})
    told = " ".join(reader.sections["labels-outside-the-taxonomy"].split())
    assert told.count("label") >= 20 and "x: 30 labels, 465 inputs label30 30 label29 29" in told
    assert "label11 11 and 10 more" in told and "label10 " not in told


def test_sources_are_counted_by_what_they_gave(corpus: Corpus) -> None:
    usage = {"objects": {"lvis": 12}, "sounds": {"vggsound": 1_500}, "backgrounds": {"lvis": 3}}
    text, _ = page(corpus, {**corpus.manifest, "usage": usage})
    number = '<td class="number">'
    assert f"<td>lvis</td>{number}12</td>{number}</td>{number}3</td>" in text
    assert f"<td>vggsound</td>{number}</td>{number}1,500</td>{number}</td>" in text
    assert "<li>CC0-1.0</li>" in text


def test_refusals_are_counted_by_their_reason(corpus: Corpus) -> None:
    refused = [Refused(id=f"f{n}", source="x", reason="silent: rms 0") for n in range(3)]
    refused.append(Refused(id="g", source="y", reason="speech: a description"))
    text, reader = page(corpus, corpus.manifest, refused)
    told = " ".join(reader.sections["refused"].split())
    assert "silent 3 x 3 f0 silent: rms 0 speech 1 y 1 g speech: a description" in told
    # A rerun finds the same ones in another order.
    assert page(corpus, corpus.manifest, refused[::-1])[0] == text


def test_what_the_sources_list_and_nobody_looked_at_is_counted_by_its_reason(
    corpus: Corpus,
) -> None:
    left_out = {"vggsound": {"no file": 1_200, "other split": 7}, "lvis": {"no file": 3}, "x": {}}
    _, reader = page(corpus, {**corpus.manifest, "left_out": left_out})
    told = " ".join(reader.sections["refused"].split())
    assert "no file 1,203 vggsound 1,200, lvis 3 other split 7 vggsound 7" in told
    _, reader = page(corpus, {**corpus.manifest, "left_out": {"x": {}}})
    assert "Left out" not in reader.sections["refused"]


def test_page_bytes_are_the_same_every_time(corpus: Corpus) -> None:
    assert page(corpus)[0] == page(corpus)[0]


def test_only_the_members_that_are_shown_are_read(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(Corpus, "read", lambda *a, **k: pytest.fail("read a whole sample"))
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, **k: read.append(uri) or real(uri, **k))
    page(corpus)
    assert read and all(str(uri).endswith(".parquet") for uri in read)


def test_a_damaged_sample_is_named(corpus: Corpus) -> None:
    shard = Path(corpus.uri) / corpus.shards[0].path
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ValueError, match=r"train-00000.tar is damaged at made-train-\d+ \(the pic"):
        page(corpus)


def test_a_corpus_without_samples_has_a_page_too(tmp_path: Path) -> None:
    _, reader = page(write_made_corpus(str(tmp_path), samples={}))
    assert "The corpus has no samples" in reader.text and "Nothing sounds" in reader.text


def write_large_index(uri: str, *, rows: int, classes: int) -> Corpus:
    """A corpus whose index has ``rows`` rows over the members of four samples of pure noise."""
    random = np.random.default_rng(0)
    samples = [
        Sample(
            key=f"noise{number}",
            members={
                "frame0.png": media.encode_png(random.integers(0, 256, (256, 256, 3), np.uint8)),
                "mask0.png": media.encode_png(random.random((256, 256)) > 0.5),
                "audio.flac": media.encode_flac(random.uniform(-1, 1, 80_000)),
            },
            meta={"scene": "s", "classes": ["x"], "frames": 1},
        )
        for number in range(4)
    ]
    record, _ = write_shard(uri, "train", 0, samples, plan="x")
    path = Path(uri) / record.path.replace(".tar", ".parquet")
    few = pq.read_table(path)
    large = few.take(pa.array(np.arange(rows) % 4))
    names = [f"a sound of a rather long name, number {number}" for number in range(classes)]
    code_N = random.integers(classes, size=rows)
    sounding = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), pa.array(names).take(
        pa.array(code_N)
    ))  # fmt: skip
    for name, column in (
        ("key", pa.array([f"train-{row:08d}" for row in range(rows)])),
        ("classes", sounding),
        ("mask_area", pa.array(random.random(rows))),
        ("loudness_db", pa.array(-60 * random.random(rows))),
    ):
        kept = [other for other in large.column_names if other != name]
        large = large.select(kept).append_column(name, column)
    buffer = io.BytesIO()
    pq.write_table(large.select(INDEX_SCHEMA.names), buffer)
    path.write_bytes(buffer.getvalue())
    manifest = build_manifest(
        kind="made", seed=0, recipe={}, sources={}, licences=[], shards=[record], refused=[]
    )
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest["shards"][0].update(index_sha256=digest, samples=rows)
    counts = np.bincount(code_N, minlength=classes).tolist()
    manifest["splits"]["train"].update(samples=rows, classes=dict(zip(names, counts, strict=True)))
    return Corpus(uri, manifest, sha256="")


@pytest.mark.parametrize(("classes", "shown"), [(135, 135), (1_200, 158)])
def test_the_page_of_a_large_corpus_stays_below_its_bound(
    tmp_path: Path, classes: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its rows share the members of four samples, which no real index does.
    monkeypatch.setattr("infra.split_table.check_index", lambda *_: None)
    corpus = write_large_index(str(tmp_path), rows=100_000, classes=classes)
    text, reader = page(corpus)
    assert len(text.encode()) <= MOST_BYTES
    assert [tag for tag, _ in reader.tags].count("audio") == shown
    assert "100,000 samples, median 49.7 %" in reader.sections["mask-area"]
    left_out = f"{classes - shown:,} classes with fewer samples are left out" in reader.text
    assert left_out == (classes > shown)
