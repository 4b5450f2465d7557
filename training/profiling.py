"""What a step spends its time on, operator by operator, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@contextmanager
def profiled(device: torch.device, keep: Callable[[bytes], None]) -> Iterator[None]:
    """Profile the block; ``keep`` gets the trace, gzipped JSON of the Chrome trace format."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True, profile_memory=True) as found:
        yield
    with tempfile.TemporaryDirectory(prefix="save-profile-") as folder:
        trace = Path(folder) / "trace.json.gz"
        found.export_chrome_trace(str(trace))
        keep(trace.read_bytes())
