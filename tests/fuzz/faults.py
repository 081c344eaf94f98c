"""Every allocation and every thread of the core refused once, one after the other.

    python tests/fuzz/faults.py

Needs Linux with glibc and a C compiler. Each operation is run again and again, its n-th request
refused, until it no longer asks so often. What must follow is a MemoryError, nothing left behind,
and the same bits from the next try.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]


def main() -> int:
    """Build the library that refuses, and start again with it before all others."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "faults.so")
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-O1", "-fPIC", "-shared", str(HERE / "faults.c"), "-o", str(library)]
        subprocess.run([*command, "-ldl", "-pthread"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "RWKVSTS_FAULTS": str(library)}
        # A pool of NumPy's would be counted with the core's threads.
        environment["OPENBLAS_NUM_THREADS"] = "1"
        return subprocess.run([sys.executable, __file__], env=environment).returncode


def addresses(name: str) -> tuple[int, int]:
    """Where a loaded library lies in memory."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    bounds = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def operations() -> dict[str, Callable[[], bytes]]:
    """What the core does, each from nothing to a result."""
    import numpy as np
    from tinymodel import random_weights

    from rwkvsts import _core

    weights = random_weights(L=1)
    listing = [(name, array.shape) for name, array in weights.items()]
    ids, start = np.arange(60, dtype=np.int32), np.array([0, 1, 60])
    layers = np.array([0, 1], np.int32)  # block 0 and the last norm
    singles = np.arange(1, 257, dtype=np.int32), bytes(range(256)), np.arange(257)

    def model(dtype: str, threads: int) -> _core.Model:
        m = _core.Model(listing, dtype=dtype, threads=threads)
        for name in filter(m.wants, weights):
            m.put(name, weights[name], "float32")
        m.seal()
        return m

    def embed(dtype: str, threads: int) -> bytes:
        out = np.zeros((2, 2, 64), np.float32)
        model(dtype, threads).run(ids, start, layers, 0, out, None, False, 0, None)
        return out.tobytes()

    def states() -> bytes:
        m = model("float32", 1)
        state = m.run(ids, start, layers[:0], 0, None, None, True, 0, None)
        assert state is not None
        first = tuple(np.ascontiguousarray(array[0]) for array in state)
        again = m.run(ids, start, layers[:0], 0, None, first, True, 0, None)
        assert again is not None
        return b"".join(array.tobytes() for array in (*state, *again))

    return {
        "tokenizer": lambda: bytes(_core.Tokenizer(*singles).encode(b"abc")),
        "embed float32": lambda: embed("float32", 1),
        "embed bfloat16": lambda: embed("bfloat16", 1),
        "embed, 4 threads": lambda: embed("float32", 4),
        "states": states,
    }


def refuse_each(faults: ctypes.CDLL, name: str, operation: Callable[[], bytes]) -> int:
    """How many requests the operation makes, each of which was refused once."""
    expected = operation()
    gc.collect()
    kept = faults.faults_kept()
    n = 0
    while True:
        n += 1
        faults.faults_arm(n)
        try:
            result = operation()
        except MemoryError:
            result = None
        asked = faults.faults_asked()
        faults.faults_arm(0)
        gc.collect()
        if faults.faults_kept() != kept:
            raise SystemExit(f"{name}: request {n} refused: {faults.faults_kept() - kept} left")
        if asked < n:
            assert result == expected, f"{name}: other bits when nothing is refused"
            return n - 1
        if result is not None and result != expected:
            raise SystemExit(f"{name}: request {n} refused: other bits and no word")
        if operation() != expected:
            raise SystemExit(f"{name}: other bits after request {n} was refused")


def work(library: str) -> int:
    faults = ctypes.CDLL(library)
    faults.faults_kept.restype = faults.faults_asked.restype = ctypes.c_long
    faults.faults_watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    faults.faults_arm.argtypes = [ctypes.c_long]
    each = operations()
    faults.faults_watch(*addresses("/_core."))
    for name, operation in each.items():
        print(f"{name:18} {refuse_each(faults, name, operation):5} requests refused", flush=True)
    return 0


if __name__ == "__main__":
    library = os.environ.get("RWKVSTS_FAULTS")
    raise SystemExit(work(library) if library else main())
