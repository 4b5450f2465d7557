"""The page of a corpus as a person meets it: opened from the disk in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from infra.corpus import Corpus, Refused
from synth.page import draw_page
from tests.made_corpus import write_made_corpus
from tests.unit.test_page import write_large_index

pytestmark = pytest.mark.integration

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Of every picture, once all are decoded, its own width, that on the page, and its description.
DRAWN = """const done = arguments[0];
    const images = [...document.images];
    Promise.all(images.map(image => image.decode())).then(
        () => done(images.map(i => [i.naturalWidth, i.clientWidth, i.alt])),
        error => done(String(error)));"""
REFUSED = [Refused(id=f"f{n}", source="made", reason="silent: rms 0") for n in range(3)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = write_made_corpus(
        str(tmp_path_factory.mktemp("corpus")), samples={"train": 24, "val": 8}, frames=2
    )
    (Path(corpus.uri) / "index.html").write_bytes(draw_page(corpus, REFUSED))
    return corpus


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it refuses to start as root with one
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(DRIVER)) as browser:
        browser.set_script_timeout(30)
        yield browser


@pytest.fixture(scope="module")
def opened(corpus: Corpus, browser: Chrome) -> Chrome:
    browser.get((Path(corpus.uri) / "index.html").as_uri())
    return browser


def test_what_is_shown_is_what_the_manifest_says(corpus: Corpus, opened: Chrome) -> None:
    splits = {
        row.find_elements(By.TAG_NAME, "td")[0].text: row.find_elements(By.TAG_NAME, "td")[1].text
        for row in opened.find_elements(By.CSS_SELECTOR, "#splits tbody tr")
    }
    counts = corpus.manifest["splits"]
    assert splits == {name: str(split["samples"]) for name, split in counts.items()}
    classes = {
        line.find_element(By.CLASS_NAME, "name").text: line.find_element(
            By.CLASS_NAME, "number"
        ).text
        for line in opened.find_elements(By.CSS_SELECTOR, ".bars li")
    }
    assert classes == {
        name: str(sum(split["classes"].get(name, 0) for split in counts.values()))
        for name in corpus.classes
    }
    refused = opened.find_element(By.CSS_SELECTOR, "#refused tbody tr").text
    assert refused.split()[:2] == ["silent", str(len(REFUSED))]


def test_every_picture_and_mask_is_really_drawn(opened: Chrome) -> None:
    drawn = opened.execute_async_script(DRAWN)
    assert len(drawn) == 2 * len(opened.find_elements(By.TAG_NAME, "figure")) > 8
    assert all(natural == 64 and shown > 100 and alt for natural, shown, alt in drawn)


def test_a_mask_is_switched_by_mouse_by_key_and_for_all(opened: Chrome) -> None:
    def visible() -> list[bool]:
        masks = opened.find_elements(By.CSS_SELECTOR, ".figures .mask")
        return [mask.value_of_css_property("visibility") == "visible" for mask in masks]

    assert all(visible())
    views = opened.find_elements(By.CSS_SELECTOR, ".view")
    views[0].click()
    assert not visible()[0] and all(visible()[1:])
    box = views[1].find_element(By.TAG_NAME, "input")
    box.send_keys(Keys.SPACE)
    assert opened.switch_to.active_element == box and visible()[:3] == [False, False, True]
    every = opened.find_element(By.ID, "masks")
    every.click()
    assert visible()[:3] == [True, True, False] and not any(visible()[2:])
    for pressed in (every, views[0], views[1]):
        pressed.click()
    assert all(visible())


def test_a_sound_plays_to_its_end(corpus: Corpus, opened: Chrome) -> None:
    audio = opened.find_element(By.TAG_NAME, "audio")
    key = str(audio.get_attribute("aria-label")).split()[-1]
    seconds = corpus.read(key.split("-")[1], int(key.split("-")[2])).meta["audio_seconds"]
    played: Any = opened.execute_async_script(
        """const [audio, done] = arguments;
        const times = [];
        audio.muted = true;
        audio.ontimeupdate = () => times.push(audio.currentTime);
        audio.onended = () => done({duration: audio.duration, times});
        audio.play().catch(error => done(String(error)));""",
        audio,
    )
    assert isinstance(played, dict), played
    assert played["duration"] == pytest.approx(seconds, abs=0.01)
    assert any(0 < time < seconds for time in played["times"])
    assert played["times"][-1] == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_a_phone_need_not_scroll_sideways(opened: Chrome, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 360
        body = opened.find_element(By.TAG_NAME, "body")
        ink, ground = (
            sum(map(int, re.findall(r"\d+", body.value_of_css_property(name))[:3])) / 765
            for name in ("color", "background-color")
        )
        assert (ground - ink if scheme == "light" else ink - ground) > 0.7
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_was_asked_of_anyone_and_nothing_complained(corpus: Corpus, opened: Chrome) -> None:
    own = (Path(corpus.uri) / "index.html").as_uri()
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent" and event["params"]["documentURL"] == own
    ]
    assert own in asked and any(url.startswith("data:image/") for url in asked)
    assert [url for url in asked if url != own and not url.startswith("data:")] == []
    assert opened.get_log("browser") == []


def test_the_page_of_a_hundred_thousand_samples_is_shown_whole(
    tmp_path: Path, browser: Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its rows share the members of four samples, which no real index does.
    monkeypatch.setattr("infra.split_table.check_index", lambda *_: None)
    corpus = write_large_index(str(tmp_path), rows=100_000, classes=135)
    (Path(corpus.uri) / "index.html").write_bytes(draw_page(corpus, REFUSED))
    browser.get_log("browser")
    browser.get((tmp_path / "index.html").as_uri())
    assert browser.find_element(By.CSS_SELECTOR, "dl dd").text == "100,000"
    sections = ("splits", "classes", "mask-area", "loudness", "refused", "samples")
    for name in sections:
        browser.find_element(By.CSS_SELECTOR, f'nav a[href="#{name}"]').click()
        head = browser.find_element(By.CSS_SELECTOR, f"#{name} h2")
        top, window = browser.execute_script(
            "return [arguments[0].getBoundingClientRect().top, window.innerHeight]", head
        )
        assert head.is_displayed() and -1 < top < window, name
    assert len(browser.find_elements(By.CSS_SELECTOR, ".bars li")) == 135
    drawn = browser.execute_async_script(DRAWN)
    assert len(drawn) == 2 * len(browser.find_elements(By.TAG_NAME, "audio")) > 100
    assert all(natural > 100 and shown > 100 and alt for natural, shown, alt in drawn)
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )
    assert browser.get_log("browser") == []
