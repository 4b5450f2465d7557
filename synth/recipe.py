"""The recipe of a synthetic corpus: every field that its bytes depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

TRAIN, VAL, TEST, UNSEEN = "train", "val", "test", "unseen"
SPLITS = (TRAIN, VAL, TEST, UNSEEN)

Scenes = Literal["composite", "natural"]
Order = Literal["objects", "classes"]
Marks = Literal["class", "instance"]
Stretch = Literal["random", "loudest"]
Guard = Literal["val_test", "zero_shot", "none"]

_SHARES = ("max_refused", "min_mask_area", "overlap", "flip", "light", "silence", "off_screen")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples per split; 0 leaves a split out."""

    train: int = 4096
    """Samples to train on."""
    val: int = 200
    """Samples for choosing a checkpoint."""
    test: int = 400
    """Samples for the reported score."""
    unseen: int = 200
    """Composite scenes of pictures and sounds that no other split has, where the others share
    theirs."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How scenes and their sound are drawn."""

    scenes: Scenes = "composite"
    """composite: cut-outs on backgrounds; natural: each object in its own photograph."""

    classes: tuple[str, ...] = ()
    """Classes to use; empty takes every class that has a picture and a sound."""
    tiers: tuple[str, ...] = ()
    """Only classes of these tiers of the taxonomy, A (many masks) to D (none proven)."""
    needed_by: str = ""
    """Only the classes that a benchmark needs: s4 or avss."""
    allow_non_commercial: bool = True
    """Use media whose licence forbids commercial use."""
    allow_unstated: bool = True
    """Use media whose licence nobody states."""
    held_out: Guard = "val_test"
    """Sounds that are not used: val_test, those from videos of AVSBench's val and test splits;
    zero_shot, those of S4's train split as well; none, no sound is held out."""
    held_out_tables: tuple[str, ...] = ()
    """Your own AVSBench tables (paths or URIs), whose videos are held out as well."""
    max_refused: float = 0.2
    """Largest share of the inputs that may turn out unusable; past it the job stops."""

    samples: Samples = Samples()
    """Samples per split."""
    grown_from: tuple[Samples, ...] = ()
    """The samples that the corpus had before it was extended, oldest first; --extend sets it."""
    samples_per_shard: int = 256
    """Samples in one tar; a shard is what one task writes and commits."""
    image_size: int = 256
    """Side of the square pictures in pixels."""
    seconds: float = 1.0
    """Length of the sound; the picture belongs to its first second."""
    jpeg_quality: int = 95
    """Quality of the pictures, 1 to 100."""

    own_assets: bool = False
    """Composite: val and test have pictures and sounds of their own, as natural scenes always do.
    Needs many of each; without it they share train's, and unseen has some of its own."""
    asset_shares: tuple[float, float, float] = (0.84, 0.08, 0.08)
    """Shares of the pictures and sounds that train, val and test have to themselves."""
    order: Order = "objects"
    """Natural: objects shows every object once before any twice; classes gives every class the
    same number of samples."""
    marks: Marks = "class"
    """Natural: the mask covers everything of the class in the photograph, or the one instance."""
    crop: tuple[float, float] = (1.0, 1.0)
    """Natural: side of the part of the photograph that is shown, as a share of its sides; it always
    holds the object's box as far as it can."""
    min_mask_area: float = 0.0
    """Smallest share of the picture that is visible of each class that a scene is about, whether
    it sounds or not; distractors may show less."""

    backgrounds: tuple[str, ...] = ()
    """Composite: collections of backgrounds to use; empty takes all."""
    background_shares: tuple[float, float, float, float] = (0.64, 0.1, 0.16, 0.1)
    """Composite: shares of the backgrounds that the four splits have to themselves."""
    object_counts: tuple[float, float, float] = (0.15, 0.65, 0.2)
    """Composite: weights of scenes with one, two and three objects of different classes (train)."""
    distractors: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Composite: weights of zero, one and two silent distractors."""
    long_side: tuple[float, float] = (0.34, 0.56)
    """Composite: long side of an object as a share of the picture's side."""
    distractor_side: tuple[float, float] = (0.15, 0.3)
    """Composite: long side of a distractor as a share of the picture's side."""
    overlap: float = 0.25
    """Composite: largest share of an object's box that another may cover."""
    feather: tuple[float, float] = (0.3, 0.8)
    """Composite: blur of the objects' edges in pixels (standard deviation)."""
    flip: float = 0.5
    """Share of objects, backgrounds and photographs that are mirrored."""
    light: float = 0.25
    """Largest change of brightness and contrast; colour channels vary by a third of it."""

    sources: tuple[float, float, float] = (0.9, 0.1, 0.0)
    """Weights of one, two and three sounding classes, as far as the scene has so many (train)."""
    silence: float = 0.05
    """Share of train samples whose sound is noise alone and whose mask is empty."""
    off_screen: float = 0.0
    """Share of train samples that sound of a class that is not in the picture, with an empty
    mask; natural: as far as the sources state which classes a photograph does not show."""
    stretch: Stretch = "random"
    """Which part of a longer clip is heard: any, or the loudest."""
    gain_db: tuple[float, float] = (-10.0, 4.0)
    """Level of each sound against the reference loudness, in dB."""
    noise_db: tuple[float, float] = (-60.0, -26.0)
    """Level of the noise floor against the reference loudness, in dB."""

    @property
    def paired(self) -> bool:
        """Whether each scene of val, test and unseen comes twice, with the sound of either of its
        two objects."""
        return self.scenes == "composite"

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 16:
            raise ValueError(
                f"image_size is {self.image_size}: use a multiple of 16 of at least 32"
            )
        if self.seconds < 0.975:
            raise ValueError(f"seconds is {self.seconds}: one audio example needs at least 0.975 s")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}: use at least 1")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}: use 1 to 100")
        self._check_samples()
        for name in ("background_shares", "asset_shares"):
            shares = getattr(self, name)
            if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
                raise ValueError(f"{name} are {shares}: they must be 0 or more and add up to 1")
        for name in ("object_counts", "distractors", "sources"):
            weights = getattr(self, name)
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"{name} are {weights}: use weights of 0 or more, not all 0")
        for name in ("long_side", "distractor_side", "feather", "gain_db", "noise_db", "crop"):
            low, high = getattr(self, name)
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"{name} is {(low, high)}: use two numbers, the lower end first")
        for name in ("long_side", "distractor_side"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: use shares above 0")
        if self.feather[0] < 0:
            raise ValueError(f"feather is {self.feather}: use 0 or more pixels")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is {self.crop}: use shares above 0 and at most 1")
        for name in _SHARES:
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}: use a share, 0 to 1")
        if self.silence + self.off_screen > 1:
            raise ValueError(
                f"silence and off_screen are {self.silence} and {self.off_screen}: "
                "together they may be 1 at most"
            )

    def _check_samples(self) -> None:
        earlier = [*self.grown_from, self.samples]
        if any(count < 0 for counts in earlier for count in vars(counts).values()):
            raise ValueError(f"samples are {self.samples}: use counts of 0 or more")
        for split in SPLITS:
            counts = [getattr(samples, split) for samples in earlier]
            if counts != sorted(counts):
                raise ValueError(f"samples.{split} grew as {counts}: a corpus never gets smaller")
            if self.paired and split != TRAIN and counts[-1] % 2:
                raise ValueError(
                    f"samples.{split} is {counts[-1]}: use an even number, each scene there comes "
                    "twice"
                )
        if self.scenes == "natural" and self.samples.unseen:
            raise ValueError(
                f"samples.unseen is {self.samples.unseen}: natural scenes of val and test have "
                "pictures and sounds of their own already, set it to 0"
            )
