"""The miniature: AVSBench's layout, and masks that say what is heard."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from infra import media, storage
from infra.masks import decode_mask_rle
from synth.miniature import (
    EXAMPLE_HOP,
    EXAMPLE_LENGTH,
    Counts,
    MiniatureConfig,
    Pools,
    plan_miniature,
    render_sound,
    without_pauses,
    write_miniature,
)
from synth.miniature_plan import ClipPlan
from synth.tables import Background, Clip, Object

PITCH = {"red": 400.0, "green": 1000.0, "blue": 2500.0}
COLOUR = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
CONFIG = MiniatureConfig(
    s4=Counts(train=3, val=1, test=3),
    ms3=Counts(train=2, val=1, test=4),
    collection="ground",
    distractors=0.5,
)
ORIGIN = {"source": "made", "licence": "CC0-1.0", "author": "", "origin": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def pools(folder: Path) -> Pools:
    """Three classes, each a coloured square with a tone, on grey grounds."""
    objects, clips = {}, {}
    for name in PITCH:
        picture = np.zeros((60, 60, 4), np.uint8)
        picture[5:55, 5:55] = (*COLOUR[name], 255)
        objects[name] = [_cutout(folder, f"{name}.png", name, picture)]
        times_N = np.arange(12_000) / media.SAMPLE_RATE
        wave_N = 0.5 * np.sin(2 * np.pi * PITCH[name] * times_N)
        (folder / f"{name}.wav").write_bytes(media.encode_wav(wave_N))
        clips[name] = [
            Clip(
                id=f"{name}.wav", class_name=name, uri=f"{name}.wav", **ORIGIN, video="",
                seconds=0.75, loudest=0.0, rate=16_000, rms=0.35, peak=0.5, sha256=name,
                file_sha256="",
            )
        ]  # fmt: skip
    backgrounds = [_ground(folder, f"ground{i}.png", "ground", 60 + 20 * i) for i in range(4)]
    backgrounds.append(_ground(folder, "other.png", "other", 250))
    disc = np.full((40, 40, 4), 255, np.uint8)
    silent = [_cutout(folder, "disc.png", "disc", disc)]
    return Pools(objects=objects, clips=clips, backgrounds=backgrounds, silent=silent)


def _cutout(folder: Path, name: str, class_name: str, image: np.ndarray) -> Object:
    (folder / name).write_bytes(media.encode_png(image))
    height, width = image.shape[:2]
    return Object(
        id=name, class_name=class_name, uri=name, **ORIGIN, width=width, height=height, left=0,
        top=0, right=width, bottom=height, mask_fraction=0.7, mask="", crowd=False,
        partial=False, absent="",
        picture=name, sha256=name, file_sha256="",
    )  # fmt: skip


def _ground(folder: Path, name: str, collection: str, grey: int) -> Background:
    (folder / name).write_bytes(media.encode_png(np.full((120, 160, 3), grey, np.uint8)))
    return Background(
        id=name, uri=name, **ORIGIN, collection=collection, width=160, height=120, sha256=name,
        file_sha256="",
    )  # fmt: skip


@pytest.fixture(scope="module")
def tree(folder: Path, pools: Pools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "miniature"
    write_miniature(str(root), pools, CONFIG, str(folder))
    return root


def _rows(tree: Path, table: str) -> list[dict[str, str]]:
    with (tree / table).open(newline="") as file:
        return list(csv.DictReader(file))


def _mask(path: Path) -> np.ndarray:
    mask = media.decode_image(path.read_bytes())[..., 0]
    assert set(np.unique(mask)) <= {0, 255}
    return mask > 0


def test_s4_lies_as_avsbench_lays_it_out(tree: Path) -> None:
    rows = _rows(tree, "Single-source/s4_meta_data.csv")
    assert list(rows[0]) == ["name", "start", "category", "split"]
    assert len(rows) == 7
    data = tree / "Single-source/s4_data"
    for row in rows:
        place = f"{row['split']}/{row['category']}/{row['name']}"
        for k in range(1, 6):
            frame = data / "visual_frames" / place / f"{row['name']}_{k}.png"
            assert media.decode_image(frame.read_bytes()).shape == (224, 224, 3)
        masks = sorted(p.name for p in (data / "gt_masks" / place).iterdir())
        annotated = 1 if row["split"] == "train" else 5
        assert masks == [f"{row['name']}_{k}.png" for k in range(1, annotated + 1)]
        wave_N, rate = media.decode_audio((data / "audio_wav" / f"{place}.wav").read_bytes())
        assert (wave_N.size, rate) == (80_000, 16_000)


def test_ms3_has_mp4_in_frame_names_and_splits_only_over_masks_and_sound(tree: Path) -> None:
    rows = _rows(tree, "Multi-sources/ms3_meta_data.csv")
    assert list(rows[0]) == ["video_id", "split"]
    data = tree / "Multi-sources/ms3_data"
    for row in rows:
        name, split = row["video_id"], row["split"]
        for k in range(1, 6):
            assert (data / f"visual_frames/{name}/{name}.mp4_{k}.png").is_file()
            assert _mask(data / f"gt_masks/{split}/{name}/{name}_{k}.png").shape == (224, 224)
        assert (data / f"audio_wav/{split}/{name}.wav").is_file()


def test_names_are_eleven_characters_some_begin_with_a_dash_and_all_say_mini(
    pools: Pools,
) -> None:
    many = MiniatureConfig(
        s4=Counts(train=60, val=20, test=20), ms3=Counts(train=0, val=0, test=0), collection=""
    )
    names = [plan.name for plan in plan_miniature(pools, many)]
    assert len(set(names)) == 100
    assert all(len(name) == 11 and name.lstrip("-").startswith("mini") for name in names)
    assert sum(name.startswith("-") for name in names) == 5


def test_it_says_that_it_is_a_miniature(tree: Path) -> None:
    marker = json.loads((tree / "miniature.json").read_text())
    assert marker["kind"] == "miniature"
    assert "not AVSBench" in marker["note"]
    assert marker["licences"] == ["CC0-1.0"]


def test_the_mask_is_what_is_visible_of_what_sounds(tree: Path) -> None:
    marker = json.loads((tree / "miniature.json").read_text())
    seen = set()
    for row in _rows(tree, "Multi-sources/ms3_meta_data.csv"):
        name = row["video_id"]
        folder = tree / f"Multi-sources/ms3_data/gt_masks/{row['split']}/{name}"
        for k, things in enumerate(marker["clips"][name]["frames"]):
            truth_HW = np.zeros((224, 224), bool)
            for thing in things:
                assert thing["class"] or not thing["sounding"]
                if thing["sounding"]:
                    truth_HW |= decode_mask_rle(thing["visible"])
            np.testing.assert_array_equal(_mask(folder / f"{name}_{k + 1}.png"), truth_HW)
            seen.add(sum(thing["sounding"] for thing in things))
    assert len(seen) > 1, "the number of sounding objects never changes in the drawn clips"


def test_the_mask_lies_on_the_pixels_of_the_sounding_class(tree: Path) -> None:
    for row in _rows(tree, "Single-source/s4_meta_data.csv"):
        place = f"{row['split']}/{row['category']}/{row['name']}/{row['name']}_1.png"
        data = tree / "Single-source/s4_data"
        image = media.decode_image((data / "visual_frames" / place).read_bytes()).astype(int)
        mask_HW = _mask(data / "gt_masks" / place)
        assert 0.01 < mask_HW.mean() < 0.6
        main = int(np.argmax(COLOUR[row["category"]]))
        others = np.delete(image, main, axis=-1).max(-1)
        assert (image[..., main] > others + 20)[mask_HW].mean() > 0.95


def test_s4_always_shows_a_silent_object_of_another_class(pools: Pools) -> None:
    for plan in plan_miniature(pools, CONFIG):
        classes = [actor.class_name for actor in plan.actors if actor.class_name]
        assert len(set(classes)) == len(classes) == 2
        if plan.subset == "s4":
            heard = [name for name in classes if any(plan.sounds(name, k) for k in range(5))]
            assert heard == [plan.category]
            assert all(plan.sounds(plan.category, k) for k in range(5))


def test_example_k_of_the_sound_holds_exactly_what_sounds_in_frame_k(
    pools: Pools, folder: Path
) -> None:
    states = set()
    for plan in plan_miniature(pools, CONFIG):
        wave_N = render_sound(plan, str(folder))
        for k in range(5):
            example_N = wave_N[k * EXAMPLE_HOP : k * EXAMPLE_HOP + EXAMPLE_LENGTH]
            for name, pitch in PITCH.items():
                assert (_level(example_N, pitch) > 0.01) == plan.sounds(name, k), (plan.name, k)
            states.add(sum(plan.sounds(name, k) for name in PITCH))
    assert states >= {0, 1, 2}


def _level(wave_N: np.ndarray, pitch: float) -> float:
    times_N = np.arange(wave_N.size) / media.SAMPLE_RATE
    return float(np.abs(np.mean(wave_N * np.exp(-2j * np.pi * pitch * times_N))))


def test_pauses_are_cut_short() -> None:
    tone_N = np.sin(np.arange(8_000) * 0.3).astype(np.float32)
    kept_N = without_pauses(np.concatenate([tone_N, np.zeros(32_000, np.float32), tone_N]))
    assert 16_000 <= kept_N.size <= 16_000 + 4_000


def test_objects_move_in_every_clip(pools: Pools) -> None:
    def travel(plan: ClipPlan) -> float:
        ways = [np.subtract(*actor.centres) for actor in plan.actors if actor.class_name]
        return float(max(np.hypot(*way) for way in ways))

    assert all(travel(plan) > 5.0 for plan in plan_miniature(pools, CONFIG))


def test_splits_share_no_background(pools: Pools) -> None:
    used: dict[str, set[str]] = {}
    for plan in plan_miniature(pools, CONFIG):
        used.setdefault(plan.split, set()).add(plan.background)
    assert not used["train"] & used["test"]
    assert not used["train"] & used["val"]
    assert not used["val"] & used["test"]
    assert "other.png" not in set.union(*used.values())


def test_same_seed_same_bytes_in_any_order_of_writing(
    pools: Pools, folder: Path, tree: Path, tmp_path: Path
) -> None:
    def backwards(rows, fn):  # type: ignore[no-untyped-def]
        return [fn(row) for row in reversed(rows)]

    write_miniature(str(tmp_path), pools, CONFIG, str(folder), map_rows=backwards)
    assert _content(tmp_path) == _content(tree)
    other = MiniatureConfig(**{**vars(CONFIG), "seed": 1})
    assert plan_miniature(pools, other) != plan_miniature(pools, CONFIG)


def _content(root: Path) -> dict[str, bytes]:
    paths = storage.list_files(str(root))
    return {path.removeprefix(str(root)): Path(path).read_bytes() for path in paths}


def test_a_second_run_writes_nothing(pools: Pools, folder: Path, tree: Path) -> None:
    def never(rows, fn):  # type: ignore[no-untyped-def]
        raise AssertionError("the tree stands already")

    summary = write_miniature(str(tree), pools, CONFIG, str(folder), map_rows=never)
    assert summary["counts"]["s4"] == {"train": 3, "val": 1, "test": 3}


def test_too_few_backgrounds_and_classes_are_named(pools: Pools) -> None:
    few = MiniatureConfig(**{**vars(CONFIG), "collection": "other"})
    with pytest.raises(ValueError, match=r"1 backgrounds are of the collection 'other'"):
        plan_miniature(pools, few)
    one = Pools(
        objects={"red": pools.objects["red"]},
        clips=pools.clips,
        backgrounds=pools.backgrounds,
        silent=[],
    )
    with pytest.raises(ValueError, match=r"two classes .* got \['red'\]"):
        plan_miniature(one, CONFIG)
