"""Prediction on real files: an mp4 with sound, and a photo with a wav."""

from __future__ import annotations

import json
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from infra import media
from infra.config import main
from infra.video import read_video, write_video
from model import build_save, saved
from pipelines.predict import PredictConfig, example_of, loudest_example, predict, predict_frame
from tests.made_corpus import tone
from training.samples import clip_log_mel

pytestmark = pytest.mark.integration

HEIGHT, WIDTH, SECONDS, RATE = 48, 80, 3, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    saved.save(build_save("save_tiny", image_size=64), folder)
    return folder


def _pictures(count: int) -> list[np.ndarray]:
    pictures = []
    for number in range(count):
        image_HW3 = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
        image_HW3[8:40, 4 + number : 30 + number] = (230, 40, 30)
        pictures.append(image_HW3)
    return pictures


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "-clip one.mp4"
    write_video(path, _pictures(SECONDS * RATE), rate=RATE, wave_N=tone(1, SECONDS + 1))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(media.encode_jpeg(_pictures(1)[0]))
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.wav"
    path.write_bytes(media.encode_wav(tone(2, 2)))
    return path


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_video_gives_a_mask_a_second_and_an_overlay_video(
    model: Path, video: Path, tmp_path: Path, fit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    argv = ["--model", str(model), f"--input={video}", "--output", str(output), "--fit", fit]
    with pytest.raises(SystemExit) as ended:
        main(predict, PredictConfig, argv=argv)
    assert ended.value.code == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["frames"] == SECONDS and not summary["silent"]
    masks = sorted(output.glob("mask*.png"))
    assert [path.name for path in masks] == [f"mask{k:05d}.png" for k in range(SECONDS)]
    for path, covered in zip(masks, summary["covered"], strict=True):
        mask_HW = media.decode_mask(path.read_bytes())
        assert mask_HW.shape == (HEIGHT, WIDTH)
        assert mask_HW.mean() == pytest.approx(covered, abs=1e-4)
    (pictures, _), (wave_N, rate) = read_video(output / "overlay.mp4")
    shown = list(pictures)
    assert len(shown) == SECONDS and shown[0][1].shape == (HEIGHT, WIDTH, 3)
    assert len(wave_N) / rate > SECONDS - 1 and summary["overlay"] == str(output / "overlay.mp4")


def test_a_photo_with_a_sound_gives_one_mask_and_an_overlay(
    model: Path, photo: Path, sound: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    summary = predict(
        PredictConfig(model=str(model), input=str(photo), sound=str(sound), output=str(output))
    )
    assert summary["frames"] == 1
    assert sorted(path.name for path in output.iterdir()) == ["mask00000.png", "overlay.png"]
    assert media.decode_image((output / "overlay.png").read_bytes()).shape == (HEIGHT, WIDTH, 3)


def test_a_video_without_sound_is_answered_as_for_silence_with_a_warning(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mute.mp4"
    write_video(path, _pictures(RATE), rate=RATE)
    with caplog.at_level(logging.WARNING, "predict"):
        summary = predict(PredictConfig(model=str(model), input=str(path), output=str(tmp_path)))
    assert summary["silent"] and summary["frames"] == 1
    assert "has no sound" in caplog.text


def test_another_sound_can_be_laid_under_a_video(
    model: Path, video: Path, sound: Path, tmp_path: Path
) -> None:
    config = PredictConfig(
        model=str(model), input=str(video), sound=str(sound), output=str(tmp_path / "out")
    )
    # The sound has two examples; the last one is heard again in the third second.
    assert predict(config)["frames"] == SECONDS


def test_bad_input_gives_one_sentence(
    model: Path, photo: Path, sound: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n")

    def attempt(input: Path, sound: Path | None = None, model: Path = model) -> None:
        predict(
            PredictConfig(
                model=str(model),
                input=str(input),
                sound=str(sound) if sound else None,
                output=str(tmp_path / "out"),
            )
        )

    with pytest.raises(ValueError, match="name its sound"):
        attempt(photo)
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4 does not exist"):
        attempt(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError, match=r"missing\.wav does not exist"):
        attempt(photo, tmp_path / "missing.wav")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be opened as a video"):
        attempt(text)
    with pytest.raises(ValueError, match=r"damaged\.png: the picture cannot be decoded"):
        attempt(damaged, sound)
    with pytest.raises(ValueError, match=r"photo\.jpg: the sound cannot be decoded"):
        attempt(photo, photo)
    with pytest.raises(FileNotFoundError):
        attempt(photo, sound, tmp_path / "no model")
    assert not (tmp_path / "out").exists(), "nothing is left behind that looks like an answer"


@pytest.mark.parametrize(
    ("rate", "total", "wanted"),
    [
        # int((l + 15/16) * rate), never beyond the last frame.
        (Fraction(25), 125, [23, 48, 73, 98, 123]),
        (Fraction(30_000, 1001), 149, [28, 58, 88, 118, 147]),
        (Fraction(25, 2), 58, [11, 24, 36, 49, 57]),
    ],
)
def test_frames_are_those_of_the_seconds_they_are_shown_in(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: Fraction,
    total: int,
    wanted: list[int],
) -> None:
    # The grey of the two halves tells the number.
    pictures = [np.full((HEIGHT, WIDTH, 3), number % 16 * 16, np.uint8) for number in range(total)]
    for number, image_HW3 in enumerate(pictures):
        image_HW3[:, WIDTH // 2 :] = number // 16 * 16
    write_video(tmp_path / "numbered.mp4", pictures, rate=rate, wave_N=tone(1, 5))
    seen = []

    def watched(_: object, image_HW3: np.ndarray, *__: object) -> np.ndarray:
        low, high = (image_HW3[:, part].mean() / 16 for part in (slice(0, 20), slice(60, 80)))
        seen.append(round(low) + 16 * round(high))
        return np.zeros(image_HW3.shape[:2], bool)

    monkeypatch.setattr("pipelines.predict.predict_frame", watched)
    predict(
        PredictConfig(
            model=str(model), input=str(tmp_path / "numbered.mp4"), output=str(tmp_path / "out")
        )
    )
    assert seen == wanted


def test_the_sound_keeps_up_with_a_long_video() -> None:
    assert [example_of(second) for second in range(10)] == list(range(10))
    begins = [example_of(second) * 15_360 / 16_000 for second in range(3_600)]
    assert all(abs(begin - second) < 0.4801 for second, begin in enumerate(begins))


def test_the_loudest_example_is_taken_whole() -> None:
    wave_N = np.concatenate([0.1 * tone(0, 1), tone(1, 1), 0.1 * tone(0, 1)])
    heard_N = loudest_example(wave_N)
    assert len(heard_N) == 15600 and np.abs(heard_N).max() == pytest.approx(0.5, abs=0.01)
    short_N = tone(0, 1)[:400]
    assert np.array_equal(loudest_example(short_N), short_N)


def test_letterbox_keeps_the_shape_of_what_is_seen(model: Path) -> None:
    class Seen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = saved.load(model).config

        def forward(self, image: torch.Tensor, log_mel: torch.Tensor) -> torch.Tensor:
            return image[:, :1]  # the red channel: what is redder than the mean is inside

    image_HW3 = np.full((32, 64, 3), 0, np.uint8)
    image_HW3[8:24, 24:40] = 255
    for fit in ("squash", "letterbox"):
        mask_HW = predict_frame(Seen(), image_HW3, clip_log_mel(tone(0, 1), 1)[0], fit)
        assert mask_HW.shape == (32, 64)
        wrong = mask_HW != (image_HW3[..., 0] == 255)
        assert wrong.mean() < 0.05
