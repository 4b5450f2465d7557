"""What the benchmarks share: interleaved timing, peak memory, and the matrix peak of a device.

Nothing here asserts a time. Ours and the peer take turns, so that what else happens on the machine
meets both, and medians are compared.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

Call = Callable[[], object]


def parser(description: str, *, pairs: int, batch: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--pairs", type=int, default=pairs, help="timed turns of each side")
    options.add_argument("--batch", type=int, default=batch, help="images at once on a CPU")
    options.add_argument("--threads", type=int, default=2, help="CPU threads")
    options.add_argument("--smoke", action="store_true", help="a small model: does it run at all")
    return options


def start(options: argparse.Namespace) -> torch.device:
    """Set the threads, name the machine, and choose the GPU if there is one."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False
        device, name = torch.device("cuda"), torch.cuda.get_device_name()
    else:
        device, name = torch.device("cpu"), f"{_cpu()}, {options.threads} threads"
    print(f"{date.today()}, torch {torch.__version__}, {name}", flush=True)
    return device


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()} ({len(names)} cores seen)"


def seconds(call: Call) -> float:
    """Of one call, with everything that it started on a GPU."""
    _wait()
    started = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - started


def compare(label: str, ours: Call, theirs: Call, *, pairs: int, images: int) -> float:
    """Time both in turns, print medians and the ratio, and return the ratio theirs / ours."""
    seconds(theirs), seconds(ours)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for pair in range(pairs):
        # Who is first changes, so that neither always finds the caches as the other left them.
        turns = [("ours", ours), ("theirs", theirs)]
        for name, call in turns if pair % 2 else turns[::-1]:
            times[name].append(seconds(call))
    mine, other = (statistics.median(times[name]) for name in ("ours", "theirs"))
    ratios = sorted(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
    print(
        f"{label:<34} ours {mine:8.3f} s ({images / mine:8.2f} images/s)  peer {other:8.3f} s "
        f"({images / other:8.2f} images/s)  ratio {other / mine:5.2f} "
        f"(pairs {ratios[0]:.2f}-{ratios[-1]:.2f}, {pairs} of them)",
        flush=True,
    )
    return other / mine


def rate(call: Call, *, images: int, repeats: int = 10) -> float:
    """Images per second of a call that is repeated without waiting in between."""
    for _ in range(3):
        call()
    _wait()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait()
    return images * repeats / (time.perf_counter() - started)


def matrix_peak(device: torch.device, side: int = 8192) -> float:
    """Operations per second of a large bf16 product, the best of several."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = min(seconds(lambda: [a @ b for _ in range(10)]) for _ in range(5))
    return 10 * 2 * side**3 / best


def gpu_row(label: str, call: Call, *, images: int, flop: float, peak: float) -> None:
    """Print images per second, share of the peak and peak memory, or that it does not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        speed = rate(call, images=images)
    except torch.cuda.OutOfMemoryError:
        print(f"  batch {images:>3}  {label:<22} does not fit", flush=True)
        return
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(
        f"  batch {images:>3}  {label:<22} {speed:9.1f} images/s  {speed * flop / peak:6.1%} of "
        f"peak  {memory:7.2f} GiB",
        flush=True,
    )


def peak_memory_of(module: str, arguments: list[str]) -> float:
    """GiB of main memory at most of ``python -m module arguments``, which runs one side alone."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def own_peak_memory() -> float:
    """GiB of main memory at most of this process so far.

    Not ``ru_maxrss``: a process that was started by a larger one begins with that one's.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
