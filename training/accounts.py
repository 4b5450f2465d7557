"""What the steps of a stage cost: pace, waiting for data, memory, and on GPUs use of the hardware.

Shapes: none; all of it is scalars.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

Item = TypeVar("Item")

# Dense matrix products, FLOP/s, by the makers' data sheets: bf16 and fp16, then fp32 without TF32.
_PEAKS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


class Accounts:
    """Times of the steps since they were last told.

    Args:
        batch: samples of a step, over all workers.
        peak: FLOP/s of this worker's device, see ``matrix_peak``.
    """

    def __init__(self, device: torch.device, *, batch: int, peak: float | None) -> None:
        self._flop: float | None = None
        self._seconds = 0.0
        self._device, self._batch, self._peak = device, batch, peak
        self._steps = 0
        self._waited = self._told = 0.0
        self._running_since = time.monotonic()
        self._is_paused = False

    def waiting_for(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; how long they let wait is counted."""
        source = iter(batches)
        while True:
            started = time.monotonic()
            try:
                item = next(source)
            except StopIteration:
                return
            self._waited += time.monotonic() - started
            yield item
            self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no training, and its time is not counted."""
        self._book()
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self._running_since = time.monotonic()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around a step: where the peak is known, the products of the first one are counted."""
        if self._peak is None or self._flop is not None:
            yield
            return
        # What Dynamo meets under a counter it leaves uncompiled for ever: here it is not to look.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        self._flop = float(counter.get_total_flops())

    def spent(self) -> float:
        """Seconds in steps and waiting for them, since the start."""
        self._book()
        return self._seconds

    def take(self, steps: int) -> dict[str, float]:
        """``samples_per_second``, ``data_wait`` (share of the time), ``memory_gib`` (peak of this
        worker, on a GPU of its memory), and on a known GPU ``matrix_peak`` (share of its peak),
        all of the ``steps`` steps since the last call.

        What activation checkpointing computes again counts as products of the step.
        """
        spent = max(self.spent() - self._told, 1e-9)
        told = {
            "samples_per_second": steps * self._batch / spent,
            "data_wait": min(self._waited / spent, 1.0),
            "memory_gib": _peak_memory(self._device) / 2**30,
        }
        if self._flop is not None and self._peak is not None:
            told["matrix_peak"] = steps * self._flop / spent / self._peak
        self._told, self._waited = self._seconds, 0.0
        return told

    def _book(self) -> None:
        now = time.monotonic()
        if not self._is_paused:
            self._seconds += now - self._running_since
        self._running_since = now


def matrix_peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of matrix products by the maker's data sheet; None for what is not listed."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    for name, (low, full) in _PEAKS.items():
        if name in words:
            return full if precision == "fp32" else low
    return None


def _peak_memory(device: torch.device) -> float:
    """Bytes at most so far."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    # Not ru_maxrss, which a process inherits from the one that started it.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1]) * 1024
    return 0.0
