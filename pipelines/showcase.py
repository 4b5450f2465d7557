"""What a person can look at: a contact sheet, and predictions on a clip and on a photo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra import media, storage
from infra.corpus import Corpus
from infra.video import write_video
from model import SAVE
from pipelines.predict import PredictConfig, predict
from synth.catalog import Catalog
from synth.tables import Clip, Photo
from training.evaluation import examples
from training.overlay import contact_sheet
from training.samples import load_sound

_ROWS = 8
_FRAME_RATE = 8


@dataclass(frozen=True, kw_only=True)
class Showcase:
    """Where the pictures go and which are drawn."""

    folder: Path
    seed: int


def show(
    showcase: Showcase, *, model_folder: str, sheet_model: SAVE, corpus: Corpus, catalog: Catalog
) -> dict[str, Path]:
    """Make all pictures; returns them by name.

    Args:
        model_folder: the model that predicts, as ``predict`` takes it.
        sheet_model: the model of the contact sheet.
        corpus: clips of the miniature; its test split is shown.
        catalog: photos and sounds to predict on.
    """
    showcase.folder.mkdir(parents=True, exist_ok=True)
    rows = _spread(len(corpus.table("test")), _ROWS)
    sheet = showcase.folder / "contact_sheet.png"
    storage.write_bytes(
        sheet, media.encode_png(contact_sheet(examples(sheet_model, corpus, "test", rows)))
    )
    clip = showcase.folder / "clip.mp4"
    write_clip(corpus, "test", rows[0], clip)
    of_clip = predict(
        PredictConfig(model=model_folder, input=str(clip), output=str(clip.with_suffix("")))
    )
    photo, sound = photo_with_sound(catalog)
    of_photo = predict(
        PredictConfig(
            model=model_folder,
            input=catalog.uri_of(photo),
            sound=catalog.uri_of(sound),
            output=str(showcase.folder / "photo"),
        )
    )
    return {
        "contact_sheet": sheet,
        "clip": clip,
        "overlay": Path(of_clip["overlay"]),
        "prediction": Path(of_photo["overlay"]),
    }


def write_clip(corpus: Corpus, split: str, row: int, target: Path) -> None:
    """A corpus's clip as an mp4: each frame for its second, with the sound."""
    sample = corpus.read(split, row)
    frames = [
        media.decode_image(data)[..., :3]
        for name, data in sorted(sample.members.items())
        if name.startswith("frame")
    ]
    held = [frame for frame in frames for _ in range(_FRAME_RATE)]
    write_video(target, held, rate=_FRAME_RATE, wave_N=load_sound(corpus, split, row))


def photo_with_sound(catalog: Catalog) -> tuple[Photo, Clip]:
    """The first natural photo whose class has a sound, and that sound.

    Raises:
        ValueError: the catalog has no such photo.
    """
    for photo in sorted(catalog.photos, key=lambda row: row.id):
        for clip in catalog.clips:
            if clip.class_name == photo.class_name:
                return photo, clip
    raise ValueError(
        "the media hold no photo of a class that has a sound: add photos/<class>/*.jpg"
    )


def _spread(count: int, wanted: int) -> list[int]:
    return sorted({int(n) for n in np.linspace(0, count - 1, min(wanted, count))})
