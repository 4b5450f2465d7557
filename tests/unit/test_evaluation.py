"""What evaluation promises, shown on models whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infra.corpus import Corpus
from tests.made_corpus import colour, tone, write_made_corpus
from training import clips, evaluation
from training.augmentation import IMAGE_MEAN, IMAGE_SPREAD
from training.listening import listening
from training.samples import clip_log_mel

CLASSES = 4
SIZE = 64


class Fake(nn.Module):
    """Answers with logits of 20 inside and -20 outside; S is the size of the made pictures."""

    def __init__(self, image_size: int = SIZE) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=image_size)
        self.batches: list[int] = []

    def forward(self, image: Tensor, log_mel: Tensor) -> Tensor:
        self.batches.append(len(image))
        pixels = image.permute(0, 2, 3, 1) * torch.from_numpy(IMAGE_SPREAD) + torch.from_numpy(
            IMAGE_MEAN
        )
        inside = [self.answer(*pair) for pair in zip(pixels, log_mel, strict=True)]
        return (torch.stack(inside)[:, None].float() * 2 - 1) * 20

    def answer(self, picture_SS3: Tensor, log_mel_1MF: Tensor) -> Tensor:
        raise NotImplementedError


class Blind(Fake):
    """Every object, whatever sounds."""

    def answer(self, picture_SS3: Tensor, log_mel_1MF: Tensor) -> Tensor:
        return picture_SS3.amax(-1) - picture_SS3.amin(-1) > 0.5


class Listener(Fake):
    """Exactly the object that sounds."""

    def __init__(self, image_size: int = SIZE) -> None:
        super().__init__(image_size)
        waves = [tone(number, 1) for number in range(CLASSES)]
        heard = [*waves, np.zeros_like(waves[0])]
        self.known = torch.cat([clip_log_mel(wave_N, 1) for wave_N in heard])

    def heard(self, log_mel_1MF: Tensor) -> int:
        return int((self.known - log_mel_1MF).abs().mean((1, 2, 3)).argmin())

    def answer(self, picture_SS3: Tensor, log_mel_1MF: Tensor) -> Tensor:
        number = self.heard(log_mel_1MF)
        if number == CLASSES:
            return torch.zeros(picture_SS3.shape[:2], dtype=torch.bool)
        wanted = torch.from_numpy(colour(number, CLASSES).astype(np.float32) / 255)
        return (picture_SS3 - wanted).abs().amax(-1) < 0.02


class Empty(Fake):
    def answer(self, picture_SS3: Tensor, log_mel_1MF: Tensor) -> Tensor:
        return torch.zeros(picture_SS3.shape[:2], dtype=torch.bool)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return write_made_corpus(str(folder), classes=CLASSES, size=SIZE, frames=2)


def test_a_perfect_listener_scores_one_and_falls_when_the_sound_is_swapped(corpus: Corpus) -> None:
    scores = evaluation.score_sounds(Listener(), corpus, "test")
    assert scores["own"] == {
        "m_j": pytest.approx(1.0),
        "m_f": pytest.approx(1.0),
        "clips": 8,
        "frames": 16,
    }
    assert scores["swapped"]["m_j"] == 0.0
    assert scores["silence"]["m_j"] == 0.0


def test_a_model_without_ears_scores_the_same_for_every_sound(corpus: Corpus) -> None:
    scores = evaluation.score_sounds(Blind(), corpus, "test")
    blind = evaluation.sound_blind(corpus, "test")
    for sound in clips.SOUNDS:
        assert scores[sound] == pytest.approx(blind)
    assert blind is not None and blind["m_j"] == pytest.approx(0.5, abs=0.01)


def test_one_score_is_the_score_of_that_sound(corpus: Corpus) -> None:
    together = evaluation.score_sounds(Listener(), corpus, "test")
    assert evaluation.score(Listener(), corpus, "test", sound="swapped") == together["swapped"]


def test_sound_blind_is_none_where_no_object_is_known(tmp_path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"test": 2}, with_objects=False)
    assert evaluation.sound_blind(corpus, "test") is None
    assert listening(Blind(), corpus, "test") is None


def test_a_perfect_listener_picks_and_flips_always(corpus: Corpus) -> None:
    found = listening(Listener(), corpus, "test")
    assert found is not None
    assert (found["picked_right"], found["flips"], found["silence_empty"]) == (1.0, 1.0, 1.0)
    assert (found["samples"], found["scenes"]) == (8, 4)
    assert found["m_j"] == pytest.approx(1.0)
    assert found["m_j_sound_blind"] == pytest.approx(0.5, abs=0.01)


def test_the_mask_of_both_objects_is_no_pick(corpus: Corpus) -> None:
    found = listening(Blind(), corpus, "test")
    assert found is not None
    # Both squares are equally large, so the mask of both is a tie.
    assert (found["picked_right"], found["flips"], found["silence_empty"]) == (0.0, 0.0, 0.0)
    assert found["m_j"] == pytest.approx(found["m_j_sound_blind"])


def test_an_empty_mask_is_no_pick(corpus: Corpus) -> None:
    found = listening(Empty(), corpus, "test")
    assert found is not None
    assert (found["picked_right"], found["flips"], found["silence_empty"]) == (0.0, 0.0, 1.0)


def test_always_the_left_object_is_half_right_and_never_flips(corpus: Corpus) -> None:
    class Left(Blind):
        def answer(self, picture_SS3: Tensor, log_mel_1MF: Tensor) -> Tensor:
            inside_SS = super().answer(picture_SS3, log_mel_1MF)
            inside_SS[:, SIZE // 2 :] = False
            return inside_SS

    found = listening(Left(), corpus, "test")
    assert found is not None
    assert (found["picked_right"], found["flips"]) == (0.5, 0.0)


def test_samples_without_a_partner_make_no_scene(corpus: Corpus) -> None:
    found = listening(Listener(), corpus, "train")
    assert found is not None
    # Every eighth of 24 is silent and shows no sounding object.
    assert (found["samples"], found["scenes"], found["flips"]) == (21, 0, 0.0)


def test_a_swapped_sound_is_of_the_silent_object_and_never_of_the_sounding_one(
    corpus: Corpus,
) -> None:
    table = corpus.table("test")
    for row in range(len(table)):
        meta = corpus.read("test", row, names=[]).meta
        other = corpus.read("test", clips.swapped_row(corpus, "test", row), names=[]).meta
        silent = {t["class"] for t in meta["objects"][0] if not t["sounding"]}
        assert set(other["classes"]) == silent
        assert clips.swapped_row(corpus, "test", row) == clips.swapped_row(
            Corpus.open(corpus.uri), "test", row
        )


def test_without_object_masks_a_swapped_sound_is_of_any_other_class(tmp_path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"test": 8}, with_objects=False)
    classes = corpus.table("test")["classes"].to_pylist()
    for row, own in enumerate(classes):
        assert not set(own) & set(classes[clips.swapped_row(corpus, "test", row)])


def test_nothing_to_swap_is_said(tmp_path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"test": 1})
    assert not clips.can_swap(corpus, "test")
    with pytest.raises(ValueError, match="no sound can be swapped in"):
        evaluation.score(Blind(), corpus, "test", sound="swapped")


def test_only_annotated_frames_count(tmp_path) -> None:
    corpus = write_made_corpus(str(tmp_path), samples={"train": 4}, frames=3, first_mask_only=True)
    scores = evaluation.score(Listener(), corpus, "train")
    assert (scores["clips"], scores["frames"], scores["m_j"]) == (4, 4, pytest.approx(1.0))


def test_scores_do_not_depend_on_the_batches(corpus: Corpus, monkeypatch) -> None:
    whole = evaluation.score_sounds(Listener(), corpus, "test")
    monkeypatch.setattr(clips, "_frames_per_batch", lambda side: 3)
    model = Listener()
    assert evaluation.score_sounds(model, corpus, "test") == whole
    assert max(model.batches) == 3


def test_logits_are_compared_at_the_size_of_the_true_mask(corpus: Corpus) -> None:
    half = evaluation.score(Listener(image_size=SIZE // 2), corpus, "test")
    # Blurred edges of a small picture cost some overlap, but no clip is lost.
    assert 0.5 < half["m_j"] < 1.0
    logits = evaluation.predict_clip(
        Blind(image_size=32), torch.zeros(3, 3, 32, 32), torch.zeros(3, 1, 96, 64), (24, 40)
    )
    assert logits.shape == (3, 24, 40) and logits.dtype == torch.float32


def test_a_limit_takes_whole_scenes_from_all_over_the_split(corpus: Corpus) -> None:
    found = listening(Listener(), corpus, "test", limit=4)
    assert found is not None and (found["samples"], found["scenes"]) == (4, 2)
    assert evaluation.score(Listener(), corpus, "test", limit=3)["clips"] == 3


def test_evaluation_leaves_the_model_in_its_mode(corpus: Corpus) -> None:
    class Modes(Blind):
        seen: set[bool] = set()  # noqa: RUF012

        def forward(self, image: Tensor, log_mel: Tensor) -> Tensor:
            self.seen.add(self.training)
            return super().forward(image, log_mel)

    model = Modes().train()
    evaluation.score(model, corpus, "test")
    assert model.training and model.seen == {False}


def test_examples_show_what_sounds_and_what_was_put_in_its_place(corpus: Corpus) -> None:
    rows = evaluation.examples(Listener(), corpus, "test", [0, 5])
    for row in rows:
        assert row.image_HW3.shape == (SIZE, SIZE, 3)
        assert np.array_equal(row.predicted_HW, row.truth_HW)
        assert row.swapped_HW.any() and not (row.swapped_HW & row.truth_HW).any()
        assert row.caption != row.swapped_caption
