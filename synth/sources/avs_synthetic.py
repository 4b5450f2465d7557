"""AVS-Synthetic (Zenodo record 8125822): cut-out masks of LVIS and Open Images, sounds of VGGSound.

    annotations.csv                     a row per object: its photograph, class, split and sound
    images/{img_id}.jpg
    masks/{inst_id}.png
    audios/{audio}.wav                  about 3 s of VGGSound, named {YouTube id}_{start} or alike
    category_for_vggsound_audios.pkl    class number -> names of the sounds to train with

The table has nine columns, of which the publisher's own loader names seven and uses all but
``split`` by position; so they are found by name where a header has it and by position elsewhere.
Its rows of the train split state no sound: what they may be paired with stands in the pickle alone,
which is read by an unpickler that knows containers, strings and whole numbers and nothing else.
A pickle with anything else in it is refused, and the rest is read without it.

The 46 class names are published nowhere but in the table. A name is looked up among the classes of
the taxonomy and what LVIS, Open Images and VGGSound call them.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
import pickletools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from infra import storage
from synth import taxonomy
from synth.sources.clips import YOUTUBE_LICENCE
from synth.sources.csv_rows import read_cells
from synth.tables import Annotation, Candidate
from synth.taxonomy import Labels

logger = logging.getLogger(__name__)

NAME = "avs_synthetic"
SPLITS = ("train", "validate", "test")

_POSITIONS = {"inst_id": 0, "img_id": 1, "cls_name": 4, "cls_id": 5, "dataset": 6, "audio_name": 8}
_UNNAMED = (7, 3, 2)  # one of them is the split
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# ``{id}``, ``{id}_30``, ``{id}-30``, ``{id}_000030_000040``, ``{id}_000030_seg``
_VGGSOUND_NAME = re.compile(r"([A-Za-z0-9_-]{11})(?:[_-]\d+(?:[._-]\d+)*)?(?:_seg)?")
# All names of VGGSound make 5 MB.
_MAX_PICKLE = 32 << 20


@dataclass(frozen=True, kw_only=True)
class AvsSyntheticConfig:
    """Where AVS-Synthetic lies, unpacked."""

    folder: str
    """Path or URI of the folder with everything below."""
    annotations: str = "annotations.csv"
    """The table of objects."""
    images: str = "images"
    """Folder of the photographs."""
    masks: str = "masks"
    """Folder of the mask pictures."""
    audios: str = "audios"
    """Folder of the sounds."""
    sound_lists: str = "category_for_vggsound_audios.pkl"
    """The sounds of each class for training; empty to do without them."""
    splits: tuple[str, ...] = ()
    """Of ``train``, ``validate`` and ``test``; empty for all."""


def candidates(source: AvsSyntheticConfig, labels: Labels) -> Iterator[Candidate]:
    """A candidate per photograph with all its objects, by name, then one per sound, by name.

    Args:
        labels: of any source: it says which classes are asked for, and it counts.

    Raises:
        FileNotFoundError: there is no table of objects.
        ValueError: an unknown split, or the table is none.
    """
    for split in source.splits:
        if split not in SPLITS:
            raise ValueError(f"{split!r} is no split of AVS-Synthetic: use {', '.join(SPLITS)}")
    lists: dict[int, list[str]] = {}
    uri = storage.join(source.folder, source.sound_lists)
    try:
        if source.sound_lists and (not source.splits or "train" in source.splits):
            lists = _sound_lists(uri)
    except FileNotFoundError:
        labels.left_out[f"no file {source.sound_lists}"] += 1
    except ValueError as error:
        logger.warning("%s is not used: %s", uri, error)
        yield Candidate(
            role="sound",
            source=NAME,
            root=NAME,
            path=source.sound_lists,
            licence=YOUTUBE_LICENCE,
            # Where the source lies must not show in the corpus.
            refusal=f"unreadable: {str(error).replace(uri, source.sound_lists)}",
        )
    class_of = _Classes(labels)
    # As published 62,609 rows, which take some ten megabytes.
    datasets: defaultdict[str, set[str]] = defaultdict(set)
    marked: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    numbers: defaultdict[str, set[str | None]] = defaultdict(set)
    sounds: defaultdict[str, set[str]] = defaultdict(set)
    for line, row in _rows(storage.join(source.folder, source.annotations), labels):
        refused = _refused(source, line, row)
        if refused:
            yield refused
            continue
        class_name = class_of(row["cls_name"])
        numbers[row["cls_id"].removesuffix(".0")].add(class_name)
        if class_name is None or (source.splits and row["split"] not in source.splits):
            continue
        datasets[row["img_id"]].add(row["dataset"])
        marked[row["inst_id"]][row["img_id"], class_name] += 1
        if row["audio_name"]:
            sounds[row["audio_name"]].add(class_name)
    for number, names in lists.items():
        meant = numbers.get(str(number), set())
        if not meant:
            labels.left_out["sound of an unknown class number"] += len(names)
        for class_name in meant - {None}:
            for name in names:
                sounds[name].add(str(class_name))
    yield from _photographs(source, labels, _agreed(marked, labels), datasets)
    yield from _sounds(source, labels, sounds)


def _rows(uri: str, labels: Labels) -> Iterator[tuple[int, dict[str, str]]]:
    """``(line, cells by column)``; a cell that is not there is empty."""
    places = dict(_POSITIONS)
    is_table = False
    for line, cells in read_cells(uri, left_out=labels.left_out):
        if {"split", *_POSITIONS}.intersection(cells):
            named = [name for name in (*_POSITIONS, "split") if name in cells]
            places = {**_POSITIONS, **{name: cells.index(name) for name in named}}
            continue
        row = {name: cells[at] if at < len(cells) else "" for name, at in places.items()}
        if "split" not in places:
            unnamed = [cells[at] for at in _UNNAMED if at < len(cells)]
            row["split"] = next((cell for cell in unnamed if cell in SPLITS), "")
        is_table = is_table or row["split"] in SPLITS
        yield line, row
    if not is_table:
        raise ValueError(
            f"{uri} is no table of AVS-Synthetic, for no row has a split ({', '.join(SPLITS)}): "
            "give annotations.csv as published"
        )


def _refused(source: AvsSyntheticConfig, line: int, row: dict[str, str]) -> Candidate | None:
    """What is recorded of a row that cannot be used."""
    reason = ""
    empty = [name for name in ("inst_id", "img_id", "cls_name") if not row[name]]
    if empty or row["split"] not in SPLITS:
        reason = f"row: no {' and no '.join(empty) or 'split'}"
    for column in ("inst_id", "img_id"):
        if row[column] and not _NAME.fullmatch(row[column]):
            reason = f"path: {column} {row[column]!r} is no name of a file in its folder"
    if not reason:
        return None
    return Candidate(
        role="annotated",
        source=NAME,
        root=NAME,
        path=f"{source.annotations}:{line}",
        licence=_licence(row["dataset"]),
        refusal=reason,
    )


def _licence(dataset: str) -> str:
    """The publisher leaves every part under the licence of the source that it was taken from.

    LVIS's photographs have one each, which the table does not state.
    """
    return "CC BY 2.0" if "open" in dataset.casefold() else "not stated"


def _agreed(
    marked: dict[str, Counter[tuple[str, str]]], labels: Labels
) -> dict[str, dict[str, str]]:
    """By photograph the class of each object of which all rows say the same."""
    objects: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for inst_id, rows in marked.items():
        if len(rows) > 1:
            labels.left_out["object of which rows differ"] += rows.total()
            continue
        ((img_id, class_name),) = rows
        objects[img_id][inst_id] = class_name
    return objects


def _photographs(
    source: AvsSyntheticConfig,
    labels: Labels,
    objects: dict[str, dict[str, str]],
    datasets: dict[str, set[str]],
) -> Iterator[Candidate]:
    images = _files(source, source.images)
    masks = _files(source, source.masks)
    for img_id in sorted(objects):
        path = images.get(f"{img_id}.jpg")
        if path is None:
            labels.left_out["no image file"] += 1
            continue
        annotations = tuple(
            Annotation(id=inst_id, class_name=class_name, mask_path=mask)
            for inst_id, class_name in sorted(objects[img_id].items())
            if (mask := masks.get(f"{inst_id}.png"))
        )
        if len(annotations) < len(objects[img_id]):
            labels.left_out["no mask file"] += len(objects[img_id]) - len(annotations)
        if annotations:
            dataset = min(datasets[img_id])
            if len(datasets[img_id]) > 1:
                labels.left_out["dataset of which rows differ"] += 1
                dataset = ""
            yield Candidate(
                role="annotated",
                source=NAME,
                root=NAME,
                path=path,
                licence=_licence(dataset),
                origin=f"{dataset} {img_id}".strip(),
                annotations=annotations,
                # Objects were picked one by one: nothing says that they are all of their class.
                partial=tuple(sorted(set(objects[img_id].values()))),
            )


def _sounds(
    source: AvsSyntheticConfig, labels: Labels, sounds: dict[str, set[str]]
) -> Iterator[Candidate]:
    files = _files(source, source.audios)
    for name in sorted(sounds):
        path = files.get(f"{name}.wav")
        classes = sorted(sounds[name])
        video = _VGGSOUND_NAME.fullmatch(name)
        refusal = ""
        if not _NAME.fullmatch(name):
            refusal = f"path: {name!r} is no name of a file in {source.audios}"
        elif path is None:
            labels.left_out["no sound file"] += 1
            continue
        elif len(classes) > 1:
            refusal = f"class: it is given for {' and '.join(classes)}"
        yield Candidate(
            role="sound",
            source=NAME,
            root=NAME,
            path=path or f"{name}.wav",
            class_name=classes[0],
            licence=YOUTUBE_LICENCE,
            origin=f"https://www.youtube.com/watch?v={video[1]}" if video else f"VGGSound {name}",
            # All of them are from videos: one that cannot be told is for the guard to hold out.
            video=video[1] if video else name,
            refusal=refusal,
        )


def _files(source: AvsSyntheticConfig, folder: str) -> dict[str, str]:
    """Name -> path below the source's folder."""
    folder = folder.strip("/")
    root = storage.join(source.folder, folder)
    names = [uri[len(root) + 1 :] for uri in storage.list_files(root)]
    return {name: f"{folder}/{name}" for name in names}


class _Classes:
    """The publisher's class names -> those classes of the taxonomy that are asked for."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._asked: dict[str, bool] = {}

    def __call__(self, name: str) -> str | None:
        class_name = _meanings().get(_fold(name))
        if class_name is None:
            self._labels.unknown[name] += 1
            return None
        if class_name not in self._asked:
            self._asked[class_name] = self._is_asked(class_name)
        return class_name if self._asked[class_name] else None

    def _is_asked(self, class_name: str) -> bool:
        """Asked through the labels that the source of ``labels`` has for it, if any."""
        quiet = copy.copy(self._labels)
        quiet.unknown = Counter()
        names = quiet.names_of(class_name)
        return not names or class_name in map(quiet.of, names)


@cache
def _meanings() -> dict[str, str | None]:
    """Folded name -> class, or None where several share it; a class's own name comes first."""
    meanings: dict[str, str | None] = {}
    for row in taxonomy.classes():
        for source in ("lvis", "openimages", "vggsound"):
            for label in row.labels[source]:
                known = meanings.setdefault(_fold(label), row.name)
                if known != row.name:
                    meanings[_fold(label)] = None
    return meanings | {_fold(row.name): row.name for row in taxonomy.classes()}


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


class _PlainUnpickler(pickle.Unpickler):
    """Whatever is more than containers, strings and numbers has to be found by its name: here."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise ValueError(f"it asks for code ({ascii(module)[1:-1]}.{ascii(name)[1:-1]})")


def _sound_lists(uri: str) -> dict[int, list[str]]:
    """Class number -> names of sounds.

    Raises:
        FileNotFoundError: the pickle is not there.
        ValueError: it asks for code, is damaged, too large, or something else.
    """
    data = storage.read_bytes(uri, limit=_MAX_PICKLE)
    try:
        return _plain(data)
    except Exception as error:  # the bytes are a program: nearly anything can go wrong in it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason[:200]) from None


def _plain(data: bytes) -> dict[int, list[str]]:
    for opcode, argument, _ in pickletools.genops(data):
        # The slot of a memo: the unpickler makes room for as many as the number says.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"it is damaged ({opcode.name} {argument})")
    content: Any = _PlainUnpickler(io.BytesIO(data)).load()
    is_table = type(content) is dict and all(type(n) in (list, tuple) for n in content.values())
    # A list can be named again in a few bytes.
    if is_table and sum(map(len, content.values())) > len(data):
        raise ValueError("it names the same sounds over and over")
    if not is_table or not all(
        type(number) is int and all(type(name) is str for name in names)
        for number, names in content.items()
    ):
        raise ValueError("it holds something else than lists of names by class number")
    return {number: list(names) for number, names in content.items()}
