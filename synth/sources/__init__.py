"""Where pictures and sounds come from: one module per source, each yielding candidates."""

from __future__ import annotations

from collections.abc import Iterator

from infra import storage
from synth.sources import debian_media, folder
from synth.tables import Candidate


def candidates(media: str) -> Iterator[Candidate]:
    """What a media folder offers, whether made from the Debian packages or a person's own."""
    if storage.exists(storage.join(media, debian_media.MARKER)):
        return debian_media.candidates(media)
    return folder.candidates(media)
