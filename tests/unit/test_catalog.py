"""What a catalog takes in, what it refuses and why; pictures and sounds are made here."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from infra import masks, media, storage
from synth import assets, looking, sources
from synth.catalog import MARKER, Catalog, assemble
from synth.inspection import MAX_BYTES, inspect
from synth.looking import build_catalog
from synth.rows import Rows
from synth.tables import Annotation, Candidate, Clip, Object, Refused
from tests.made_sources import (
    HEIGHT,
    PLACES,
    WIDTH,
    ellipse,
    photograph,
    write_esc50,
    write_open_images,
)


def cut_out(seed: int = 0, *, size: int = 40, hidden: int = 0) -> bytes:
    """A PNG of a noisy disc on transparency; ``hidden`` is the colour under the transparency."""
    image_HWC = np.random.default_rng(seed).integers(0, 255, (size, size, 4), dtype=np.uint8)
    rows, columns = np.mgrid[:size, :size] - size // 2
    inside_HW = rows**2 + columns**2 < (size // 3) ** 2
    image_HWC[..., 3] = np.where(inside_HW, 255, 0)
    image_HWC[~inside_HW, :3] = hidden
    return media.encode_png(image_HWC)


def photo(seed: int = 0, *, size: int = 64) -> bytes:
    noise_HWC = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return media.encode_png(noise_HWC)


def noise(seed: int = 0, *, gain: float = 0.3, seconds: float = 1.0) -> np.ndarray:
    count = int(16_000 * seconds)
    return (np.random.default_rng(seed).uniform(-1, 1, count) * gain).astype(np.float32)


def candidate(role: str = "object", **more: str) -> Candidate:
    values = {"class_name": "dog", "path": f"{role}.bin", "source": "made", **more}
    return Candidate(role=role, **values)


def look(made: Candidate, data: bytes) -> object:
    """The one row that a file gives."""

    def no_mask(path: str) -> bytes:
        raise AssertionError(path)

    (row,) = inspect(made, data, no_mask)
    return row


def refusal(made: Candidate, data: bytes) -> str:
    row = look(made, data)
    assert isinstance(row, Refused), row
    assert (row.id, row.source) == (made.path, made.source)
    return row.reason


def write(folder: Path, files: dict[str, bytes]) -> str:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return str(folder)


@pytest.fixture
def own_media(tmp_path: Path) -> str:
    return write(
        tmp_path / "own",
        {
            "objects/dog/rex.png": cut_out(1),
            "objects/dog/again.png": cut_out(1, hidden=77),
            "objects/cat/tom.png": cut_out(2),
            "sounds/dog/bark.wav": media.encode_wav(noise(1)),
            "sounds/dog/copy.flac": media.encode_flac(noise(1)),
            "sounds/cat/meow.ogg": media.encode_wav(noise(2)),
            "sounds/cat/quiet.wav": media.encode_wav(noise(3, gain=0.0)),
            "sounds/cat/broken.wav": b"RIFF....WAVE",
            "backgrounds/field.png": photo(1),
            "silent/stone.png": cut_out(4),
            "photos/dog/park.png": photo(2),
            "objects/cat/notes.txt": b"not media",
        },
    )


def test_a_cut_out_is_measured() -> None:
    row = look(candidate(licence="CC0-1.0", author="A"), cut_out())
    assert isinstance(row, Object)
    assert (row.width, row.height, row.class_name) == (40, 40, "dog")
    assert (row.licence, row.author) == ("CC0-1.0", "A")
    assert row.mask_fraction == pytest.approx(np.pi * 13**2 / 1600, rel=0.05)


def test_a_sound_is_measured() -> None:
    wave_N = noise(seconds=1.5)
    row = look(candidate("sound"), media.encode_wav(wave_N))
    assert isinstance(row, Clip)
    assert (row.seconds, row.rate) == (1.5, 16_000)
    assert row.rms == pytest.approx(0.3 / np.sqrt(3), rel=0.02)
    assert row.peak == pytest.approx(np.abs(wave_N).max(), abs=1e-3)


def test_silent_sounds_are_refused_with_their_reason() -> None:
    for gain in (0.0, 1e-5):
        reason = refusal(candidate("sound"), media.encode_wav(noise(gain=gain)))
        assert reason.startswith("silent: rms 0.0000")


def test_what_the_source_rules_out_is_refused_without_a_look() -> None:
    speech = candidate("sound").refused("speech: a spoken description")
    assert refusal(speech, b"") == "speech: a spoken description"
    drawing = candidate("object").refused("drawing: an SVG")
    assert refusal(drawing, cut_out()) == "drawing: an SVG"


@pytest.mark.parametrize("role", ["object", "silent", "background", "photo", "sound"])
@pytest.mark.parametrize("data", [b"", b"no media", cut_out()[:60], b"\x89PNG\r\n\x1a\n" * 9])
def test_unreadable_files_are_refused_and_the_reason_is_the_same_every_time(
    role: str, data: bytes
) -> None:
    reason = refusal(candidate(role), data)
    assert reason.startswith("unreadable: ")
    assert " at 0x" not in reason


def test_oversize_pictures_are_refused_before_they_are_unpacked() -> None:
    header = bytearray(photo(size=64))
    header[16:24] = (100_000).to_bytes(4, "big") * 2  # IHDR: width and height
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    reason = refusal(candidate("background"), bytes(header))
    assert "100000x100000" in reason or "decompression bomb" in reason


def test_sizes_and_lengths_out_of_bounds_are_refused() -> None:
    assert refusal(candidate(), cut_out(size=8)).startswith("size: 8x8")
    short = media.encode_wav(noise(seconds=0.05))
    assert refusal(candidate("sound"), short).startswith("size: the sound lasts 0.050 s")
    long = media.encode_flac(np.zeros(16_000 * 601, np.float32))
    assert "more than the 600 s" in refusal(candidate("sound"), long)


def test_samples_that_are_no_numbers_are_refused() -> None:
    import io

    import soundfile

    wave_N = noise()
    wave_N[100] = np.nan
    buffer = io.BytesIO()
    soundfile.write(buffer, wave_N, 16_000, format="WAV", subtype="FLOAT")
    assert "finite" in refusal(candidate("sound"), buffer.getvalue())


def test_cut_outs_need_transparency_that_is_neither_full_nor_empty() -> None:
    assert "needs an alpha channel" in refusal(candidate(), photo())
    for alpha in (0, 255):
        image_HWC = np.full((30, 30, 4), alpha, np.uint8)
        assert "of the cut-out is opaque" in refusal(candidate(), media.encode_png(image_HWC))
    assert "may not have transparent parts" in refusal(candidate("background"), cut_out())


def marked(mask_HW: np.ndarray) -> object:
    """The row of one object whose mask picture is this, in a photograph of WIDTH x HEIGHT."""
    annotation = Annotation(id="marked", class_name="dog", mask_path="masks/marked.png")
    shown = dataclasses.replace(candidate("annotated"), annotations=(annotation,))
    picture = photograph(0, [("dog", PLACES[0])])
    (row,) = inspect(shown, picture, lambda path: media.encode_png(mask_HW))
    return row


@pytest.mark.parametrize(
    ("size", "overlap"),
    [
        ((3 * WIDTH, 3 * HEIGHT), 1.0),
        ((5 * WIDTH + 1, 5 * HEIGHT - 1), 0.98),
        ((WIDTH // 2, HEIGHT // 2), 0.9),
        ((43, 32), 0.85),
    ],
)
def test_a_mask_of_the_photographs_shape_is_laid_over_it_whatever_its_size(
    size: tuple[int, int], overlap: float
) -> None:
    row = marked(ellipse(PLACES[0], *size))
    assert isinstance(row, Object)
    mask_HW, drawn_HW = masks.decode_mask_rle(assets.mask_of(row)), ellipse(PLACES[0])
    assert (mask_HW & drawn_HW).sum() / (mask_HW | drawn_HW).sum() >= overlap


@pytest.mark.parametrize("size", [(1000, 10), (HEIGHT, WIDTH), (WIDTH, HEIGHT + 4), (24, 24)])
def test_a_mask_of_another_shape_is_refused(size: tuple[int, int]) -> None:
    row = marked(ellipse(PLACES[0], *size))
    assert isinstance(row, Refused)
    assert row.reason == (
        f"mask: its {size[0]}x{size[1]} pixels have another shape than the photograph's "
        f"{WIDTH}x{HEIGHT}"
    )


def test_a_class_must_be_known() -> None:
    assert refusal(candidate(class_name=""), cut_out()).startswith("class: ")


def test_duplicates_are_told_by_decoded_content_not_by_file_bytes(own_media: str) -> None:
    catalog = build_catalog(own_media, list(sources.candidates(own_media)))
    reasons = {row.id: row.reason for row in catalog.refused}
    assert reasons["sounds/dog/copy.flac"].endswith("the same content as sounds/dog/bark.wav")
    # Other bytes under full transparency, the same picture: the first by id stays.
    assert reasons["objects/dog/rex.png"].endswith("the same content as objects/dog/again.png")
    assert reasons["sounds/cat/quiet.wav"].startswith("silent: ")
    assert reasons["sounds/cat/broken.wav"].startswith("unreadable: ")
    assert len(reasons) == 4
    assert catalog.classes == ["cat", "dog"]
    assert catalog.summary()["refused_by_reason"] == {"duplicate": 2, "silent": 1, "unreadable": 1}


def test_a_catalog_does_not_depend_on_the_order_of_the_candidates(own_media: str) -> None:
    offered = list(sources.candidates(own_media))
    forward = build_catalog(own_media, offered)
    backward = build_catalog(
        own_media, offered[::-1], map_rows=lambda rows, fn: [fn(row) for row in rows][::-1]
    )
    assert forward == backward
    assert forward.fingerprint == backward.fingerprint


def test_a_catalog_reads_back_as_written_in_the_same_bytes(own_media: str, tmp_path: Path) -> None:
    catalog = build_catalog(own_media, list(sources.candidates(own_media)))
    for name in ("a", "b"):
        catalog.write(str(tmp_path / name))
    assert Catalog.read(str(tmp_path / "a")) == catalog
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    data = storage.read_bytes(catalog.uri_of(catalog.objects[0]))
    assert data == cut_out(2)


def test_the_fingerprint_does_not_depend_on_where_the_media_lie(
    own_media: str, tmp_path: Path
) -> None:
    moved = Path(own_media).rename(tmp_path / "elsewhere")
    there = build_catalog(str(moved), list(sources.candidates(str(moved))))
    moved.rename(own_media)
    here = build_catalog(own_media, list(sources.candidates(own_media)))
    assert there.folder != here.folder
    assert there.fingerprint == here.fingerprint


def test_an_unfinished_or_changed_catalog_is_not_read(own_media: str, tmp_path: Path) -> None:
    catalog = build_catalog(own_media, list(sources.candidates(own_media)))
    uri = str(tmp_path / "catalog")
    catalog.write(uri)
    fewer = dataclasses.replace(catalog, silent=catalog.silent[:0])
    fewer.write(str(tmp_path / "fewer"))
    (tmp_path / "fewer" / "silent.parquet").replace(tmp_path / "catalog" / "silent.parquet")
    with pytest.raises(ValueError, match="not those it was closed with"):
        Catalog.read(uri)
    (tmp_path / "catalog" / MARKER).write_text(json.dumps({"format": 99, "folder": "x"}))
    with pytest.raises(ValueError, match="no catalog of format"):
        Catalog.read(uri)
    (tmp_path / "catalog" / MARKER).unlink()
    with pytest.raises(FileNotFoundError):
        Catalog.read(uri)


def test_a_table_of_other_rows_is_not_read(own_media: str, tmp_path: Path) -> None:
    build_catalog(own_media, list(sources.candidates(own_media))).write(str(tmp_path / "c"))
    with pytest.raises(ValueError, match="not those of Clip"):
        Rows.read(str(tmp_path / "c" / "objects.parquet"), Clip)
    (tmp_path / "c" / "clips.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is no table"):
        Rows.read(str(tmp_path / "c" / "clips.parquet"), Clip)


@contextmanager
def without_rights(*files: Path) -> Iterator[None]:
    """As a user who may not read these files."""
    before = os.geteuid()
    for file in files:
        file.chmod(0)
    if before == 0:  # who may read everything
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach: those above pytest's own are closed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_local_file_that_may_not_be_read_is_refused_alone(open_folder: Path) -> None:
    source, drawn = write_open_images(open_folder)
    esc50 = write_esc50(open_folder / "esc50")
    offer = sources.Offer(None, {"open_images": source, "esc50": esc50})
    whole = build_catalog(offer.roots, offer)
    mask = next((open_folder / "train-masks").rglob("*.png"))
    picture = next(p for p in (open_folder / "train").iterdir() if p.stem not in mask.stem)
    sound = next((open_folder / "esc50" / "audio").iterdir())
    with without_rights(mask, picture, sound):
        catalog = build_catalog(offer.roots, offer)
        (lost,) = [row for row in whole.clips if sound.name in row.uri]
        with pytest.raises(assets.Unusable) as caught:
            assets.load_sound(lost, whole.roots)
    mask_path = mask.relative_to(open_folder)
    assert {row.id: row.reason for row in catalog.refused} == {
        f"open_images:{mask.stem}": f"mask: unreadable: {mask_path} may not be read by this user",
        f"open_images:train/{picture.name}": f"unreadable: train/{picture.name} may not be read by "
        "this user",
        f"esc50:audio/{sound.name}": f"unreadable: audio/{sound.name} may not be read by this user",
    }
    assert len(catalog.objects) == len(drawn) - 3
    assert len(catalog.clips) == len(whole.clips) - 1
    assert caught.value.reason == "unreadable: the file may not be read by this user"


def test_a_file_that_is_another_one_now_is_told_by_its_row(own_media: str) -> None:
    catalog = build_catalog(own_media, list(sources.candidates(own_media)))
    grown, folder = Path(own_media, "objects/cat/tom.png"), Path(own_media, "sounds/dog/bark.wav")
    os.truncate(grown, MAX_BYTES + 1)
    folder.unlink()
    folder.mkdir()
    (cat,) = [row for row in catalog.objects if row.class_name == "cat"]
    (bark,) = [row for row in catalog.clips if row.class_name == "dog"]
    for load, row in ((assets.load_cutout, cat), (assets.load_sound, bark)):
        with pytest.raises(assets.Unusable, match="changed: the file is not the one") as caught:
            load(row, catalog.roots)
        assert caught.value.asset == row


def test_a_long_look_tells_how_far_it_is(
    own_media: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(looking, "_BATCH", 5)
    with caplog.at_level(logging.INFO, logger="synth.looking"):
        build_catalog(own_media, list(sources.candidates(own_media)))
    lines = [record.getMessage() for record in caplog.records if record.name == "synth.looking"]
    assert [line.split(", ")[0] for line in lines] == [
        *("5 files looked at", "10 files looked at", "11 files looked at"),
    ]
    assert lines[-1] == "11 files looked at, 2 refusals"


def test_a_folder_that_is_empty_or_not_there_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no media: it needs objects/<class>/\*\.png"):
        list(sources.candidates(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: check the path or URI"):
        list(sources.candidates(str(tmp_path / "nowhere")))


def test_media_that_cannot_make_a_scene_are_one_clear_sentence() -> None:
    bark = look(candidate("sound", path="bark.wav"), media.encode_wav(noise()))
    rex = look(candidate("object", path="rex.png"), cut_out())
    tom = look(candidate("object", path="tom.png", class_name="cat"), cut_out(3))
    blank = look(candidate("sound", path="blank.wav"), b"")
    roots = {"media": "folder"}

    def rows(*some: object) -> list[Rows]:
        return [Rows.of(type(row), [row]) for row in some]

    with pytest.raises(ValueError, match="folder holds no usable object: add a source"):
        assemble(roots, {"clips": rows(bark)})
    with pytest.raises(ValueError, match=r"no usable sound .1 inputs were refused.*blank\.wav"):
        assemble(roots, {"objects": rows(rex), "refused": rows(blank)})
    with pytest.raises(ValueError, match="no class in folder has both an object and a sound"):
        assemble(roots, {"objects": rows(tom), "clips": rows(bark)})
