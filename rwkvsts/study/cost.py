"""How dear an embedding is: time a pair, peak memory.

Promises that no time includes a warm-up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .statistics import cosine

MIB = 1 << 20
WARM_UP = 3  # calls that are not counted


@dataclass(frozen=True)
class PairTime:
    """Seconds for one pair, measured one pair at a time."""

    median: float
    mean: float


def time_pairs(
    embed: Callable[[list[str]], ArrayLike],
    sentence1: list[str],
    sentence2: list[str],
    pairs: int = 20,
) -> PairTime:
    """Time `embed([one, other])` and a cosine for the first `pairs` pairs, one pair a call.

    embed : texts to [S, C]; called `WARM_UP` times more, before it is timed
    """
    texts = list(zip(sentence1, sentence2, strict=True))[:pairs]
    seconds = []
    for one, other in texts[:WARM_UP] + texts:
        start = time.perf_counter()
        both = np.asarray(embed([one, other]))
        cosine(both[:1], both[1:])
        seconds.append(time.perf_counter() - start)
    counted = seconds[-len(texts) :]
    return PairTime(float(np.median(counted)), float(np.mean(counted)))


def host_peak_bytes() -> int | None:
    """Largest resident memory this process ever had; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def gpu_process_bytes() -> int | None:
    """Device memory that NVML counts for this process, contexts and libraries included.

    None without nvidia-ml-py, without a GPU, or where NVML sees other process ids than ours.
    """
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        used = [
            process.usedGpuMemory
            for index in range(nvml.nvmlDeviceGetCount())
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(
                nvml.nvmlDeviceGetHandleByIndex(index)
            )
            if process.pid == os.getpid() and process.usedGpuMemory is not None
        ]
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
    return sum(used) if used else None
