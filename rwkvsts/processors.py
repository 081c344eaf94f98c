"""How many threads pay on this machine for this process: cores, affinity, a container's quota.

Assumes Linux's /proc and /sys, and says less where they are absent. Promises a number of at least 1
and that nothing is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def threads_here(root: Path = ROOT, mask: set[int] | None = None) -> int:
    """Threads to start by default: one a core that this process may run on, no more than its quota.

    - The processors are those of the process's affinity mask.
    - Two of them that share a core (hyperthreads) count once: the products that take the time keep
      a core's arithmetic units busy with one thread.
    - A CPU quota of the process's control group, or of one above it, is an upper bound: a container
      that may use 1.5 processors gets 2 threads. Both versions of control groups are read.

    Parameters
    ----------
    root : where proc and sys lie
    mask : processors to choose from; default: the affinity mask
    """
    if mask is None:
        mask = _affinity()
    cores = {_core(root, processor) for processor in mask}
    return max(1, min([len(cores), *map(math.ceil, _quotas(root))]))


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on every system
        return set(range(os.cpu_count() or 1))


def _core(root: Path, processor: int) -> str:
    """A name that the processors of one core share; the processor's own where nothing is told."""
    folder = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the older name
        siblings = _read(folder / name)
        if siblings:
            return siblings
    return str(processor)


def _quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time that each control group above this process allows."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for group in _upwards(root / "sys/fs/cgroup", path):
                yield from _quota(*(_read(group / "cpu.max") or "").split())
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                for group in _upwards(root / "sys/fs/cgroup" / mount, path):
                    quota = _read(group / "cpu.cfs_quota_us") or ""
                    yield from _quota(quota, _read(group / "cpu.cfs_period_us") or "")


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group and those above it; what a container does not see of them is not there."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _quota(quota: str = "", period: str = "") -> Iterator[float]:
    """The quota over its period; nothing for "max", -1 and what is no number."""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
