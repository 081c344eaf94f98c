"""Builds the two native parts: rwkvsts._core (C, always), rwkvsts/_cuda.so (CUDA, where nvcc is).

RWKVSTS_CUDA        auto (default): build the CUDA part if there is an nvcc, 12 or newer;
                    0: never; 1: insist
RWKVSTS_CUDA_ARCHS  default 75,80,86,89,90: machine code for each (90a's for 90), PTX for the last
CUDA_HOME, CUDA_PATH and PATH are searched for nvcc, in this order.

Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "75,80,86,89,90"


def find_nvcc() -> str | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def what_hinders(nvcc: str | None) -> str | None:
    """Why the CUDA part cannot be built; None if it can be."""
    if nvcc is None:
        return "no nvcc in CUDA_HOME, CUDA_PATH or PATH"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.\d+", said)
    if release is None or int(release[1]) < 12:
        return f"{nvcc} is {release[0] if release else 'of no known release'}; 12 is needed"
    return None


def nvcc_command(nvcc: str, target: Path) -> list[str]:
    archs = os.environ.get("RWKVSTS_CUDA_ARCHS", DEFAULT_ARCHS).replace(" ", "").split(",")
    # Hopper's own instructions exist in 90a only, whose code every GPU of 9.0 runs; its PTX no
    # other would, so that is 90's.
    real = ["90a" if arch == "90" else arch for arch in archs]
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in real]
    code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "csrc" / "base.c"]
    return [
        *(nvcc, "-O3", "-std=c++17", "-shared", "-cudart=static", "-t0"),
        *("-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc'}"),
        *code,
        *map(str, sources),
        *("-ldl", "-o", str(target)),
    ]


class BuildExt(build_ext):
    """build_ext that also runs nvcc."""

    def run(self) -> None:
        super().run()
        wish = os.environ.get("RWKVSTS_CUDA", "auto")
        if wish not in ("auto", "0", "1"):
            raise SystemExit(f"RWKVSTS_CUDA is {wish!r}: expected auto, 0 or 1")
        nvcc = find_nvcc()
        reason = "RWKVSTS_CUDA=0" if wish == "0" else what_hinders(nvcc)
        if reason is None:
            assert nvcc is not None
            self.build_cuda(nvcc)
        elif wish == "1":
            raise SystemExit(f"RWKVSTS_CUDA=1, but {reason}")
        else:
            self.announce_cpu_only(reason)

    def announce_cpu_only(self, reason: str) -> None:
        line = "*" * 78
        text = f"rwkvsts: building WITHOUT CUDA ({reason}): this copy runs on CPUs only"
        print(line, text, line, sep="\n", file=sys.stderr)

    def build_cuda(self, nvcc: str) -> None:
        package = ROOT if self.inplace else Path(self.build_lib)
        target = package / "rwkvsts" / "_cuda.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        command = nvcc_command(nvcc, target)
        print(" ".join(command))
        subprocess.run(command, check=True)


core = Extension(
    "rwkvsts._core",
    sources=[
        *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*.c"))),
        *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc" / "cpu").glob("*.c"))),
    ],
    depends=[str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")],
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[("_DEFAULT_SOURCE", None), ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION")],
    extra_compile_args=["-std=c11", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"],
    libraries=["m", "dl"],
    extra_link_args=["-pthread"],
)

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
