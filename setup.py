"""Builds the native parts: rwkvsts._core (C, always) and rwkvsts/_cuda.so (CUDA, where nvcc is).

Both are compiled file by file and side by side, and of what was compiled before only that which
changed: a file, a header that it includes, or the command. Sources are found by looking: every .c
below csrc outside csrc/cuda belongs to _core, every .cu and .c below csrc/cuda to _cuda.so.

These environment variables are read:

RWKVSTS_BUILD       release (default); debug: symbols, no optimisation; asan: AddressSanitizer and
                    UndefinedBehaviorSanitizer; tsan: ThreadSanitizer (tests/sanitize.py uses both)
RWKVSTS_CUDA        auto (default): build the CUDA part if there is an nvcc, 12 or newer;
                    0: never; 1: insist. Builds for a sanitizer leave it out
RWKVSTS_CUDA_ARCHS  the GPU architectures to compile for, such as 75,80,86,89,90. Default: those of
                    the GPUs at hand, and these five where there is none. The last also gets PTX
CUDA_HOME, CUDA_PATH and PATH are searched for nvcc, in this order.
CFLAGS              in the place of the flags that Python was built with: CFLAGS=-Werror in CI

Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
WHEEL_ARCHS = ["75", "80", "86", "89", "90"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wcast-qual"]
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer"]
BUILDS = {
    "release": ["-O3"],
    "debug": ["-O0", "-g"],
    "asan": [*SANITIZED, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": [*SANITIZED, "-fsanitize=thread"],
}


def chosen(variable: str, default: str, allowed: Iterable[str]) -> str:
    value = os.environ.get(variable) or default
    if value not in allowed:
        raise SystemExit(f"{variable} is {value!r}: expected {', '.join(allowed)}")
    return value


BUILD = chosen("RWKVSTS_BUILD", "release", BUILDS)


# ---- compiling what changed ---------------------------------------------------------------------


def is_current(target: Path, command: list[str]) -> bool:
    """Whether this very command made the object, after the last change of all that it reads."""
    listing, record = target.with_suffix(".d"), target.with_suffix(".command")
    if not (target.exists() and listing.exists() and record.exists()):
        return False
    if record.read_text() != "\n".join(command):
        return False
    # Make's format: "object: file file ...", with a backslash before a line's end or a space.
    _, _, names = listing.read_text().replace("\\\n", " ").partition(": ")
    read = [Path(name.replace("\\ ", " ")) for name in re.split(r"(?<!\\)\s+", names) if name]
    made = target.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in read)


def compile_one(target: Path, command: list[str]) -> None:
    """Runs a compiler that writes `target` and beside it, in a .d file, all that it read."""
    if is_current(target, command):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)
    target.with_suffix(".command").write_text("\n".join(command))


def compile_all(compiler: list[str], sources: list[Path], folder: Path) -> list[str]:
    """Compiles side by side, one file a processor, into `folder`; the objects as strings."""
    objects = [(folder / s.relative_to(CSRC)).with_suffix(s.suffix + ".o") for s in sources]
    commands = [
        [*compiler, "-c", str(s), "-MD", "-MF", str(o.with_suffix(".d")), "-o", str(o)]
        for s, o in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compile_one, objects, commands))  # raises the first failure
    return [str(o) for o in objects]


# ---- CUDA ---------------------------------------------------------------------------------------


def find_nvcc() -> str | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def output_of(*command: str) -> str:
    """What a program prints, "" where it is absent or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def what_hinders(nvcc: str | None) -> str | None:
    """Why the CUDA part cannot be built; None if it can be."""
    if nvcc is None:
        return "no nvcc in CUDA_HOME, CUDA_PATH or PATH"
    release = re.search(r"release (\d+)\.\d+", output_of(nvcc, "--version"))
    if release is None or int(release[1]) < 12:
        return f"{nvcc} is {release[0] if release else 'of no known release'}; 12 is needed"
    return None


def cuda_archs(nvcc: str) -> list[str]:
    """The architectures to compile for, ascending: "90" for compute capability 9.0.

    A GPU newer than this nvcc knows of gets the newest that it does know, and runs it by PTX.
    """
    wish = os.environ.get("RWKVSTS_CUDA_ARCHS", "").replace(" ", "").strip(",")
    if wish:
        archs = set(wish.split(","))
        if not all(re.fullmatch(r"\d{2,3}", arch) for arch in archs):
            raise SystemExit(f"RWKVSTS_CUDA_ARCHS is {wish!r}: expected numbers such as 75,80,90")
        return sorted(archs, key=int)
    printed = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    here = {int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", printed, re.M)}
    if not here:
        return WHEEL_ARCHS
    known = {
        int(arch)
        for arch in re.findall(r"compute_(\d+)$", output_of(nvcc, "--list-gpu-arch"), re.M)
    }
    return sorted({str(min(arch, max(known, default=arch))) for arch in here}, key=int)


def nvcc_flags(archs: list[str]) -> list[str]:
    # Hopper's own instructions exist in 90a only, whose code every GPU of 9.0 runs. PTX of 90a runs
    # on no other, so PTX is 90's.
    real = ["90a" if arch == "90" else arch for arch in archs]
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in real]
    code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    host = ["-fPIC", "-fvisibility=hidden", "-Wall", *os.environ.get("CFLAGS", "").split()]
    flags = ["-O3"] if BUILD == "release" else ["-O1", "-g", "-lineinfo"]
    # RWKVSTS_CUDA_ARCHS: what the library may run is bounded by what it was compiled for, not only
    # by what the device could do. Code for an older GPU runs on a newer one by PTX, without what
    # that GPU can do beyond it.
    define = f'-DRWKVSTS_CUDA_ARCHS="{",".join(archs)}"'
    return [
        *flags,
        "-std=c++17",
        "-Xcompiler",
        ",".join(host),
        f"-I{CSRC}",
        f"-I{CUDA}",
        define,
        *code,
    ]


def build_cuda(nvcc: str, temporary: Path, target: Path) -> None:
    archs = cuda_archs(nvcc)
    print(f"rwkvsts: compiling the CUDA part for {', '.join(archs)}", file=sys.stderr)
    sources = [*sorted(CUDA.rglob("*.cu")), *sorted(CUDA.rglob("*.c")), CSRC / "base.c"]
    objects = compile_all([nvcc, *nvcc_flags(archs)], sources, temporary / BUILD / "nvcc")
    target.parent.mkdir(parents=True, exist_ok=True)
    link = [nvcc, "-shared", "-cudart=static", *objects, "-ldl", "-o", str(target)]
    subprocess.run(link, check=True)


# ---- the command --------------------------------------------------------------------------------


class BuildExt(build_ext):
    """build_ext that compiles what changed, side by side, and runs nvcc as well."""

    def run(self) -> None:
        wish = chosen("RWKVSTS_CUDA", "auto", ("auto", "0", "1"))
        self.force = True  # always link; compile_one knows what is current
        super().run()
        nvcc, reason = find_nvcc(), None
        if wish == "0":
            reason = "RWKVSTS_CUDA=0"
        elif BUILD in ("asan", "tsan"):
            reason = f"RWKVSTS_BUILD={BUILD}"
        else:
            reason = what_hinders(nvcc)
        if reason is None:
            assert nvcc is not None
            package = ROOT if self.inplace else Path(self.build_lib)
            build_cuda(nvcc, Path(self.build_temp).absolute(), package / "rwkvsts" / "_cuda.so")
        elif wish == "1":
            raise SystemExit(f"RWKVSTS_CUDA=1, but {reason}")
        else:
            line = "*" * 78
            text = f"rwkvsts: building WITHOUT CUDA ({reason}): this copy runs on CPUs only"
            print(line, text, line, sep="\n", file=sys.stderr)

    def build_extensions(self) -> None:
        """Puts our way of compiling in the place of the compiler object's, file after file."""
        compiler: Any = self.compiler

        def compile_changed(sources: list[str], output_dir: str, **given: Any) -> list[str]:
            defines = [
                f"-D{name}" if value is None else f"-D{name}={value}"
                for name, value in [*given["macros"], *compiler.macros]
            ]
            includes = [f"-I{path}" for path in [*given["include_dirs"], *compiler.include_dirs]]
            command = [*compiler.compiler_so, *defines, *includes, *given["extra_postargs"]]
            folder = Path(output_dir).absolute() / BUILD / "cc"
            return compile_all(command, [ROOT / source for source in sources], folder)

        compiler.compile = compile_changed
        super().build_extensions()


# Headers of others are named as the system's, so that our warnings do not look into them.
theirs = [numpy.get_include(), sysconfig.get_paths()["include"]]
core = Extension(
    "rwkvsts._core",
    sources=[
        str(path.relative_to(ROOT))
        for path in sorted(CSRC.rglob("*.c"))
        if not path.is_relative_to(CUDA)
    ],
    include_dirs=["csrc"],
    define_macros=[("_DEFAULT_SOURCE", None), ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION")],
    extra_compile_args=[
        *("-std=c11", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"),
        *(flag for path in theirs for flag in ("-isystem", path)),
        *WARNINGS,
        *BUILDS[BUILD],
    ],
    libraries=["m", "dl"],
    extra_link_args=["-pthread", *(flag for flag in BUILDS[BUILD] if "sanitize" in flag)],
)

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
