"""Batches of single frames for training, in an order that depends on nothing but the seed.

Every annotated frame is a training sample of its own, with its second of sound. What a batch holds
is a function of the corpus, the seed and the step alone (``training.order``), whoever decodes it
and on how many cores.

Shapes: B samples, P training samples of an epoch, S side of the model's input, G = S/16 its grid,
M = 96 mels of an example, F = 64 mel bands, N sound samples, C classes.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from infra.corpus import Corpus, Sample
from infra.masks import sample_mask_rle
from training.augmentation import (
    WHOLE,
    Augmentation,
    Part,
    crop,
    draw_part,
    normalise,
    pixels_of,
    relight,
    resound,
    sound_draw,
)
from training.order import Window, sample_order
from training.samples import (
    EXAMPLE_SAMPLES,
    SOUND_NAMES,
    example_log_mel,
    frame_names,
    read_frame,
    read_mask,
    resize_mask,
    sample_window,
)

PATCH = 16
IGNORED_CELL = -100

_MASK_MEMBER = re.compile(r"mask(\d+)\.png")
_PREFETCHED_BATCHES = 4
# Shards are asked for this many steps before and after they are next looked at.
_FETCHED_STEPS = 64
# Samples with a sound off screen too are not told by the index: another is drawn.
_SOUND_DRAWS = 16

Place = tuple[int, int]
"""``(epoch, sample)``, as ``sample_order`` gives them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training samples of one step, or a rank's share of them."""

    image_B3SS: Tensor
    log_mel_B1MF: Tensor
    mask_B1SS: Tensor
    """float32, 0 or 1."""
    class_BC: Tensor
    """Shares of the classes heard: a row sums to 1, or to 0 where nothing known is heard."""
    cell_BGG: Tensor
    """Class of the object at the centre of each grid cell, C for background, -100 unknown."""

    def __len__(self) -> int:
        return len(self.image_B3SS)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class FrameSamples:
    """The annotated frames of a split as training samples.

    Args:
        classes: names of the classes that the labels count; those of the corpus by default.
        augmentation: None leaves every sample as it is.
        window: shards within which samples are shuffled, see ``training.order``; None shuffles
            all of them.
        rows: of the split's table, all that is learned from; None learns from all of it.

    Raises:
        ValueError: the split is not there, or no frame of it has a mask.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        *,
        image_size: int,
        seed: int,
        augmentation: Augmentation | None,
        classes: Sequence[str] | None = None,
        window: int | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.corpus = corpus
        self.split = split
        self.image_size = image_size
        self.seed = seed
        self.augmentation = augmentation
        self.classes = list(corpus.classes if classes is None else classes)
        self._class_index = {name: index for index, name in enumerate(self.classes)}
        self._rows = rows
        self.places_P2 = _annotated_frames(corpus, split)
        """Row in the split's table and frame, int32."""
        if rows is not None:
            self.places_P2 = self.places_P2[np.isin(self.places_P2[:, 0], rows)]
        if not len(self.places_P2):
            raise ValueError(f"{corpus.uri} has no mask in its split {split!r}: nothing to learn")
        self.window: Window | None = None
        if window is not None:
            ends = np.cumsum(corpus.shard_sizes(split))
            samples = np.diff(np.searchsorted(self.places_P2[:, 0], ends), prepend=0)
            self.window = Window(shards=window, sizes=tuple(samples.tolist()))

    def __len__(self) -> int:
        return len(self.places_P2)

    def order(self, step: int, *, batch: int, rank: int = 0, world: int = 1) -> list[Place]:
        """The places that a rank fills in a step."""
        return sample_order(
            samples=len(self),
            batch=batch,
            seed=self.seed,
            step=step,
            rank=rank,
            world=world,
            window=self.window,
        )

    def load(self, order: Sequence[Place]) -> Batch:
        """The samples at some places."""
        size, grid = self.image_size, self.image_size // PATCH
        image_B3SS = np.empty((len(order), 3, size, size), np.float32)
        mask_B1SS = np.empty((len(order), 1, size, size), np.float32)
        class_BC = np.empty((len(order), len(self.classes)), np.float32)
        cell_BGG = np.empty((len(order), grid, grid), np.int64)
        log_mels = []
        for number, (epoch, index) in enumerate(order):
            loaded = self._load_one(epoch, index, image_B3SS[number])
            mask_B1SS[number, 0] = loaded.mask_SS
            class_BC[number] = loaded.class_C
            cell_BGG[number] = loaded.cell_GG
            log_mels.append(example_log_mel(loaded.window_N))
        return Batch(
            image_B3SS=torch.from_numpy(image_B3SS),
            log_mel_B1MF=torch.cat(log_mels),
            mask_B1SS=torch.from_numpy(mask_B1SS),
            class_BC=torch.from_numpy(class_BC),
            cell_BGG=torch.from_numpy(cell_BGG),
        )

    def _load_one(self, epoch: int, index: int, out_3SS: np.ndarray) -> _Loaded:
        """A sample, its picture written to ``out_3SS``."""
        row, frame = self.places_P2[index].tolist()
        sample = self.corpus.read(self.split, row, names=frame_names(frame))
        change, size = self.augmentation, self.image_size
        part = WHOLE if change is None else draw_part(change.scale, self.seed, epoch, index)
        image_SS3 = read_frame(sample, frame, size, part)
        mask_HW = read_mask(sample, frame)
        assert mask_HW is not None
        mask_SS = resize_mask(crop(mask_HW, part), size)
        class_C = self._class_shares(sample.meta)
        cell_GG = self._cell_classes(sample.meta, frame, part)
        if change is None:
            normalise(image_SS3, out_3SS)
            return _Loaded(sample_window(sample, frame), mask_SS, class_C, cell_GG)
        random = np.random.default_rng([self.seed, epoch, index])
        if random.random() < change.flip:
            image_SS3, mask_SS, cell_GG = image_SS3[:, ::-1], mask_SS[:, ::-1], cell_GG[:, ::-1]
        relight(image_SS3, change, random, out_3SS)
        if random.random() < change.silent_share:
            silence_N = np.zeros(EXAMPLE_SAMPLES, np.float32)
            return _Loaded(silence_N, np.zeros_like(mask_SS), np.zeros_like(class_C), cell_GG)
        heard = self._heard(sample, change, epoch, index)
        window_N = resound(sample_window(heard, frame), change, random)
        return _Loaded(window_N, mask_SS, class_C, cell_GG)

    def _heard(self, sample: Sample, change: Augmentation, epoch: int, index: int) -> Sample:
        """The sample whose sound is heard: this one, or one drawn for the epoch."""
        if change.redraw_sound and _sounds_alone(sample):
            rows = self._rows_alone[sample.meta["classes"][0]]
            random = sound_draw(self.seed, epoch, index)
            for _ in range(_SOUND_DRAWS):
                row = int(rows[random.integers(len(rows))])
                other = self.corpus.read(self.split, row, names=SOUND_NAMES)
                if _sounds_alone(other):
                    return other
        return sample

    @cached_property
    def _rows_alone(self) -> dict[str, np.ndarray]:
        """The rows in which one class sounds, by that class."""
        classes = self.corpus.table(self.split)["classes"].combine_chunks()
        first_R = classes.offsets.to_numpy()
        alone = np.flatnonzero(np.diff(first_R) == 1)
        if self._rows is not None:
            alone = np.intersect1d(alone, self._rows)
        named = classes.flatten().take(first_R[alone] - first_R[0]).dictionary_encode()
        code = named.indices.to_numpy()
        return {name: alone[code == n] for n, name in enumerate(named.dictionary.to_pylist())}

    def _class_shares(self, meta: dict[str, Any]) -> np.ndarray:
        shares_C = np.zeros(len(self.classes), np.float32)
        known = [self._class_index[c] for c in meta["classes"] if c in self._class_index]
        shares_C[known] = 1.0 / max(len(known), 1)
        return shares_C

    def _cell_classes(self, meta: dict[str, Any], frame: int, part: Part) -> np.ndarray:
        """Objects of unknown class count as background; without object masks nothing is known."""
        grid = self.image_size // PATCH
        if "objects" not in meta:
            return np.full((grid, grid), IGNORED_CELL, np.int64)
        cell_GG = np.full((grid, grid), len(self.classes), np.int64)
        for thing in meta["objects"][frame]:
            index = self._class_index.get(thing["class"])
            if index is None:
                continue
            visible = thing["visible"]
            rows, columns = (
                shown.start
                + ((np.arange(grid) + 0.5) * (shown.stop - shown.start) / grid).astype(int)
                for shown in pixels_of(part, *visible["size"])
            )
            cell_GG[sample_mask_rle(visible, rows, columns)] = index
        return cell_GG


class _Loaded(NamedTuple):
    """A training sample without its picture."""

    window_N: np.ndarray
    mask_SS: np.ndarray
    class_C: np.ndarray
    cell_GG: np.ndarray


def _sounds_alone(sample: Sample) -> bool:
    return len(sample.meta["classes"]) == 1 and not sample.meta.get("off_screen")


def _annotated_frames(corpus: Corpus, split: str) -> np.ndarray:
    """Row and frame of every frame that has a mask: int32 ``[P, 2]``, sorted."""
    index = corpus.index(split)
    found = [_MASK_MEMBER.fullmatch(name) for name in index.names]
    frame_K = np.array([int(match[1]) if match else -1 for match in found], np.int32)
    member_P = np.flatnonzero((frame_K >= 0)[index.code_M])
    row_P = np.searchsorted(index.first_R, member_P, side="right").astype(np.int32) - 1
    places_P2 = np.stack([row_P, frame_K[index.code_M[member_P]]], 1)
    # Names are sorted as text: mask10 comes before mask2.
    return places_P2[np.lexsort((places_P2[:, 1], places_P2[:, 0]))]


def batches(
    samples: FrameSamples,
    *,
    batch: int,
    first: int,
    last: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """A rank's share of the steps ``first`` to ``last`` - 1, decoded ahead.

    Args:
        workers: processes that decode, a step each; 0 decodes on a thread of this process.
    """

    def order(step: int) -> list[Place]:
        return samples.order(step, batch=batch, rank=rank, world=world)

    def load(step: int) -> Batch:
        return samples.load(order(step))

    steps = range(first, last)
    # Processes fork before the thread that fetches starts: they must not inherit its locks.
    loaded = _loaded_by_processes(load, steps, workers) if workers else _loaded_aside(load, steps)
    with _fetching_ahead(samples, order, last) as begin:
        try:
            for step in steps:
                if (step - first) % _FETCHED_STEPS == 0:
                    begin(step)
                yield next(loaded)
        finally:
            loaded.close()


def _loaded_aside(load: Callable[[int], Batch], steps: range) -> Generator[Batch, None, None]:
    """The batches of some steps, made on another thread."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                put(load(step))
                if stopped.is_set():
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


class _Steps(torch.utils.data.Dataset[Batch]):
    """What a worker process is asked for: the batch of a step."""

    def __init__(self, load: Callable[[int], Batch]) -> None:
        self._load = load

    def __getitem__(self, step: int) -> Batch:
        return self._load(step)


def _loaded_by_processes(
    load: Callable[[int], Batch], steps: range, workers: int
) -> Generator[Batch, None, None]:
    """The batches of some steps in their order, each made whole by one of the processes.

    They are forked here and now, and share the tables of this process.
    """
    loader = torch.utils.data.DataLoader(
        _Steps(load),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        multiprocessing_context="fork",
        # It draws a seed, which must not come out of what the model draws from.
        generator=torch.Generator(),
    )
    made = iter(loader)
    return (batch for batch in made)


@contextmanager
def _fetching_ahead(
    samples: FrameSamples, order: Callable[[int], list[Place]], last: int
) -> Iterator[Callable[[int], None]]:
    """Bring the shards of coming steps from object storage on another thread.

    Gives what to call as a step begins. What fails here fails again where it is needed.
    """
    wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while (step := wanted.get()) is not None:
            coming = range(step, min(step + 2 * _FETCHED_STEPS, last))
            indices = [index for ahead in coming for _, index in order(ahead)]
            rows = samples.places_P2[indices, 0].tolist()
            for record in samples.corpus.shards_ahead(samples.split, rows):
                if stopped.is_set():
                    return
                with suppress(OSError, ValueError):
                    samples.corpus.fetch(record)

    if samples.corpus.is_remote:
        threading.Thread(target=work, name="shards", daemon=True).start()
    try:
        yield wanted.put
    finally:
        stopped.set()
        wanted.put(None)
