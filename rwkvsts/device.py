"""What this machine offers: instruction sets and CUDA devices; and what "auto" means here.

The CUDA part is a shared library of its own, absent from a CPU-only build and loaded only when it
is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import _core
from .errors import DeviceError
from .processors import threads_here

__all__ = ["CUDA_LIBRARY", "DTYPES", "Choice", "Cuda", "choose", "cuda_library", "parse"]
__all__ += ["query_cuda", "threads_here"]

CUDA_LIBRARY = Path(__file__).with_name("_cuda.so")
DTYPES = ("float32", "bfloat16", "float16")
DTYPES_IN_C = {"float32": 0, "float16": 1, "bfloat16": 2}  # enum dtype of csrc/base.h


@dataclass(frozen=True)
class Cuda:
    """A CUDA device: name, compute capability, memory in bytes.

    The capability is that of the code which the device runs here: at most its own, and less where
    this copy was built for older devices. The name says so then.
    """

    name: str
    capability: tuple[int, int]
    free: int
    total: int


@dataclass(frozen=True)
class Choice:
    """What a model is to run on: the CUDA device of that number, or the CPU for None."""

    ordinal: int | None
    dtype: str

    @property
    def device(self) -> str:
        """As `device=` takes it."""
        return "cpu" if self.ordinal is None else f"cuda:{self.ordinal}" if self.ordinal else "cuda"


def query_cuda(ordinal: int = 0) -> Cuda:
    """The CUDA device of a number, among those that the process sees.

    Raises
    ------
    DeviceError : there is none that can be used, with the reason
    """
    asked = f"device={Choice(ordinal, '').device!r}"
    if not CUDA_LIBRARY.exists():
        raise DeviceError(
            f"{asked}: this copy was built without CUDA; install it again where nvcc is, with "
            "RWKVSTS_CUDA=1, or use device='cpu'"
        )
    text = ctypes.create_string_buffer(500)
    major, minor = ctypes.c_int(), ctypes.c_int()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        query = ctypes.CDLL(str(CUDA_LIBRARY)).rwkvsts_cuda_query
    except (OSError, AttributeError) as error:
        raise DeviceError(f"{asked}: the CUDA part cannot be loaded: {error}") from error
    numbers = [ctypes.byref(number) for number in (major, minor, free, total)]
    failed = query(text, ctypes.c_size_t(len(text)), *numbers, ctypes.c_int(ordinal))
    message = text.value.decode(errors="replace")
    if failed:
        raise DeviceError(f"{asked}: {message}")
    return Cuda(message, (major.value, minor.value), free.value, total.value)


def cuda_facts(ordinal: int = 0) -> tuple[int, int, int, int]:
    """What kernels are chosen by on a CUDA device: compute capability (90 for 9.0), the one that
    its code is compiled for, whether that is Hopper's own code, multiprocessors."""
    query_cuda(ordinal)  # raises where there is none
    facts = (ctypes.c_int * 4)()
    ctypes.CDLL(str(CUDA_LIBRARY)).rwkvsts_cuda_facts(ctypes.c_int(ordinal), facts)
    return facts[0], facts[1], facts[2], facts[3]


def cuda_route(
    facts: tuple[int, int, int, int], dtype: str, sizes: Sequence[int], tokens: int, piece: int
) -> dict[str, str]:
    """Which CUDA kernel runs for each step of a pass of RWKV-6; see csrc/cuda/route.h.

    facts : of the device, as cuda_facts gives them; it need not be here
    sizes : embedding, heads, head size, feed-forward, ranks of the token shift and of the decay
    tokens, piece : of the pass, and of the longest text in it

    Raises
    ------
    DeviceError : that device cannot run such a model, or this copy was built without CUDA
    """
    if not CUDA_LIBRARY.exists():
        raise DeviceError("this copy was built without CUDA")
    text = ctypes.create_string_buffer(4000)
    numbers = (ctypes.c_int * 6)(*sizes)
    failed = ctypes.CDLL(str(CUDA_LIBRARY)).rwkvsts_cuda_route(
        text, ctypes.c_size_t(len(text)), *facts, DTYPES_IN_C[dtype], numbers, tokens, piece
    )
    said = text.value.decode()
    if failed:
        raise DeviceError(said)
    return dict(line.split(": ", 1) for line in said.splitlines())


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


def parse(device: str) -> int | None:
    """The number of the CUDA device that a name means; None for "auto" and "cpu"."""
    if not isinstance(device, str):
        raise TypeError(f"device is {type(device).__name__}: expected str, as 'cpu'")
    named = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    if device not in ("auto", "cpu") and not named:
        raise ValueError(f"device={device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:1'")
    return int(named[1] or 0) if named else None


def choose(device: str, dtype: str, instruction_set: str | None = None) -> Choice:
    """Resolve "auto": CUDA where it can be used; bfloat16 where the hardware multiplies it, else
    float16 on a GPU and float32 on a CPU.

    device : "auto", "cpu", "cuda" (the first CUDA device) or "cuda:1", counted from 0
    """
    ordinal = parse(device)
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype={dtype!r}: expected 'auto' or one of {', '.join(DTYPES)}")
    known = ("portable", *reversed(_core.cpu_features()))
    if instruction_set is not None and instruction_set not in known:
        listed = f"{', '.join(known[:-1])} or {known[-1]}" if known[1:] else known[0]
        raise ValueError(f"instruction_set={instruction_set!r}: expected {listed}")
    cuda = None
    if ordinal is not None:
        cuda = query_cuda(ordinal)
    elif device == "auto":
        with contextlib.suppress(DeviceError):
            cuda = query_cuda()
    if dtype == "auto":
        dtype = _dtype_of(cuda) if cuda else _dtype_of_cpu(instruction_set)
    if cuda is None and dtype == "float16":
        raise ValueError(
            "dtype float16 on a CPU: expected float32 or bfloat16 (float16 weights load into both)"
        )
    return Choice((ordinal or 0) if cuda else None, dtype)


def _dtype_of(cuda: Cuda) -> str:
    return "bfloat16" if cuda.capability >= (8, 0) else "float16"


def _dtype_of_cpu(instruction_set: str | None) -> str:
    """Where it is not an instruction bfloat16 is no faster than float32, and less exact."""
    usable = _core.cpu_features()
    multiplies = [name for name in ("amx", "avx512bf16") if usable[name]]
    taken = multiplies if instruction_set is None else [instruction_set]
    return "bfloat16" if set(taken) & set(multiplies) else "float32"
