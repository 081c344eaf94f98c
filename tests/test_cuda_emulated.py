"""CUDA kernels on a CPU: those of long texts, and RWKV-7's delta rule in tiles.

tests/cuda_emulation runs kernels without Hopper's instructions as plain C++; it needs g++ and the
headers of the CUDA toolkit, no GPU. What it cannot show (a missing wait for a copy, what only a GPU
rounds) is left to test_cuda.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from standin import compile_all

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
PROGRAMS = {
    "long_pieces": ["pass.cu", "rows/pool.cu", "rwkv6/chunk.cu", "rwkv6/states.cu", "route.c"],
    "delta_rule": ["pass.cu", "rwkv7/chunk.cu", "rwkv7/states.cu", "rwkv7/wkv.cu", "route.c"],
}


def cuda_headers() -> Path:
    found = shutil.which("nvcc")
    places = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places += ["/usr/local/cuda", str(Path(found).resolve().parents[1]) if found else ""]
    for place in places:
        if place and (Path(place) / "include" / "cuda_runtime.h").exists():
            return Path(place) / "include"
    pytest.skip("no headers of the CUDA toolkit in CUDA_HOME, CUDA_PATH or /usr/local/cuda")


def build(name: str, folder: Path) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    emulation = HERE / "cuda_emulation"
    command = ["g++", "-O1", "-std=c++17", "-ffp-contract=off", "-fno-pie", "-w"]
    command += [f"-I{path}" for path in (cuda_headers(), CSRC, CSRC / "cuda", emulation)]
    sources = [CSRC / "cuda" / kernel for kernel in PROGRAMS[name]]
    sources += [emulation / "emulate.cc", emulation / f"{name}.cc"]
    kernel = ["-include", str(emulation / "emulate.h")]
    commands = {s: [*command, *(kernel if s.suffix == ".cu" else []), "-x", "c++"] for s in sources}
    commands[CSRC / "base.c"] = ["gcc", "-O1", "-std=c11", "-D_DEFAULT_SOURCE", "-fno-pie"]
    objects = compile_all(commands, folder)
    target = folder / name
    subprocess.run(["g++", "-no-pie", *map(str, objects), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def long_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("long_pieces", tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="module")
def delta_rule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("delta_rule", tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([40, 600, 20], 1),
        ([1024, 512, 31, 513], 2),  # whole parts; short by one token; long by one
        ([700, 640], 2),  # goes on from an earlier pass, goes on in a later one
        ([5, 64, 200], 0),
    ],
)
def test_long_pieces_have_the_bits_of_short_ones(
    long_pieces: Path, lengths: list[int], expected: int
) -> None:
    """wkv over parts side by side against wkv along whole pieces; pooling against sums in order."""
    command = [str(long_pieces), *map(str, lengths)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith(f"long {expected} ")
    errors = [float(line.split()[1]) for line in lines if line.startswith("error")]
    assert errors and max(errors) < 4e-3  # operands are rounded to bfloat16
    others = [line for line in lines[1:] if not line.startswith("error")]
    assert len(others) == 10 and all(line.endswith("same") for line in others), others


@pytest.mark.parametrize(
    ("lengths", "ahead"),
    [
        ([1], 0),
        ([5, 40, 16], 0),
        ([200, 1, 33, 32, 17, 64, 65], 0),
        ([1, 640], 1),  # whole parts
        # the first goes on from a state, the last leaves one
        pytest.param([600, 2, 300, 513], 2, marks=pytest.mark.slow),
    ],
)
def test_the_delta_rule_in_tiles_is_the_recurrence(
    delta_rule: Path, lengths: list[int], ahead: int
) -> None:
    """In block 0 and above it, from a given state, into a state. Cut and alone as together; states
    ahead as piece by piece, by two warps a head or by four.

    The output is rounded to bfloat16 (1.7e-3 in the mean square), and so are the rows that go into
    products, each of which adds about as much."""
    command = [str(delta_rule), *map(str, lengths)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    errors = [float(line.split()[-1]) for line in lines if "error" in line]
    assert len(errors) == 6 and max(errors) < 4e-3, lines
    for what in ("cut and alone: same", "two warps: same", "four warps: same", f"ahead {ahead}"):
        assert lines.count(what) == 2, lines
