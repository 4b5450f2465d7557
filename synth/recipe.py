"""The recipe of a synthetic corpus: every field that its bytes depend on."""

from __future__ import annotations

from dataclasses import dataclass

TRAIN, VAL, TEST, UNSEEN = "train", "val", "test", "unseen"
SPLITS = (TRAIN, VAL, TEST, UNSEEN)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples per split; 0 leaves a split out."""

    train: int = 4096
    """Samples to train on."""
    val: int = 200
    """Samples for choosing a checkpoint: known assets, own scenes and backgrounds."""
    test: int = 400
    """Samples for the reported score: known assets, own scenes and backgrounds."""
    unseen: int = 200
    """Samples of pictures and sounds that no other split has."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How scenes and their sound are drawn."""

    classes: tuple[str, ...] = ()
    """Classes to use; empty takes every class that has a picture and a sound."""
    samples: Samples = Samples()
    """Samples per split."""
    samples_per_shard: int = 256
    """Samples in one tar; a shard is what one task writes and commits."""
    image_size: int = 256
    """Side of the square pictures in pixels."""
    seconds: float = 1.0
    """Length of the sound; the picture belongs to its first second."""
    backgrounds: tuple[str, ...] = ()
    """Collections of backgrounds to use; empty takes all."""
    background_shares: tuple[float, float, float, float] = (0.64, 0.1, 0.16, 0.1)
    """Shares of the backgrounds that train, val, test and unseen have to themselves."""
    object_counts: tuple[float, float, float] = (0.15, 0.65, 0.2)
    """Weights of scenes with one, two and three objects of different classes (train)."""
    multi_source: float = 0.1
    """Share of train scenes of two or more objects in which two of them sound."""
    silence: float = 0.05
    """Share of train samples whose sound is noise alone and whose mask is empty."""
    distractors: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Weights of zero, one and two silent distractors."""
    long_side: tuple[float, float] = (0.34, 0.56)
    """Long side of an object as a share of the picture's side."""
    distractor_side: tuple[float, float] = (0.15, 0.3)
    """Long side of a distractor as a share of the picture's side."""
    overlap: float = 0.25
    """Largest share of an object's box that another may cover."""
    flip: float = 0.5
    """Share of objects and backgrounds that are mirrored."""
    light: float = 0.25
    """Largest change of brightness and contrast; colour channels vary by a third of it."""
    feather: tuple[float, float] = (0.3, 0.8)
    """Blur of the objects' edges in pixels (standard deviation)."""
    gain_db: tuple[float, float] = (-10.0, 4.0)
    """Level of each sound against the reference loudness, in dB."""
    noise_db: tuple[float, float] = (-60.0, -26.0)
    """Level of the noise floor against the reference loudness, in dB."""
    jpeg_quality: int = 95
    """Quality of the pictures."""

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 16:
            raise ValueError(
                f"image_size is {self.image_size}: use a multiple of 16 of at least 32"
            )
        if self.seconds < 0.975:
            raise ValueError(f"seconds is {self.seconds}: one audio example needs at least 0.975 s")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}: use at least 1")
        if any(count < 0 for count in vars(self.samples).values()):
            raise ValueError(f"samples are {self.samples}: use counts of 0 or more")
        for split in (VAL, TEST, UNSEEN):
            if getattr(self.samples, split) % 2:
                raise ValueError(
                    f"samples.{split} is {getattr(self.samples, split)}: use an even number, each "
                    "scene there comes twice"
                )
        if abs(sum(self.background_shares) - 1) > 1e-6:
            raise ValueError(
                f"background_shares are {self.background_shares}: they must add up to 1"
            )
        for name in ("object_counts", "distractors"):
            weights = getattr(self, name)
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"{name} are {weights}: use weights of 0 or more, not all 0")
        for name in ("long_side", "distractor_side", "feather", "gain_db", "noise_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is {(low, high)}: the lower end comes first")
