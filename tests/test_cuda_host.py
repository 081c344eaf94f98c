"""The CUDA part where there is no GPU: it loads, says what is missing, and plans as it should.

Tests of the library skip where it was not built (no nvcc); those of the planning need a C compiler.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from standin import ABI
from tinymodel import load, random_ids, random_weights

from rwkvsts import DeviceError
from rwkvsts.device import CUDA_LIBRARY, query_cuda

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"


def c_compiler() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    return compiler


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    if not CUDA_LIBRARY.exists():
        pytest.skip("the CUDA part was not built: there was no nvcc")
    return ctypes.CDLL(str(CUDA_LIBRARY))


@pytest.fixture(scope="module")
def no_device(library: ctypes.CDLL) -> str:
    """What the library says about a machine without a usable device."""
    try:
        found = query_cuda()
    except DeviceError as missing:
        return str(missing)
    pytest.skip(f"there is a device here: {found.name}")


# ---- the library ------------------------------------------------------------------------------


def test_only_the_right_version_of_the_seam_is_given(library: ctypes.CDLL) -> None:
    entry = library.rwkvsts_cuda_backend
    entry.restype = ctypes.c_void_p
    assert entry(ABI) is not None
    assert entry(ABI + 1) is None and entry(0) is None


def machine_code(path: Path) -> set[tuple[str, int]]:
    """("ptx" or "code", architecture) of every entry of the library's fat binaries."""
    data, found = path.read_bytes(), set()
    at = data.find(struct.pack("<I", 0xBA55ED50))
    while at >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, at)
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
            arch = struct.unpack_from("<I", data, entry + 28)[0]
            found.add(("ptx" if kind == 1 else "code", arch))
            entry += entry_header + entry_size
        at = data.find(struct.pack("<I", 0xBA55ED50), end)
    return found


def test_it_holds_machine_code_and_ptx_for_the_last(library: ctypes.CDLL) -> None:
    found = machine_code(CUDA_LIBRARY)
    code = {arch for kind, arch in found if kind == "code"}
    assert code and all(arch >= 75 for arch in code)
    assert ("ptx", max(code)) in found


def test_a_missing_device_is_said(no_device: str) -> None:
    assert "driver" in no_device or "device" in no_device.removeprefix("device='cuda': ")


def test_cuda_without_a_device_is_refused(no_device: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="driver|sees no device"):
        load(tmp_path, random_weights(), device="cuda")


def test_auto_without_a_device_is_the_cpu(no_device: str, tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(), device="auto")
    assert m.device.startswith("cpu")
    assert m.encode_ids(random_ids(1, [5]), 0).shape == (1, 64)


BY_NAME = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from rwkvsts.device import cuda_library
cuda_library()
print(ctypes.CDLL("libcublasLt.so.13", os.RTLD_NOLOAD).stand_in())
"""


def test_cublas_of_a_python_package_is_found_by_name(tmp_path: Path) -> None:
    """As PyTorch brings it: in a folder where no loader looks."""
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    source = tmp_path / "stand_in.c"
    source.write_text("int stand_in(void) { return 42; }\n")
    name = "libcublasLt.so.13"
    flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
    subprocess.run([c_compiler(), *flags, str(source)], check=True)
    (folder / "libcublasLt.so.12").write_text("not a library: left to the core to say")
    root = str(CUDA_LIBRARY.parents[1])
    found = subprocess.run(
        [sys.executable, "-c", BY_NAME, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root},
        cwd=tmp_path,  # a source tree at hand would be found first
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "42\n"


# ---- planning -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = c_compiler()
    folder = tmp_path_factory.mktemp("plan")
    source, target = folder / "plan.c", folder / "plan.so"
    source.write_text(
        '#include "pass_size.h"\n'
        "int rows(size_t b, size_t u, size_t r, int m) { return pass_rows(b, u, r, m); }\n"
        "int rows_up(int T, int most) { return bucket_rows(T, most); }\n"
        "int sequences_up(int S, int most) { return bucket_sequences(S, most); }\n"
    )
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC"]
    command = [compiler, *flags, f"-I{SOURCES}", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(target))
    found.rows.argtypes = [ctypes.c_size_t] * 3 + [ctypes.c_int]
    return found


@pytest.mark.parametrize(
    ("budget", "used", "row", "multiprocessors", "rows"),
    [
        (141 << 30, 2 << 30, 53_000, 132, 8448),  # an H200 with room: 64 a multiprocessor
        (15 << 30, 2 << 30, 90_000, 40, 2560),  # a T4
        (141 << 30, 2 << 30, 18_000, 132, 25344),  # RWKV-7 0.1B: 192 in the same memory
        (141 << 30, 2 << 30, 24_000, 132, 16896),  # C = 1024: 128
        (141 << 30, 2 << 30, 1_500, 132, 33792),  # never more than 256
        (1_600_000_000, 1_350_000_000, 53_000, 132, 4608),  # whole tiles that fit in 250 MB
        (1_600_000_000, 1_595_000_000, 53_000, 132, 94),  # less than a tile
        (1_600_000_000, 1_700_000_000, 53_000, 132, 64),  # nothing: let the allocation say so
    ],
)
def test_rows_of_a_pass(
    plan: ctypes.CDLL, budget: int, used: int, row: int, multiprocessors: int, rows: int
) -> None:
    assert plan.rows(budget, used, row, multiprocessors) == rows
    if rows > 64:
        assert used + rows * row <= budget


def test_buckets_hold_their_pass_and_are_few(plan: ctypes.CDLL) -> None:
    for most in (1, 10, 64, 256, 8448):
        rows = [plan.rows_up(T, most) for T in range(1, min(most, 256) + 1)]
        assert all(T <= up <= most for T, up in enumerate(rows, 1))
        assert rows == sorted(rows) and len(set(rows)) <= 14
    for most in (1, 3, 64, 528):
        sequences = [plan.sequences_up(S, most) for S in range(1, most + 1)]
        assert all(S <= up <= most for S, up in enumerate(sequences, 1))
        assert len(set(sequences)) <= 11
