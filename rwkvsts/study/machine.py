"""What a run was made on: processor, GPU, system and versions; the record beside its figures."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from ..device import query_cuda, threads_here
from ..errors import DeviceError


def machine_facts() -> dict[str, Any]:
    """Processor, cores, GPU, system, versions and date of this run."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": threads_here(),
        "gpu": gpu_name(),
        "os": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "rwkvsts")},
    }


def gpu_name() -> str | None:
    """Name of the first CUDA device; None if there is none to use."""
    try:
        return query_cuda().name
    except DeviceError:
        return None


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
