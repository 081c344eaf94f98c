"""Times a made-up clock knows, and memory that a test allocates or a made-up driver tells."""

from __future__ import annotations

import os
import sys
import types

import numpy as np
import pytest

from rwkvsts.study import cost


def test_time_leaves_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0, "calls": 0}

    def embed(texts: list[str]) -> np.ndarray:
        clock["calls"] += 1
        clock["now"] += 100.0 if clock["calls"] <= 3 else float(len(texts[0]))
        assert len(texts) == 2
        return np.ones((2, 4))

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock["now"])
    found = cost.time_pairs(embed, ["a", "bb", "c" * 9, "d"], ["w", "x", "y", "z"], 3)
    assert (found.median, found.mean) == (2.0, 4.0)
    assert clock["calls"] == 6


def test_host_peak_grows_with_use() -> None:
    before = cost.host_peak_bytes()
    if before is None:
        pytest.skip("this system does not tell its peak resident memory")
    block = np.ones(before // 8 + (1 << 22))  # more than ever was resident
    after = cost.host_peak_bytes()
    assert after is not None and after >= block.nbytes


def test_nvml_is_asked_for_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("pynvml")
    fake.NVMLError = type("NVMLError", (Exception,), {})  # type: ignore[attr-defined]
    mine = types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=700)
    other = types.SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=9)
    processes = [[mine, other], [other]]
    fake.nvmlInit = fake.nvmlShutdown = lambda: None  # type: ignore[attr-defined]
    fake.nvmlDeviceGetCount = lambda: 2  # type: ignore[attr-defined]
    fake.nvmlDeviceGetHandleByIndex = lambda i: i  # type: ignore[attr-defined]
    fake.nvmlDeviceGetComputeRunningProcesses = processes.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert cost.gpu_process_bytes() == 700
    processes[0].remove(mine)
    assert cost.gpu_process_bytes() is None

    def no_driver() -> None:
        raise fake.NVMLError("driver not loaded")

    fake.nvmlInit = no_driver  # type: ignore[attr-defined]
    assert cost.gpu_process_bytes() is None
