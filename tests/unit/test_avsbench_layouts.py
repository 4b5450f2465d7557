"""AVSBench in every form in which it is published: loose, in zip files, with raw videos alone."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra import media, storage, video
from infra.corpus import Refused, Sample
from synth import avsbench
from synth.avsbench import pictures
from tests import made_avsbench as made

SUBSETS = ("s4", "ms3", "v1s", "v1m", "v2", "avss")
S4 = "Single-source/s4_data"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made.write_tree(tmp_path / "tree", made.small())
    return tmp_path / "tree"


def read(tree: Path, subset: str, **how: object) -> tuple[dict[str, Sample], list[Refused]]:
    rows, refused = avsbench.clips(avsbench.find(str(tree), subset), **how)  # type: ignore[arg-type]
    return {row.name: avsbench.to_sample(row) for row in rows}, refused


def as_one_zip(tree: Path, target: Path) -> Path:
    made.pack(tree, target / "AVSBench.zip", prefix="AVSBench/")
    return target / "AVSBench.zip"


def as_zips_with_their_folders(tree: Path, target: Path) -> Path:
    """As the subsets' own folders are packed, with the Mac's files among them."""
    for below in ("Single-source", "Multi-sources", "v1s", "v1m", "v2"):
        made.pack(tree, target / f"{below}.zip", below=below, prefix=f"{below}/")
    with zipfile.ZipFile(target / "Single-source.zip", "a") as file:
        file.writestr("__MACOSX/Single-source/._s4_meta_data.csv", b"\0")
    for name in ("metadata.csv", "label2idx.json"):
        (target / name).write_bytes((tree / name).read_bytes())
    return target


def as_zips_without_their_folders(tree: Path, target: Path) -> Path:
    """Tables loose, data packed without the folder that gave the zip its name."""
    for below in ("Single-source/s4_data", "Multi-sources/ms3_data", "v1s", "v1m", "v2"):
        made.pack(tree, target / f"{below}.zip", below=below)
    for name in (*made.TABLES.values(), "label2idx.json"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes((tree / name).read_bytes())
    return target


PACKINGS = (as_one_zip, as_zips_with_their_folders, as_zips_without_their_folders)


@pytest.mark.parametrize("pack", PACKINGS)
def test_zip_files_give_the_same_samples_as_folders(
    tree: Path, tmp_path: Path, pack: Callable[[Path, Path], Path]
) -> None:
    packed = pack(tree, tmp_path / "packed")
    for subset in SUBSETS:
        assert read(packed, subset) == read(tree, subset)
        ours, theirs = (avsbench.find(str(place), subset) for place in (packed, tree))
        assert ours.fingerprint == theirs.fingerprint


def test_label_maps_become_class_indices_and_masks_of_any_class(tree: Path) -> None:
    sample = read(tree, "v2")[0]["Hij-klm0123_0_10000"]
    colours_HW3 = made.labels()
    for k in range(10):
        label = Image.open(io.BytesIO(sample.members[f"label{k}.png"]))
        mask = Image.open(io.BytesIO(sample.members[f"mask{k}.png"]))
        assert (label.mode, mask.mode) == ("L", "L")
        wanted_HW = np.zeros((made.SIDE, made.SIDE), np.uint8)
        for number, colour in made.LABELLED.items():
            wanted_HW[(colours_HW3 == colour).all(axis=-1)] = number
        np.testing.assert_array_equal(np.asarray(label), wanted_HW)
        np.testing.assert_array_equal(np.asarray(mask), (wanted_HW > 0) * 255)
        frame = (tree / f"v2/Hij-klm0123_0_10000/frames/{k}.jpg").read_bytes()
        assert sample.members[f"frame{k}.jpg"] == frame
    assert sample.meta["mask_area"] == 0.375
    assert sample.meta["classes"] == ["guitar", "man"]
    assert sample.key == "v2-val-Hij-klm0123_0_10000"


def test_the_palette_is_that_of_pascal_voc() -> None:
    palette_K3 = pictures.palette()
    # Published with the VOC development kit: aeroplane, bicycle, bird, ..., tv/monitor.
    assert palette_K3[[0, 1, 2, 3, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert len(np.unique(palette_K3, axis=0)) == 71


def test_v1s_annotates_its_first_frame_only_in_train(tree: Path) -> None:
    extra = tree / "v1s/-Abc_def0-1_0_5000/labels_rgb/1.png"
    extra.write_bytes(made.contents()["labels"])
    samples, _ = read(tree, "v1s")
    annotated = {
        name: sum(member.startswith("mask") for member in sample.members)
        for name, sample in samples.items()
    }
    assert annotated == {"-Abc_def0-1_0_5000": 1, "Def-ghi0123_2000_7000": 5}


def test_quirks_of_the_semantic_table_are_understood(tree: Path) -> None:
    samples, _ = read(tree, "avss")
    assert samples["-Abc_def0-1_0_5000"].meta["classes"] == ["horse"]
    assert samples["Def-ghi0123_2000_7000"].meta["classes"] == ["emergency-car"]
    assert samples["Efg_hij0123_36"].meta["classes"] == []
    hidden = samples["Ghi_jkl0123_16000_26000"]
    assert (hidden.meta["classes"], hidden.meta["off_screen"]) == ([], True)
    assert "off_screen" not in samples["Efg_hij0123_36"].meta


def test_all_three_parts_are_one_subset_with_the_names_of_its_classes(tree: Path) -> None:
    layout = avsbench.find(str(tree), "avss")
    rows, refused = avsbench.clips(layout)
    assert not refused and len(rows) == 7 and layout.kind == "avsbench_avss"
    assert len({row.key for row in rows}) == 7
    assert layout.label_classes[:2] == ("background", "class01") and len(layout.label_classes) == 71


def test_class_numbers_that_begin_with_one_are_the_same_classes(tree: Path) -> None:
    names = json.loads((tree / "label2idx.json").read_text())
    before = avsbench.find(str(tree), "v2").label_classes
    (tree / "label2idx.json").write_text(json.dumps({n: k + 1 for n, k in names.items()}))
    assert avsbench.find(str(tree), "v2").label_classes == before
    (tree / "label2idx.json").write_text(json.dumps({n: 70 - k for n, k in names.items()}))
    with pytest.raises(ValueError, match="background the first"):
        avsbench.find(str(tree), "v2")


def test_few_pixels_of_no_class_are_background_and_many_are_no_label_map(tree: Path) -> None:
    path = tree / "v2/Hij-klm0123_0_10000/labels_rgb/0.png"
    image_HW3 = made.labels()
    image_HW3[0, 0] = (1, 2, 3)
    made.own_copy(path, media.encode_png(image_HW3))
    odd: list[str] = []
    rows, _ = avsbench.clips(avsbench.find(str(tree), "v2"))
    row = next(row for row in rows if row.split == "val")
    sample = avsbench.to_sample(row, odd)
    assert odd == ["label colours: 0.39% of pixels are of no class"]
    assert np.asarray(Image.open(io.BytesIO(sample.members["label0.png"])))[0, 0] == 0
    made.own_copy(path, media.encode_png(image_HW3 // 2))
    with pytest.raises(ValueError, match=r"label: .*labels_rgb/0\.png has colours of no class on"):
        avsbench.to_sample(row)


def test_loudness_and_mask_area_are_told(tree: Path) -> None:
    for sample in read(tree, "s4")[0].values():
        assert sample.meta["mask_area"] == 0.25
        # A sine of amplitude 1/4.
        assert sample.meta["loudness_db"] == pytest.approx(20 * np.log10(0.25 / 2**0.5), abs=0.01)


def test_pickles_are_counted_and_never_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = avsbench.find(str(tree), "s4").fingerprint
    wanted = {str(path) for path in (tree / "Single-source").rglob("*") if path.is_file()}
    pickled = f"{S4}/audio_log_mel/test/dog_barking/Def-ghi0123.pkl"
    made.write_files(tree, {pickled: made.contents()["pickle"]})
    opened: set[str] = set()

    def watched(reads: Callable[..., bytes]) -> Callable[..., bytes]:
        def call(uri: str, *told: Any, **more: Any) -> bytes:
            opened.add(uri)
            return reads(uri, *told, **more)

        return call

    for name in ("read_bytes", "read_range"):
        monkeypatch.setattr(storage, name, watched(getattr(storage, name)))
    layout = avsbench.find(str(tree), "s4")
    assert layout.left_out == {avsbench.PICKLED: 1}
    assert layout.fingerprint == before
    assert len(read(tree, "s4")[0]) == 4
    assert opened == wanted
    assert "1 pickled log-mels are not read" in avsbench.pickles_note(1)


@pytest.fixture
def with_video(tree: Path) -> Path:
    """The test clip of s4 as its raw video: of each frame the brightness tells the number."""
    frames = [np.full((48, 64, 3), 2 * number, np.uint8) for number in range(8 * 5 - 1)]
    target = tree / f"{S4}/raw_videos/test/dog_barking/Def-ghi0123.mp4"
    video.write_video(target, frames, rate=8, wave_N=made.tone(5))
    return tree


def drop(tree: Path, *parts: str) -> None:
    for part in parts:
        place = tree / S4 / part / "test/dog_barking"
        for path in [*place.glob("Def-ghi0123/*"), *place.glob("Def-ghi0123.wav")]:
            path.unlink()


def test_frames_come_from_the_raw_video_as_the_benchmark_takes_them(with_video: Path) -> None:
    drop(with_video, "visual_frames")
    mask = media.encode_png(np.zeros((224, 224), bool))
    for k in range(1, 6):
        name = f"{S4}/gt_masks/test/dog_barking/Def-ghi0123/Def-ghi0123_{k}.png"
        made.own_copy(with_video / name, mask)
    sample = read(with_video, "s4")[0]["Def-ghi0123"]
    assert sample.meta["extracted"] == ["frames"]
    shown = [media.decode_image(sample.members[f"frame{k}.png"]) for k in range(5)]
    assert {image_HW3.shape for image_HW3 in shown} == {(224, 224, 3)}
    # int((l + 15/16) * 8), and frame 38 is the last one there is.
    wanted = [2 * number for number in (7, 15, 23, 31, 38)]
    assert [float(image_HW3.mean()) for image_HW3 in shown] == pytest.approx(wanted, abs=1.5)


@pytest.mark.parametrize("side", [224, None])
def test_a_missing_frame_alone_comes_from_the_raw_video(with_video: Path, side: int | None) -> None:
    before = read(with_video, "s4")[0]["Def-ghi0123"]
    (with_video / f"{S4}/visual_frames/test/dog_barking/Def-ghi0123/Def-ghi0123_3.png").unlink()
    mask = with_video / f"{S4}/gt_masks/test/dog_barking/Def-ghi0123/Def-ghi0123_3.png"
    if side:
        made.own_copy(mask, media.encode_png(np.zeros((side, side), bool)))
    sample = read(with_video, "s4", side=side)[0]["Def-ghi0123"]
    assert sample.meta["extracted"] == ["frames"]
    shown_HW3 = media.decode_image(sample.members["frame2.png"])
    assert shown_HW3.shape[:2] == ((side, side) if side else (48, 64))
    assert float(shown_HW3.mean()) == pytest.approx(2 * 23, abs=1.5)
    assert sample.members["mask2.png"] == mask.read_bytes()
    for changed in ("frame2.png", "mask2.png"):
        del sample.members[changed], before.members[changed]
    assert sample.members == before.members


def test_frames_can_keep_the_raw_videos_own_size(with_video: Path) -> None:
    drop(with_video, "visual_frames")
    sample = read(with_video, "s4", side=None)[0]["Def-ghi0123"]
    assert media.decode_image(sample.members["frame0.png"]).shape == (48, 64, 3)
    mask = with_video / f"{S4}/gt_masks/test/dog_barking/Def-ghi0123/Def-ghi0123_1.png"
    assert sample.members["mask0.png"] == mask.read_bytes()


def test_sound_comes_from_the_raw_video_and_published_frames_stay(with_video: Path) -> None:
    before = read(with_video, "s4")[0]["Def-ghi0123"]
    drop(with_video, "audio_wav")
    sample = read(with_video, "s4")[0]["Def-ghi0123"]
    assert sample.meta["extracted"] == ["sound"] and "extracted" not in before.meta
    assert sample.members["frame0.png"] == before.members["frame0.png"]
    wave_N, rate = media.decode_audio(sample.members["audio.flac"])
    assert rate == 16_000 and wave_N.size == pytest.approx(80_000, abs=2_048)
    assert sample.meta["loudness_db"] == pytest.approx(before.meta["loudness_db"], abs=0.5)


def test_a_damaged_raw_video_refuses_its_clip_by_name(with_video: Path) -> None:
    drop(with_video, "visual_frames")
    raw = f"{S4}/raw_videos/test/dog_barking/Def-ghi0123.mp4"
    (with_video / raw).write_bytes(b"no video")
    rows, _ = avsbench.clips(avsbench.find(str(with_video), "s4"))
    said = [row.reason for row in avsbench.read_clips(rows) if isinstance(row, Refused)]
    assert len(said) == 1
    path = raw.removeprefix("Single-source/")
    assert said[0].startswith(f"unreadable: {path} cannot be opened as a video")


def test_clean_splits_take_the_shared_videos_out_of_train_alone(tree: Path) -> None:
    published, _ = read(tree, "ms3")
    clean, refused = read(tree, "ms3", splits="clean")
    assert set(published) - set(clean) == {"Efg_hij0123_4"}
    assert [(r.id, r.reason) for r in refused] == [
        ("ms3/train/Efg_hij0123_4", "leak: its video has clips in val")
    ]
    assert clean == {name: published[name] for name in clean}


def test_a_zipped_miniature_does_not_pass_for_the_benchmark(tree: Path) -> None:
    marker = {"kind": "miniature", "clips": {}, "note": "A miniature"}
    made.write_files(tree, {"miniature.json": json.dumps(marker).encode()})
    packed = as_one_zip(tree, tree.parent / "packed")
    assert avsbench.find(str(packed), "s4").kind == "avsbench_s4_miniature"


def test_a_semantic_tree_without_its_clips_says_what_is_expected(tree: Path) -> None:
    (tree / "v2").rename(tree / "elsewhere")
    with pytest.raises(ValueError, match=r"v2 is missing or empty: a folder for each clip"):
        avsbench.find(str(tree), "avss")
    assert len(read(tree, "v1s")[0]) == 2
    (tree / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"metadata\.csv beside v1s/ is expected"):
        avsbench.find(str(tree), "v1s")


def test_a_mask_in_two_colours_of_a_palette_is_read(tree: Path) -> None:
    path = tree / f"{S4}/gt_masks/test/dog_barking/Def-ghi0123/Def-ghi0123_1.png"
    image = Image.fromarray(made.square().astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    made.own_copy(path, made.png(image))
    odd: list[str] = []
    rows, _ = avsbench.clips(avsbench.find(str(tree), "s4"))
    sample = avsbench.to_sample(next(row for row in rows if row.split == "test"), odd)
    assert odd == ["palette mask: of black and one colour"]
    mask_HW = np.asarray(Image.open(io.BytesIO(sample.members["mask0.png"])))
    np.testing.assert_array_equal(mask_HW, made.square() * 255)
