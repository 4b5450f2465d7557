"""The row types of every table.

An ``id`` is unique in its catalog. A ``uri`` is ``root:path``, the path being below the folder that
the catalog knows as ``root``, or just a path where that is the media folder. ``sha256`` is of the
*decoded* content, so that two files with the same content have the same one, and ``file_sha256`` of
the file as it lies there, by which a later change is noticed. ``source`` is the package or
collection, ``author`` and ``origin`` (a page or the name of the original) stand where the source
tells them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from infra import storage
from infra.corpus import Refused as Refused

MEDIA = "media"
"""The root of Debian's media and of a person's own: their URIs are plain paths."""

ROLES = ("object", "annotated", "sound", "background", "silent", "photo")


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An object that a source marks in a photograph, not looked at yet.

    Just one of ``segmentation``, ``mask_path`` and ``refusal`` is set.
    """

    id: str
    """Unique in its source."""
    class_name: str
    segmentation: str = ""
    """JSON of COCO's ``segmentation``: a list of polygons, or run lengths (``counts`` a list or a
    string) with their ``size``."""
    mask_path: str = ""
    """A mask picture below the source's folder."""
    crowd: bool = False
    """Whether it covers several objects that nobody told apart (COCO's ``iscrowd``)."""
    refusal: str = ""
    """The reason where the source itself knows that it must not be used."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture or sound that a source offers for a role, not looked at yet."""

    role: str
    """One of ``ROLES``; an ``annotated`` one is a photograph with objects marked in it."""
    source: str
    """The package or collection."""
    path: str
    """Of the file, below the folder of its source."""
    root: str = MEDIA
    """The name under which the catalog knows that folder."""
    class_name: str = ""
    licence: str = ""
    author: str = ""
    origin: str = ""
    collection: str = ""
    video: str = ""
    """The YouTube id of the video that a sound was cut from, where there is one; or its own name,
    where it is from some video that cannot be told."""
    recording: str = ""
    """Of a sound from no video the name of the recording that it was cut from, as others may be."""
    annotations: tuple[Annotation, ...] = ()
    """The objects in an annotated photograph, those of the taxonomy's classes alone."""
    absent: tuple[str, ...] = ()
    """Classes of which the source states that the photograph does not show them."""
    partial: tuple[str, ...] = ()
    """Classes of which not all there are in the photograph may be marked in it."""
    refusal: str = ""
    """The reason where the source itself knows that it must not be used."""

    @property
    def uri(self) -> str:
        """The path with its root, see above."""
        return self.path if self.root == MEDIA else f"{self.root}:{self.path}"

    def refused(self, reason: str) -> Candidate:
        """The same candidate with a reason why it must not be used."""
        return dataclasses.replace(self, refusal=reason)


@dataclass(frozen=True, kw_only=True)
class Object:
    """Something in a picture: a photographic cut-out (RGBA), or what a mask marks in a photograph.

    Pixels are those of the picture as it is stored. Silent things, which scenes have as
    distractors, are rows of the same type in a table of their own.
    """

    id: str
    class_name: str
    uri: str
    """Of the picture."""
    source: str
    licence: str
    author: str
    origin: str
    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int
    """The mask's bounding box; right and bottom are the first pixels outside."""
    mask_fraction: float
    """Share of the picture's pixels that the mask covers."""
    mask: str
    """COCO's compressed run lengths; "" where the picture's alpha is the mask."""
    crowd: bool
    """Whether it is several objects that nobody told apart."""
    partial: bool
    """Whether more of its class may be in the picture, unmarked."""
    absent: str
    """Classes that the source states are not in the picture, with ``|`` between them."""
    picture: str
    """sha256 of the decoded picture: what is in one photograph has the same."""
    sha256: str
    file_sha256: str

    @property
    def natural(self) -> bool:
        """Whether it stands in a photograph of its own."""
        return bool(self.mask)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A sound of one class. ``rate`` in Hz; ``rms`` and ``peak`` of full scale 1, in mono."""

    id: str
    class_name: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    video: str
    """As ``Candidate.video``; "" where it is from none."""
    recording: str = ""
    """As ``Candidate.recording``; "" where it has no name."""
    seconds: float
    loudest: float
    """Where its loudest second begins, in seconds."""
    rate: int
    rms: float
    peak: float
    sha256: str
    file_sha256: str


@dataclass(frozen=True, kw_only=True)
class Background:
    """A photograph without anything in it that sounds. ``collection`` groups similar ones."""

    id: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    collection: str
    width: int
    height: int
    sha256: str
    file_sha256: str


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A natural photograph of a class, without a mask: something to predict on."""

    id: str
    class_name: str
    uri: str
    source: str
    licence: str
    author: str
    origin: str
    width: int
    height: int
    sha256: str
    file_sha256: str


def locate(roots: Mapping[str, str], uri: str) -> str:
    """Where the file of a row's ``uri`` lies, given the folder of every root.

    Raises:
        ValueError: the path leads out of its folder.
    """
    root, colon, path = uri.partition(":")
    if colon and root in roots:
        return storage.join(roots[root], path)
    return storage.join(roots[MEDIA], uri)
