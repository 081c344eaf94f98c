"""What this machine offers: instruction sets, threads, CUDA devices; and what "auto" means here.

The CUDA part is a shared library of its own, absent from a CPU-only build and loaded only when it
is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from . import _core
from .errors import DeviceError

CUDA_LIBRARY = Path(__file__).with_name("_cuda.so")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Cuda:
    """The first CUDA device: name, compute capability, memory in bytes."""

    name: str
    capability: tuple[int, int]
    free: int
    total: int


def query_cuda() -> Cuda:
    """The first CUDA device.

    Raises
    ------
    DeviceError : there is none that can be used, with the reason
    """
    if not CUDA_LIBRARY.exists():
        raise DeviceError(
            "device='cuda': this copy was built without CUDA; install it again where nvcc is, with "
            "RWKVSTS_CUDA=1, or use device='cpu'"
        )
    text = ctypes.create_string_buffer(500)
    major, minor = ctypes.c_int(), ctypes.c_int()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        query = ctypes.CDLL(str(CUDA_LIBRARY)).rwkvsts_cuda_query
    except (OSError, AttributeError) as error:
        raise DeviceError(f"device='cuda': the CUDA part cannot be loaded: {error}") from error
    numbers = [ctypes.byref(number) for number in (major, minor, free, total)]
    failed = query(text, ctypes.c_size_t(len(text)), *numbers)
    message = text.value.decode(errors="replace")
    if failed:
        raise DeviceError(f"device='cuda': {message}")
    return Cuda(message, (major.value, minor.value), free.value, total.value)


def cuda_library() -> str:
    """Path of the CUDA part, for the core to load; brings cublasLt into the process first.

    Where a Python package holds cublasLt, as PyTorch's do, the loader does not look; a library
    that is in the process already it finds by name, and PyTorch then shares this copy.
    """
    packages = importlib.util.find_spec("nvidia")
    for place in (packages and packages.submodule_search_locations) or ():
        for path in Path(place).glob("*/lib/libcublasLt.so.*"):
            with contextlib.suppress(OSError):  # the core says what it lacks
                ctypes.CDLL(str(path))
    return str(CUDA_LIBRARY)


def threads_here() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def choose(device: str, dtype: str, instruction_set: str | None = None) -> tuple[str, str]:
    """Resolve "auto": CUDA where it can be used; bfloat16 where the hardware multiplies it, else
    float16 on a GPU and float32 on a CPU."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r}: expected 'auto', 'cpu' or 'cuda'")
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype={dtype!r}: expected 'auto' or one of {', '.join(DTYPES)}")
    cuda = None
    if device == "cuda":
        cuda = query_cuda()
    elif device == "auto":
        try:
            cuda = query_cuda()
        except DeviceError:
            cuda = None
    if dtype == "auto":
        if cuda is not None:
            dtype = "bfloat16" if cuda.capability >= (8, 0) else "float16"
        else:
            # Where it is not an instruction bfloat16 is no faster than float32, and less exact.
            usable = _core.cpu_features()
            multiplies = [name for name in ("amx", "avx512bf16") if usable[name]]
            taken = multiplies if instruction_set is None else [instruction_set]
            dtype = "bfloat16" if set(taken) & set(multiplies) else "float32"
    return ("cpu" if cuda is None else "cuda"), dtype
