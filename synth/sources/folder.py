"""A person's own pictures and sounds, in a folder or below an ``s3://`` prefix.

objects/<class>/*.png      cut-outs with transparency
sounds/<class>/*.wav       also flac, ogg, mp3
backgrounds/*.jpg          also png, webp
silent/*.png               cut-outs of things without a sound (optional)
photos/<class>/*.jpg       natural photographs to predict on (optional)
"""

from __future__ import annotations

from collections.abc import Iterator

from infra import storage
from synth.tables import Candidate

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_SOUNDS = (".flac", ".mp3", ".oga", ".ogg", ".wav")

# folder name -> (role, whether a class folder follows, endings)
_LAYOUT = {
    "objects": ("object", True, _PICTURES),
    "sounds": ("sound", True, _SOUNDS),
    "backgrounds": ("background", False, _PICTURES),
    "silent": ("silent", False, _PICTURES),
    "photos": ("photo", True, _PICTURES),
}
SOURCE = "folder"


def candidates(folder: str) -> Iterator[Candidate]:
    """Every picture and sound of the layout above, by path; other files are left alone.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds none.
    """
    root = storage.normalise(folder)
    empty = True
    for uri in storage.list_files(root):
        path = uri[len(root) + 1 :]
        parts = path.split("/")
        role, has_class, endings = _LAYOUT.get(parts[0], ("", False, ()))
        if not role or len(parts) < 2 + has_class or not path.lower().endswith(endings):
            continue
        empty = False
        yield Candidate(
            role=role,
            class_name=parts[1] if has_class else "",
            source=SOURCE,
            path=path,
            licence="not stated",
        )
    if empty and not storage.exists(root):
        raise FileNotFoundError(f"{folder} does not exist: check the path or URI")
    if empty:
        raise ValueError(
            f"{folder} holds no media: it needs objects/<class>/*.png, sounds/<class>/*.wav and "
            "backgrounds/*.jpg"
        )
