"""The CPU's verbs compiled apart, with a difference, and loaded as the CUDA part would be.

For what this machine cannot show: a backend that asks for a grain, tile registers that its
processor does not have. The package itself needs no option for it: the seam is a library's.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rwkvsts import RWKV6, _core
from rwkvsts.opening import Opened

CSRC = Path(__file__).resolve().parents[1] / "csrc"
_, _, _after = (CSRC / "backend.h").read_text().partition("#define CUDA_BACKEND_ABI ")
ABI = int(_after.split()[0])  # of the seam


def compile_cpu(folder: Path, entry: str, *flags: str) -> Path:
    """A library of csrc/cpu and of `entry`, which must define rwkvsts_cuda_backend."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, target = folder / "entry.c", folder / "entry.so"
    source.write_text(entry)
    own = ["-std=c11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    own += ["-pthread", "-D_DEFAULT_SOURCE", f"-I{CSRC}"]
    sources = [source, CSRC / "base.c", *sorted((CSRC / "cpu").glob("*.c"))]
    subprocess.run(
        [compiler, *own, *flags, *map(str, sources), "-lm", "-o", str(target)], check=True
    )
    return target


def model_on(
    library: Path, weights: dict[str, np.ndarray], dtype: str = "float32", threads: int = 1
) -> RWKV6:
    """A model whose verbs are the library's. Its weights are float32 arrays."""
    core = _core.Model(
        [(name, a.shape) for name, a in weights.items()],
        dtype=dtype,
        threads=threads,
        cuda=True,
        library=str(library),
    )
    for name, a in weights.items():
        if core.wants(name):
            core.put(name, a, "float32")
    core.seal()
    return RWKV6(Opened(core, None, dtype, core.config["n_layer"], None))
