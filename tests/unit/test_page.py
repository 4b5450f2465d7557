"""The page of a corpus: one file, nothing from elsewhere, and no markup from names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from infra.corpus import Corpus, Refused
from synth.page import write_page
from tests.made_corpus import write_made_corpus

EVIL = '<script src="http://evil/x.js">&"\''


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(corpus: Corpus, manifest: dict[str, Any], refused: list[Refused]) -> tuple[str, Reader]:
    write_page(corpus.uri, manifest, refused)
    text = (Path(corpus.uri) / "index.html").read_text()
    reader = Reader()
    reader.feed(text)
    return text, reader


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_made_corpus(str(tmp_path), samples={"train": 8, "val": 4})


def test_names_from_outside_are_text_and_never_markup(corpus: Corpus) -> None:
    manifest = {
        **corpus.manifest,
        "kind": f"made {EVIL}",
        "notes": [EVIL],
        "licences": [EVIL, ""],
        "splits": {
            **corpus.manifest["splits"],
            "val": {**corpus.manifest["splits"]["val"], "classes": {EVIL: 3}},
        },
    }
    refused = [Refused(id=EVIL, source="x", reason=f"silent: {EVIL}")]
    _, reader = page(corpus, manifest, refused)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(EVIL) >= 6
    assert "not stated" in reader.text


def test_the_page_needs_nothing_but_itself(corpus: Corpus) -> None:
    text, reader = page(corpus, corpus.manifest, [])
    references = [
        value or ""
        for _, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert references and all(value.startswith("data:") for value in references)
    assert not re.search(r"https?:|url\(|@import", text)
    assert not {"script", "link", "iframe", "base"} & {tag for tag, _ in reader.tags}


def test_every_split_and_class_is_counted_and_shown(corpus: Corpus) -> None:
    _, reader = page(corpus, corpus.manifest, [])
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("figure") == tags.count("audio") > 0
    assert tags.count("img") == 2 * tags.count("figure")
    for name in (*corpus.splits, *corpus.classes):
        assert name in reader.text
    assert "silence" in reader.text and "Nothing was refused" in reader.text


def test_refusals_are_counted_by_their_reason(corpus: Corpus) -> None:
    refused = [Refused(id=f"f{n}", source="x", reason="silent: rms 0") for n in range(3)]
    refused.append(Refused(id="g", source="x", reason="speech: a description"))
    text, _ = page(corpus, corpus.manifest, refused)
    row = r'<td>silent</td><td class="number">3</td><td>f0 \(silent: rms 0\)</td>'
    assert re.search(row, text)
    assert "g (speech: a description)" in text


def test_page_bytes_are_the_same_every_time(corpus: Corpus) -> None:
    assert page(corpus, corpus.manifest, [])[0] == page(corpus, corpus.manifest, [])[0]
