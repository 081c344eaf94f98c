"""Every CUDA kernel of the routing table alone: its error, its time, its share of the ceiling.

    python bench/cuda_kernels.py [bfloat16 float16 float32]

Needs nvcc and a GPU; takes a minute and a half. Compiles what changed of the package, links its
objects with bench/cuda_kernels.cu and runs that for each dtype named (default: bfloat16).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    sys.path.insert(0, str(ROOT))
    environment = {**os.environ, "RWKVSTS_CUDA": "1", "PYTHONPATH": str(ROOT)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    made = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(made.stdout[-2000:] + made.stderr[-2000:])
    objects = sorted(ROOT.glob("build/temp*/release/nvcc/**/*.o"))
    program = ROOT / "build" / "cuda_kernels"
    asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    capability = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    command = ["nvcc", "-O2", "-std=c++17", f"-arch=sm_{capability.replace('.', '')}"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    command += [str(ROOT / "bench" / "cuda_kernels.cu"), *map(str, objects), "-ldl"]
    subprocess.run([*command, "-o", str(program)], check=True)
    from rwkvsts.device import cuda_library

    cuda_library()  # says where a Python package has cublasLt
    import importlib.util

    packages = importlib.util.find_spec("nvidia")
    folders = [
        str(folder)
        for place in (packages and packages.submodule_search_locations) or ()
        for folder in Path(place).glob("*/lib")
    ]
    environment["LD_LIBRARY_PATH"] = ":".join([*folders, os.environ.get("LD_LIBRARY_PATH", "")])
    for dtype in sys.argv[1:] or ["bfloat16"]:
        subprocess.run([str(program), dtype], env=environment, check=True)


if __name__ == "__main__":
    main()
