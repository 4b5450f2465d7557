"""The benchmark's csv tables: which clips there are, of which split, and what sounds in them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

SEMANTIC = ("v1s", "v1m", "v2")
SUBSETS = ("s4", "ms3", *SEMANTIC, "avss")
SPLITS = ("train", "val", "test")

# Clips of each split as published, in the order of SPLITS (avs_scripts and the tables themselves).
PUBLISHED = {
    "s4": (3452, 740, 740),
    "ms3": (296, 64, 64),
    "v1s": (3452, 740, 740),
    "v1m": (296, 64, 64),
    "v2": (4750, 500, 750),
    "avss": (8498, 1304, 1554),
}

_COLUMNS = {"s4": ("name", "category", "split"), "ms3": ("video_id", "split")}
_SEMANTIC_COLUMNS = ("uid", "a_obj", "split", "label")
# What stands in a_obj beside classes: a sound whose source is not in the picture, and none.
OFF_SCREEN, NO_OBJECT = "off-the-screen", "background"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a table, as it stands there."""

    subset: str
    """s4, ms3, v1s, v1m or v2."""
    split: str
    name: str
    category: str = ""
    """Of s4."""
    objects: str = ""
    """``a_obj`` of AVSBench-semantic: what sounds, joined by ``_``."""

    @property
    def id(self) -> str:
        """What a clip is called where it is refused."""
        return f"{self.subset}/{self.split}/{self.name}"

    @property
    def classes(self) -> list[str]:
        """What sounds, as far as the table says so; ms3's does not."""
        if self.category:
            return [self.category]
        # One row has ``h orse``.
        named = {part.replace(" ", "") for part in self.objects.split("_")}
        return sorted(named - {"", OFF_SCREEN, NO_OBJECT})

    @property
    def off_screen(self) -> bool:
        """Whether something sounds that the picture does not show."""
        return OFF_SCREEN in self.objects.split("_")


def table_name(subset: str) -> str:
    """Name of the csv table that has a subset."""
    return f"{subset}_meta_data.csv" if subset in _COLUMNS else "metadata.csv"


def parts_of(subset: str) -> tuple[str, ...]:
    """The subsets that a subset is made of: three for avss, else itself."""
    return SEMANTIC if subset == "avss" else (subset,)


def read_table(data: bytes, subset: str, uri: str) -> tuple[list[Entry], int]:
    """The rows of a subset, and how many stray headers there were among them.

    Args:
        uri: for the errors.

    Raises:
        ValueError: no csv table in UTF-8, or one with other columns.
    """
    columns = _COLUMNS.get(subset, _SEMANTIC_COLUMNS)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        header = reader.fieldnames or ()
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(f"{uri} lacks the column {missing[0]!r}; it has {', '.join(header)}")
        rows = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except UnicodeDecodeError:
        raise ValueError(f"{uri} is no UTF-8 text: a csv table is expected") from None
    except csv.Error as error:
        raise ValueError(f"{uri} is no csv table ({error}): give it as it was published") from None
    # A shuffled copy of the S4 table that is about has its header among the rows.
    clips = [row for row in rows if row["split"] != "split"]
    wanted = parts_of(subset)
    entries = [
        Entry(
            subset=row.get("label", subset),
            split=row["split"],
            name=row.get("name") or row.get("video_id") or row.get("uid") or "",
            category=row.get("category", ""),
            objects=row.get("a_obj", ""),
        )
        for row in clips
        # A label that is none is somebody's to hear of.
        if row.get("label", subset) in wanted or row.get("label") not in (None, *SEMANTIC)
    ]
    return entries, len(rows) - len(clips)
