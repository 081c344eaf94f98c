"""compute-sanitizer over every CUDA kernel, in minutes: small models, ragged rows, one walk a tool.

    python tests/sanitize_cuda.py [memcheck synccheck initcheck racecheck] [--seconds 150]

Not a test of pytest: a tool makes kernels some hundred times slower, and the whole test file does
not end under one. The walk holds to what reaches every kernel, most worthwhile first, and says how
far it came if its time runs out. Kernels of cublasLt are not looked into: initcheck does not see
what they write, and walks only where our own kernels take every product: 16 bits and few rows.
racecheck must be named: on Hopper it never got beyond opening a model, see docs/SPEED_LOG.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tinymodel import load, random_ids, random_weights
from tinymodel7 import load7, random_weights7

from rwkvsts.device import query_cuda

TOOLS = ("memcheck", "synccheck", "initcheck")
LIBRARY_KERNELS = ("nvjet", "cutlass", "xmma", "cublas", "gemm", "gemv")
LENGTHS = [1, 2, 3, 17, 64, 65, 120, 31, 1, 8]  # 312 tokens: more than what "few rows" takes
SIZES: dict[str, dict[str, int]] = {
    "heads of 64": {"C": 256, "N": 64, "F": 448, "R": 32, "D": 64, "L": 2},
    "heads of 16": {"C": 48, "N": 16, "F": 104, "R": 5, "D": 7, "L": 2},
    "heads of 8": {"C": 64, "N": 8, "F": 224, "R": 8, "D": 64, "L": 2},
    "ranks of 64 and 128": {"C": 128, "N": 32, "F": 64, "R": 64, "D": 128, "L": 1},
    "wide": {"C": 1152, "N": 64, "F": 64, "L": 1},  # products of few rows are cut differently
    "many rows": {"C": 1024, "N": 64, "F": 64, "R": 32, "L": 1},  # norms walk over them
}
SIZES7: dict[str, dict[str, Any]] = {
    "RWKV-7, heads of 64": {"C": 256, "N": 64, "F": 448, "ranks": (64, 64, 64, 64), "L": 2},
    "RWKV-7, heads of 16": {"C": 48, "N": 16, "F": 104, "ranks": (8, 16, 8, 16), "L": 2},
}
MANY = [*[40] * 25, 600]  # with the others, beyond eight rows a multiprocessor; a long text
MEMORY = 64 << 20  # of which a quarter is what choosing products may take: keeps their trial small


def walk(dtypes: list[str], few: bool) -> None:
    """Many rows, few rows, recorded passes, cut texts, states, all poolings; compared as bytes."""
    start = time.perf_counter()
    ids = random_ids(1, LENGTHS[:6] if few else LENGTHS)
    for size, sizes in (SIZES | SIZES7).items():
        if few and (sizes["C"] % 64 or sizes["F"] % 64):
            continue
        seventh = size in SIZES7
        weights = random_weights7(**sizes) if seventh else random_weights(**sizes)
        layers = [*range(sizes["L"]), "final"]
        many = size == "many rows" and not few
        all_ids, memory = ids + random_ids(2, MANY) * many, MEMORY * (3 if many else 1)
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as folder:
                options = {"device": "cuda", "dtype": dtype, "device_memory": memory}
                m = (load7 if seventh else load)(Path(folder), weights, **options)
            right = m.encode_ids(all_ids, layers)[: len(ids)]
            assert np.isfinite(right).all()
            for batch_tokens in (50, 200):
                found = m.encode_ids(ids, layers, batch_tokens=batch_tokens)
                assert found.tobytes() == right.tobytes()
            for _ in range(3):  # seen, recorded, replayed
                assert m.encode_ids(ids[3:5], layers).tobytes() == right[3:5].tobytes()
            state = m.state(ids[5][:64])  # heads of 64 count in 64 tokens in bfloat16
            rest = m.encode_ids([ids[5][64:]], layers, pooling="last", state=state)
            last = m.encode_ids(ids[5:], layers, pooling="last")
            assert last[:1].tobytes() == rest.tobytes()
            for pooling in ("weighted", "max"):
                assert np.isfinite(m.encode_ids(ids[4:], layers, pooling=pooling)).all()
            del m
            print(f"walk: {size}, {dtype}: {time.perf_counter() - start:.1f} s", flush=True)
    print("walk: done", flush=True)


def sanitizer() -> str:
    places = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places += ["/usr/local/cuda"]
    found = shutil.which("compute-sanitizer")
    for place in [Path(p) / "bin" / "compute-sanitizer" for p in places if p]:
        found = found or (str(place) if place.exists() else None)
    if found is None:
        raise SystemExit("compute-sanitizer is not in PATH, CUDA_HOME or CUDA_PATH")
    return found


def run_tool(tool: str, seconds: float) -> bool:
    """Whether the tool saw the whole walk and found nothing in our kernels."""
    command = [sanitizer(), "--tool", tool, "--error-exitcode", "3", "--print-limit", "12"]
    command += ["--show-backtrace", "device", "--target-processes", "application-only"]
    command += ["--kernel-name-exclude", "regex=" + "|".join(LIBRARY_KERNELS)]
    if tool == "memcheck":
        command += ["--leak-check", "full"]
    print(f"== {tool}", flush=True)
    start = time.perf_counter()
    own = [sys.executable, os.path.abspath(__file__), "--walk"]
    own += ["--few"] if tool == "initcheck" else []
    process = subprocess.Popen(command + own, start_new_session=True)
    try:
        code = process.wait(seconds)
        said = "clean" if code == 0 else f"exit status {code}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code, said = 1, "NOT FINISHED"
    print(f"== {tool}: {said} after {time.perf_counter() - start:.0f} s", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", default=list(TOOLS), metavar="TOOL")
    parser.add_argument("--seconds", type=float, default=150, help="for each tool")
    parser.add_argument("--walk", action="store_true", help="only walk, without a tool")
    parser.add_argument("--few", action="store_true", help="only 16 bits and few rows")
    args = parser.parse_args()
    if args.walk:
        has_bfloat16 = query_cuda().capability >= (8, 0)
        dtypes = ["bfloat16"] * has_bfloat16 + ["float16"] + ["float32"] * (not args.few)
        walk(dtypes, args.few)
    elif not all([run_tool(tool, args.seconds) for tool in args.tools]):  # all run, whatever fails
        raise SystemExit(1)


if __name__ == "__main__":
    main()
