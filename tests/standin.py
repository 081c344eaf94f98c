"""The CPU's verbs compiled apart, with a difference, and loaded as the CUDA part would be.

For what this machine cannot show: a backend that asks for a grain, tile registers that its
processor does not have. The package itself needs no option for it: the seam is a library's.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rwkvsts import RWKV6, _core
from rwkvsts.opening import Opened
from rwkvsts.processors import threads_here

CSRC = Path(__file__).resolve().parents[1] / "csrc"
_, _, _after = (CSRC / "backend.h").read_text().partition("#define CUDA_BACKEND_ABI ")
ABI = int(_after.split()[0])  # of the seam


def compile_cpu(folder: Path, entry: str, *flags: str) -> Path:
    """A library of csrc/cpu and of `entry`, which must define rwkvsts_cuda_backend."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "entry.c").write_text(entry)
    own = ["-std=c11", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
    command = [compiler, *own, "-D_DEFAULT_SOURCE", f"-I{CSRC}", *flags]
    sources = [folder / "entry.c", CSRC / "base.c", *sorted((CSRC / "cpu").glob("*.c"))]
    objects = compile_all({source: command for source in sources}, folder)
    target = folder / "entry.so"
    subprocess.run([compiler, "-shared", *map(str, objects), "-lm", "-o", str(target)], check=True)
    return target


def compile_all(commands: dict[Path, list[str]], folder: Path) -> list[Path]:
    """Object files of sources, each by its own command, as many at a time as there are cores."""
    objects = [folder / f"{number}.o" for number in range(len(commands))]

    def compile_one(source: Path, command: list[str], target: Path) -> None:
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(threads_here()) as pool:
        list(pool.map(compile_one, commands, commands.values(), objects))
    return objects


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
