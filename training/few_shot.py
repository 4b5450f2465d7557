"""Which clips a stage learns from: all of a split, or a seeded share of it, alike in every class.

For a share the clips get one order, and every share is a beginning of it, so that the clips of a
smaller share are among those of a larger one. Clips with the same set of classes are spread evenly
over the order, so that every beginning holds its share of them, to less than one clip. In front of
all others stand the clips that bring in a class for the first time, so that each class has at least
one. (Rounding the share of each set by largest remainders would not do: a set can lose a clip when
the share grows.)
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from infra.corpus import Corpus
from training.data import FrameSamples
from training.recipe import TrainConfig


def training_samples(config: TrainConfig, corpus: Corpus) -> FrameSamples:
    """What a stage learns from."""
    rows = None
    if config.few_shot is not None:
        rows = few_shot_rows(corpus, config.train_split, config.few_shot, config.seed)
    return FrameSamples(
        corpus,
        config.train_split,
        image_size=config.model.image_size,
        seed=config.seed,
        augmentation=config.augmentation,
        rows=rows,
        window=config.shuffle_shards,
    )


def few_shot_rows(corpus: Corpus, split: str, share: float, seed: int) -> np.ndarray:
    """The rows of a split that make up a share of it.

    They depend on the keys and classes of the clips and on the seed, not on the order of the rows.

    Args:
        share: of the split's clips, above 0 and up to 1; at least one clip is drawn.
        seed: another one draws other clips.

    Returns:
        sorted row numbers of ``corpus.table(split)``, int64 ``[max(round(share * clips), 1)]``.

    Raises:
        ValueError: the share does not lie between 0 and 1, or the corpus has no such split.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"few_shot is a share above 0 and up to 1, got {share}")
    table = corpus.table(split)
    keys, classes = (table[name].to_pylist() for name in ("key", "classes"))
    ordered = _in_order(keys, [frozenset(found) for found in classes], seed)
    return np.sort(np.array(ordered[: max(round(share * len(table)), 1)], np.int64))


def _in_order(keys: list[str], classes: list[frozenset[str]], seed: int) -> list[int]:
    by_classes: dict[frozenset[str], list[int]] = defaultdict(list)
    for row in sorted(range(len(keys)), key=lambda row: _draw(seed, "clip", keys[row])):
        by_classes[classes[row]].append(row)
    places: dict[int, float] = {}
    for found, rows in by_classes.items():
        # A start of its own for each set: otherwise all sets of one clip would come at once.
        start = _draw(seed, "classes", *sorted(found))
        places |= {row: (number + start) / len(rows) for number, row in enumerate(rows)}
    ordered = sorted(places, key=lambda row: (places[row], keys[row]))
    seen: set[str] = set()
    first: list[int] = []
    others: list[int] = []
    for row in ordered:
        (others if classes[row] <= seen else first).append(row)
        seen |= classes[row]
    return first + others


def _draw(seed: int, *what: str) -> float:
    """A number from 0 to 1, the same in every process and on every machine."""
    digest = hashlib.sha256("\n".join((str(seed), *what)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
