"""Finding a tree: where the table is, and every file that belongs to a subset, from one listing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from infra import storage
from synth.avsbench import files as tree_files
from synth.avsbench.files import File
from synth.avsbench.table import SUBSETS, Entry, parts_of, read_table, table_name

MINIATURE = "miniature.json"

# Folders that the benchmark's own archives unpack to.
_FOLDERS = {"s4": ("Single-source",), "ms3": ("Multi-sources",)}
_SEMANTIC_FOLDERS = ("AVSBench_semantic", "AVSBench-semantic")
_PARTS = ("visual_frames", "gt_masks", "audio_wav")
_RAW, _LOG_MELS = "raw_videos", "audio_log_mel"
PICKLED = "pickled log-mels"
_LABELS = "label2idx.json"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A tree that holds one subset."""

    uri: str
    """The folder that holds the csv table and the data, or the zip file that does."""
    subset: str
    table: File
    files: dict[str, File]
    """Every frame, mask, sound and raw video, by its path in the benchmark's own layout."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files that are not read, by what they are."""
    label_classes: tuple[str, ...] = ()
    """Of AVSBench-semantic: the name of each class index."""
    miniature: dict[str, Any] = field(default_factory=dict)
    """The content of ``miniature.json``; empty for the real benchmark."""

    @property
    def kind(self) -> str:
        """For instance ``avsbench_s4``, with ``_miniature`` where it is one."""
        return f"avsbench_{self.subset}" + ("_miniature" if self.miniature else "")

    @property
    def fingerprint(self) -> str:
        """sha256 of the table, the paths and sizes, and of what a miniature was made from.

        It does not matter whether the files lie in folders or in zip files.
        """
        digest = hashlib.sha256(self.read_table())
        sizes = sorted((path, file.size) for path, file in self.files.items())
        digest.update(json.dumps(sizes).encode())
        digest.update(json.dumps(self.label_classes).encode() if self.label_classes else b"")
        digest.update(str(self.miniature.get("fingerprint", "")).encode())
        return digest.hexdigest()

    def read_table(self) -> bytes:
        """The csv table."""
        return _read_document(self.table)


def find(uri: str, subset: str) -> Layout:
    """The tree at ``uri``: the benchmark's folder, the subset's folder in it, or a zip file.

    Zip files that lie in these folders are looked into. A file that lies loose as well as in a zip
    file is read loose.

    Raises:
        ValueError: an unknown subset, or no such tree; says what was expected and what is there.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset {subset!r} is not known: use one of {', '.join(SUBSETS)}")
    root = storage.normalise(uri)
    table, folders = table_name(subset), _FOLDERS.get(subset, _SEMANTIC_FOLDERS)
    if root.endswith(".zip"):
        base = place = root.rpartition("/")[0]
        found, zips = {}, [root]
    else:
        places = [*(storage.join(root, folder) for folder in folders), root]
        loose = [p for p in places if storage.exists(storage.join(p, table))]
        base, place = root, loose[0] if loose else root
        found = _loose(place, subset, table if loose else "")
        zips = sorted({z for p in (root, place, *places) for z in _zips_in(p)} | _zips_of(found))
        if not loose and not zips:
            raise ValueError(
                f"{root} is no AVSBench tree: {_expected(subset)} is expected, "
                f"found {_names_in(root)}"
            )
    for archive in zips:
        for file in tree_files.list_zip(archive):
            path = _in_layout(archive.removeprefix(base), file.path, subset)
            if path and path not in found:
                found[path] = file._replace(path=path)
    return _layout(root, place, subset, found)


def table_of(layout: Layout) -> tuple[list[Entry], int]:
    """The rows of the tree's table, and how many stray headers there are among them.

    Raises:
        ValueError: it is no csv table in UTF-8, or has other columns.
    """
    return read_table(layout.read_table(), layout.subset, layout.table.uri)


def _layout(root: str, place: str, subset: str, found: dict[str, File]) -> Layout:
    table = found.pop(table_name(subset), None)
    if table is None:
        raise ValueError(
            f"{root} is no AVSBench tree: {_expected(subset)} is expected, and there is no "
            f"{table_name(subset)} in its zip files"
        )
    labels = found.pop(_LABELS, None)
    marker = found.pop(MINIATURE, None) or _miniature_beside(root, place)
    left_out: Counter[str] = Counter()
    for path in list(found):
        kind = _kind_left_out(path, subset)
        if kind:
            left_out[kind] += 1
            del found[path]
    _check_parts(place, subset, found)
    return Layout(
        uri=root if root.endswith(".zip") else place,
        subset=subset,
        table=table,
        files=found,
        left_out=left_out,
        label_classes=_label_classes(labels) if labels else (),
        miniature=_miniature(marker) if marker else {},
    )


def _expected(subset: str) -> str:
    if subset in _FOLDERS:
        table = f"{_FOLDERS[subset][0]}/{table_name(subset)}"
        return f"{table} beside {_FOLDERS[subset][0]}/{subset}_data/ with {', '.join(_PARTS)}"
    return f"{table_name(subset)} beside {', '.join(f'{part}/' for part in parts_of(subset))}"


def _data_folders(subset: str) -> list[str]:
    return [f"{subset}_data"] if subset in _FOLDERS else list(parts_of(subset))


def _loose(place: str, subset: str, table: str) -> dict[str, File]:
    found: dict[str, File] = {}
    for folder in _data_folders(subset):
        listed = tree_files.list_folder(storage.join(place, folder))
        for path, file in listed.items():
            found[f"{folder}/{path}"] = file._replace(path=f"{folder}/{path}")
    for name in (table, _LABELS if subset not in _FOLDERS else ""):
        uri = storage.join(place, name) if name else ""
        if uri and storage.exists(uri):
            found[name] = File(uri, name, storage.size(uri))
    return found


def _names_in(uri: str) -> str:
    return _shown([path.rstrip("/").rsplit("/", 1)[-1] for path in _ls(uri)])


def _shown(names: list[str]) -> str:
    names = sorted(names)
    shown = ", ".join(names[:6]) or "nothing"
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _ls(uri: str) -> list[str]:
    fs, path = storage.filesystem(uri)
    try:
        return [str(name) for name in fs.ls(path, False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _zips_in(uri: str) -> list[str]:
    names = [path.rsplit("/", 1)[-1] for path in _ls(uri)]
    return [storage.join(uri, n) for n in names if n.endswith(".zip") and not n.startswith(".")]


def _zips_of(found: dict[str, File]) -> set[str]:
    return {file.uri for path, file in found.items() if path.endswith(".zip")}


def _in_layout(archive: str, member: str, subset: str) -> str:
    """The path of a zip file's member in the benchmark's layout, empty for what is none of it.

    People pack a folder with its own name as the first level or without: both are understood, by
    what the zip file is called and where it lies.
    """
    below, _, name = archive.strip("/").rpartition("/")
    if "__MACOSX" in member or member.rsplit("/", 1)[-1].startswith("."):
        return ""
    documents = (table_name(subset), MINIATURE) + (() if subset in _FOLDERS else (_LABELS,))
    if member.rsplit("/", 1)[-1] in documents:
        return member.rsplit("/", 1)[-1]
    folders = _data_folders(subset)
    for prefix in (below, f"{below}/{name.removesuffix('.zip')}"):
        parts = [part for part in f"{prefix}/{member}".split("/") if part]
        for at, part in enumerate(parts):
            if part in folders and _belongs(parts[at + 1 :], subset):
                return "/".join(parts[at:])
    return ""


def _belongs(parts: list[str], subset: str) -> bool:
    if subset in _FOLDERS:
        return len(parts) >= 2 and parts[0] in (*_PARTS, _RAW, _LOG_MELS)
    return len(parts) >= 2


def _kind_left_out(path: str, subset: str) -> str:
    """What a file is that is never read, or an empty string."""
    parts = path.split("/")
    if path.endswith(".pkl"):
        return PICKLED
    if subset in _FOLDERS:
        known = parts[1] in (*_PARTS, _RAW)
    else:
        known = len(parts) > 2 and parts[2] in ("frames", "labels_rgb", "audio.wav")
    return "" if known else "other files"


def _check_parts(place: str, subset: str, found: dict[str, File]) -> None:
    """A part that is missing for every clip is told at once and not clip by clip."""
    if subset not in _FOLDERS:
        for folder in parts_of(subset):
            if not any(path.startswith(f"{folder}/") for path in found):
                raise ValueError(
                    f"{place}/{folder} is missing or empty: a folder for each clip with frames, "
                    f"labels_rgb and audio.wav is expected there, found {_names_in(place)}"
                )
        return
    parts = {path.split("/")[1] for path in found}
    for part in _PARTS:
        if part not in parts and (part == "gt_masks" or _RAW not in parts):
            raise ValueError(
                f"{place}/{subset}_data/{part} is missing or empty: an AVSBench tree has "
                f"{', '.join(_PARTS)} there, found {_shown(list(parts))}"
            )


def _label_classes(file: File) -> tuple[str, ...]:
    """Class names in the order of the palette.

    Copies that count from 0 and from 1 are about, so only their order is taken.
    """
    wrong = ValueError(
        f"{file.uri} is not the {_LABELS} of AVSBench-semantic: an object with 71 classes and "
        "their numbers is expected, background the first"
    )
    try:
        numbers = json.loads(tree_files.read(file))
        names = sorted(numbers, key=lambda name: int(numbers[name]))
    except (ValueError, TypeError, AttributeError, KeyError):
        raise wrong from None
    if len(set(numbers.values())) != 71 or names[0] != "background":
        raise wrong
    return tuple(str(name) for name in names)


def _miniature_beside(root: str, place: str) -> File | None:
    """``miniature.json`` stands beside the subsets' folders: in ``root``, or one level up."""
    above = root.rpartition("/")[0]
    folders = [root] if place != root else [root, above]
    for folder in [above] if root.endswith(".zip") else folders:
        uri = storage.join(folder, MINIATURE)
        if storage.exists(uri):
            return File(uri, MINIATURE, storage.size(uri))
    return None


def _miniature(file: File) -> dict[str, Any]:
    try:
        marker = json.loads(_read_document(file))
        if marker["kind"] == "miniature" and isinstance(marker["clips"], dict):
            return dict(marker)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{file.uri} has a damaged {MINIATURE}: write the miniature again")


def _read_document(file: File) -> bytes:
    if file.packed is None:
        return storage.read_bytes(file.uri)
    return tree_files.read(file)
