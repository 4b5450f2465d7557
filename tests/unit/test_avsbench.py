"""Reading AVSBench's layout with all its quirks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra import media
from infra.commit import build_manifest, commit
from infra.corpus import Corpus, Refused, Sample, write_shard
from synth import avsbench

SECONDS = 5


@pytest.fixture
def s4(tmp_path: Path) -> Path:
    """Four clips of the real layout, one of them with a name that begins with a dash."""
    rows = []
    for name, category, split in (
        ("-Abc_def0-1", "dog_barking", "train"),
        ("Bcd-efg0123", "horse_clip-clop", "train"),
        ("Cde_fgh0123", "dog_barking", "val"),
        ("Def-ghi0123", "dog_barking", "test"),
    ):
        rows.append(f"{name},0,{category},{split}")
        masks = 1 if split == "train" else 5
        _write_clip(
            tmp_path / "Single-source/s4_data", f"{split}/{category}/{name}", name, masks=masks
        )
    _write_table(tmp_path / "Single-source/s4_meta_data.csv", "name,start,category,split", rows)
    return tmp_path


@pytest.fixture
def ms3(tmp_path: Path) -> Path:
    rows = []
    for name, split in (("Abc_def0-1x", "train"), ("-bcdefg0123_36", "test")):
        rows.append(f"{name},{split}")
        data = tmp_path / "Multi-sources/ms3_data"
        _write_clip(data, f"{split}/{name}", name, masks=5, frames=f"{name}/{name}.mp4")
    _write_table(tmp_path / "Multi-sources/ms3_meta_data.csv", "video_id,split", rows)
    return tmp_path


def _write_table(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


def _write_clip(
    data: Path, place: str, name: str, *, masks: int, frames: str | None = None
) -> None:
    random = np.random.default_rng(sum(name.encode()))
    for k in range(1, 6):
        picture = random.integers(0, 256, (24, 24, 3)).astype(np.uint8)
        path = data / "visual_frames" / f"{frames or f'{place}/{name}'}_{k}.png"
        _write(path, media.encode_png(picture))
    for k in range(1, masks + 1):
        _write(data / f"gt_masks/{place}/{name}_{k}.png", media.encode_png(_square()))
    wave_N = random.integers(-32768, 32768, SECONDS * 16_000).astype(np.int16)
    _write(data / f"audio_wav/{place}.wav", media.encode_wav(wave_N))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _square() -> np.ndarray:
    mask_HW = np.zeros((24, 24), bool)
    mask_HW[6:12, 6:12] = True
    return mask_HW


def _read(tree: Path, subset: str) -> tuple[dict[str, Sample], list[Refused]]:
    rows, refused = avsbench.clips(avsbench.find(str(tree), subset))
    return {row.name: avsbench.to_sample(row) for row in rows}, refused


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


MASK = "Single-source/s4_data/gt_masks/test/dog_barking/Def-ghi0123/Def-ghi0123_1.png"
SOUND = "Single-source/s4_data/audio_wav/test/dog_barking/Def-ghi0123.wav"


def _row(tree: Path, name: str) -> avsbench.ClipRow:
    rows, _ = avsbench.clips(avsbench.find(str(tree), "s4"))
    return next(row for row in rows if row.name == name)


def test_frames_and_masks_pass_through_byte_for_byte(s4: Path) -> None:
    samples, refused = _read(s4, "s4")
    assert not refused
    data, place = s4 / "Single-source/s4_data", "val/dog_barking/Cde_fgh0123/Cde_fgh0123"
    for k in range(5):
        members = samples["Cde_fgh0123"].members
        frame = (data / f"visual_frames/{place}_{k + 1}.png").read_bytes()
        assert members[f"frame{k}.png"] == frame
        assert members[f"mask{k}.png"] == (data / f"gt_masks/{place}_{k + 1}.png").read_bytes()


def test_sound_becomes_flac_with_every_sample_kept(s4: Path) -> None:
    samples, _ = _read(s4, "s4")
    import soundfile

    flac = io.BytesIO(samples["Def-ghi0123"].members["audio.flac"])
    ours_N, rate = soundfile.read(flac, dtype="int16")
    theirs_N, _ = soundfile.read(s4 / SOUND, dtype="int16")
    assert rate == 16_000
    np.testing.assert_array_equal(ours_N, theirs_N)


def test_stereo_of_another_rate_becomes_16_khz_mono(s4: Path) -> None:
    import soundfile

    soundfile.write(s4 / SOUND, np.full((44_100 * 5, 2), 0.25), 44_100, subtype="PCM_16")
    sample = avsbench.to_sample(_row(s4, "Def-ghi0123"))
    wave_N, rate = media.decode_audio(sample.members["audio.flac"])
    assert (wave_N.size, rate) == (80_000, 16_000)
    assert sample.meta["audio_seconds"] == 5.0


def test_s4_says_its_category_and_annotates_one_frame_in_train(s4: Path) -> None:
    samples, _ = _read(s4, "s4")
    sample = samples["Bcd-efg0123"]
    assert sample.meta["classes"] == ["horse_clip-clop"]
    assert sample.meta["kind"] == "avsbench_s4"
    assert sample.meta["scene"] == "Bcd-efg0123"
    assert [name for name in sample.members if name.startswith("mask")] == ["mask0.png"]
    assert "objects" not in sample.meta


def test_names_that_begin_with_a_dash_are_clips_like_others(s4: Path) -> None:
    samples, _ = _read(s4, "s4")
    assert samples["-Abc_def0-1"].key == "s4-train--Abc_def0-1"


def test_keys_stay_apart_where_names_have_other_characters() -> None:
    keys = [avsbench.clip_key("ms3", "test", name) for name in ("a b", "a.b", "a_b", "ä" * 90)]
    assert len(set(keys)) == 4
    assert all(key.replace("-", "").replace("_", "").isascii() for key in keys)
    assert all(len(key) <= 100 and "." not in key and " " not in key for key in keys)


def test_a_stray_header_row_is_skipped(s4: Path) -> None:
    table = s4 / "Single-source/s4_meta_data.csv"
    table.write_text(table.read_text() + "name,start,category,split\n")
    samples, refused = _read(s4, "s4")
    assert (len(samples), refused) == (4, [])


def test_ms3_frames_are_found_behind_mp4_in_their_names(ms3: Path) -> None:
    samples, refused = _read(ms3, "ms3")
    assert not refused
    sample = samples["-bcdefg0123_36"]
    assert sample.key == "ms3-test--bcdefg0123_36"
    assert sample.meta["classes"] == []
    assert sum(name.startswith("frame") for name in sample.members) == 5
    assert sum(name.startswith("mask") for name in sample.members) == 5


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (SOUND, "sound: 1 of 1 missing"),
        (MASK.replace("gt_masks", "visual_frames"), "frames: 1 of 5 missing"),
        (MASK.replace("_1.png", "_3.png"), "masks: 1 of 5 missing"),
    ],
)
def test_a_clip_that_lacks_something_is_refused_with_what_it_lacks(
    s4: Path, path: str, reason: str
) -> None:
    (s4 / path).unlink()
    samples, refused = _read(s4, "s4")
    assert len(samples) == 3
    assert [r.id for r in refused] == ["s4/test/Def-ghi0123"]
    assert refused[0].reason.startswith(reason)
    assert path.removeprefix("Single-source/") in refused[0].reason


def test_rows_that_are_no_clips_are_refused(s4: Path) -> None:
    table = s4 / "Single-source/s4_meta_data.csv"
    rows = "Def-ghi0123,0,dog_barking,test\n../../x,0,dog_barking,test\nDef,0,dog,somewhere\n"
    table.write_text(table.read_text() + rows)
    samples, refused = _read(s4, "s4")
    assert len(samples) == 4
    assert [r.reason.split(":")[0] for r in refused] == ["twice", "name", "split"]


def test_masks_with_other_values_are_refused_with_the_values(s4: Path) -> None:
    grey = np.where(_square(), 225, 0).astype(np.uint8)
    (s4 / MASK).write_bytes(media.encode_png(grey))
    with pytest.raises(ValueError, match=r"Def-ghi0123_1\.png has the values 0, 225 where"):
        avsbench.to_sample(_row(s4, "Def-ghi0123"))


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "zero-one"])
def test_the_same_mask_in_another_form_becomes_grey_with_0_and_255(s4: Path, mode: str) -> None:
    if mode == "zero-one":
        data = media.encode_png(_square().astype(np.uint8))
    else:
        data = _png(Image.fromarray(_square().astype(np.uint8) * 255).convert(mode))
    (s4 / MASK).write_bytes(data)
    member = avsbench.to_sample(_row(s4, "Def-ghi0123")).members["mask0.png"]
    image = Image.open(io.BytesIO(member))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), _square() * 255)


def test_coloured_and_differently_sized_masks_are_refused(s4: Path) -> None:
    coloured = np.zeros((24, 24, 3), np.uint8)
    coloured[6:12, 6:12, 0] = 255
    (s4 / MASK).write_bytes(media.encode_png(coloured))
    with pytest.raises(ValueError, match=r"mask: .* is coloured"):
        avsbench.to_sample(_row(s4, "Def-ghi0123"))
    (s4 / MASK).write_bytes(media.encode_png(np.zeros((12, 24), bool)))
    with pytest.raises(ValueError, match=r"mask: .* is \(12, 24\) and its frame \(24, 24\)"):
        avsbench.to_sample(_row(s4, "Def-ghi0123"))


def test_damaged_media_refuse_the_clip_and_not_the_shard(s4: Path, tmp_path: Path) -> None:
    (s4 / SOUND).write_bytes(b"RIFF")
    (s4 / MASK.replace("test", "val").replace("Def-ghi0123", "Cde_fgh0123")).write_bytes(b"no")
    corpus, refused = _shard(s4, "s4", tmp_path / "corpus")
    assert sorted(corpus.splits) == ["test", "train", "val"]
    assert [len(corpus.table(split)) for split in ("train", "val", "test")] == [2, 0, 0]
    assert sorted(r.id for r in refused) == ["s4/test/Def-ghi0123", "s4/val/Cde_fgh0123"]
    assert all(r.reason.startswith("unreadable: ") for r in refused)


def test_sound_shorter_than_one_example_is_refused(s4: Path) -> None:
    (s4 / SOUND).write_bytes(media.encode_wav(np.zeros(15_000, np.float32)))
    with pytest.raises(ValueError, match=r"lasts 0\.938 s, one example needs 0\.975 s"):
        avsbench.to_sample(_row(s4, "Def-ghi0123"))


def test_shards_hold_every_clip_in_the_order_of_its_key(s4: Path, tmp_path: Path) -> None:
    corpus, refused = _shard(s4, "s4", tmp_path / "corpus")
    assert not refused
    keys = corpus.table("train").column("key").to_pylist()
    assert keys == ["s4-train--Abc_def0-1", "s4-train-Bcd-efg0123"]
    assert corpus.classes == ["dog_barking", "horse_clip-clop"]


def _shard(tree: Path, subset: str, target: Path) -> tuple[Corpus, list[Refused]]:
    """What the pipeline does, in this process."""
    rows, _ = avsbench.clips(avsbench.find(str(tree), subset))
    records, refused = [], []
    for (split, number), shard in avsbench.plan_shards(rows, 1).items():
        samples = avsbench.read_clips(shard)
        record, lost = write_shard(str(target), split, number, samples, plan="")
        records.append(record)
        refused += lost
    manifest = build_manifest(
        kind="test", seed=0, recipe={}, sources={}, licences=[], shards=records, refused=refused
    )
    commit(str(target), manifest)
    return Corpus.open(str(target)), refused


def test_a_miniature_tells_its_name_and_its_objects(ms3: Path) -> None:
    shown = {"class": "dog", "asset": "dog.png", "sounding": True, "visible": {}}
    quiet = {"class": "cow", "asset": "cow.png", "sounding": False, "visible": {}}
    marker = {
        "kind": "miniature",
        "clips": {
            "Abc_def0-1x": {"frames": [[quiet]] * 4 + [[shown, quiet]], "sound": ["dog.ogg"]},
        },
    }
    (ms3 / "miniature.json").write_text(json.dumps(marker))
    samples, refused = _read(ms3, "ms3")
    sample = samples["Abc_def0-1x"]
    assert sample.meta["kind"] == "avsbench_ms3_miniature"
    assert sample.meta["classes"] == ["dog"]
    assert sample.meta["sound"] == ["dog.ogg"]
    assert len(sample.meta["objects"]) == 5
    assert refused[0].reason.startswith("miniature: ")


def test_the_subset_folder_itself_can_be_named(ms3: Path) -> None:
    assert len(_read(ms3 / "Multi-sources", "ms3")[0]) == 2


def test_a_wrong_tree_says_what_is_expected_and_what_is_there(ms3: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Single-source/s4_meta_data\.csv .* expected, found Multi-sources$"
    ):
        avsbench.find(str(ms3), "s4")
    with pytest.raises(ValueError, match="found nothing"):
        avsbench.find(str(ms3 / "nowhere"), "ms3")
    (ms3 / "Multi-sources/ms3_data/visual_frames").rename(ms3 / "frames")
    with pytest.raises(ValueError, match=r"visual_frames is missing .* found audio_wav, gt_masks"):
        avsbench.find(str(ms3), "ms3")


def test_a_table_without_its_columns_is_named(ms3: Path) -> None:
    (ms3 / "Multi-sources/ms3_meta_data.csv").write_text("id,part\nx,train\n")
    with pytest.raises(ValueError, match="lacks the column 'video_id'; it has id, part"):
        avsbench.clips(avsbench.find(str(ms3), "ms3"))
