"""Where pictures and sounds come from: one module per source, each yielding candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from infra import storage
from synth.sources import (
    audioset,
    avs_synthetic,
    coco,
    debian_media,
    esc50,
    folder,
    fsd50k,
    lvis,
    open_images,
    vggsound,
)
from synth.tables import MEDIA, Candidate
from synth.taxonomy import Labels

# reader -> the column of the taxonomy that has its labels
_READERS: dict[ModuleType, str] = {
    lvis: "lvis",
    coco: "coco",
    open_images: "openimages",
    avs_synthetic: "vggsound",
    vggsound: "vggsound",
    audioset: "audioset",
    esc50: "esc50",
    fsd50k: "fsd50k",
}
READERS: dict[str, ModuleType] = {module.NAME: module for module in _READERS}


def candidates(media: str) -> Iterator[Candidate]:
    """What a media folder offers, whether made from the Debian packages or a person's own."""
    if storage.exists(storage.join(media, debian_media.MARKER)):
        return debian_media.candidates(media)
    return folder.candidates(media)


class Offer:
    """What a media folder and the field's own collections offer together.

    Args:
        media: a media folder, or None for none.
        sources: by a reader's name its configuration.

    Iterating it reads the tables and lists the folders anew each time. ``labels`` holds what the
    readers met outside the taxonomy the last time.
    """

    def __init__(self, media: str | None, sources: Mapping[str, Any]) -> None:
        self.media = media
        self.sources = dict(sources)
        self.labels: dict[str, Labels] = {}

    @property
    def roots(self) -> dict[str, str]:
        """The folder of each root."""
        own = {} if self.media is None else {MEDIA: self.media}
        return {**own, **{name: source.folder for name, source in self.sources.items()}}

    def __iter__(self) -> Iterator[Candidate]:
        if self.media is not None:
            yield from candidates(self.media)
        for name, source in self.sources.items():
            reader = READERS[name]
            self.labels[name] = Labels(_READERS[reader])
            yield from reader.candidates(source, self.labels[name])
