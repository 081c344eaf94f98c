"""Two builds of the CUDA part against each other: the bytes of embeddings, then speed in turns.

    git archive -o build/before.tar COMMIT
    python bench/cuda_turns.py build/before.tar [--no-tests] [--turns 5]

Needs nvcc and a GPU; takes some 6 minutes. Builds this tree and the one in the archive (or folder)
for the GPU at hand, and gives each a process of its own. Both embed the same random models and the
bundled one in every dtype; the table says how many results differ as bytes. Then both take turns
on Finch-1B6's shape, 12 blocks in bfloat16, and the CUDA tests of this tree run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import checkpoint
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda"
DTYPES = ("bfloat16", "float16", "float32")
FINCH = "Finch-1B6, 12 blocks"
LAYERS = [*range(1, 12, 2)]
SIZES: dict[str, dict[str, int]] = {
    "heads of 64": {"C": 256, "N": 64, "F": 448, "R": 32, "D": 64},
    "heads of 64, ranks of 64 and 128": {"C": 1024, "N": 64, "F": 448, "R": 64, "D": 128, "L": 2},
    "heads of 64, ragged": {"C": 1152, "N": 64, "F": 64, "R": 8, "D": 12, "L": 2},
    "heads of 16": {"C": 48, "N": 16, "F": 104, "R": 5, "D": 7},
    "heads of 128": {"C": 2176, "N": 128, "F": 128, "R": 20, "D": 20, "L": 1},
}


# ---- in a build's own process -----------------------------------------------------------------


def lengths_of(name: str) -> list[int]:
    """Lengths of the texts of a workload, in tokens."""
    if name == "sentences":  # MRPC's
        return checkpoint.mrpc_lengths(np.random.default_rng(0), 2816).tolist()
    count, length = (int(part) for part in name.split(" x "))
    return [length] * count


WORKLOADS = ("sentences", "1024 x 128", "256 x 512", "32 x 4096", "2 x 65536", "1 x 65536")


def ids_of(lengths: list[int], vocabulary: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocabulary, n).astype(np.int32) for n in lengths]


def embeddings(m: Any) -> dict[str, np.ndarray]:
    """Results over every route: few and many rows, recorded passes, cut texts, states, poolings."""
    vocabulary, last = m.config.n_vocab, m.n_blocks - 1
    ragged = np.random.default_rng(2).integers(1, 90, 120).tolist()
    ids = ids_of([1, 2, 3, 17, 64, 65, 200, 31, 1, 128, 700, 1500, *ragged], vocabulary)
    layers = [0, last, "final"]
    found = {"many": m.encode_ids(ids, layers), "few": m.encode_ids(ids[:4], layers)}
    for i in range(3):  # seen, recorded, replayed
        found[f"pair {i}"] = m.encode_ids(ids[3:5], layers)
    for batch_tokens in (64, 130, 900):
        found[f"passes of {batch_tokens}"] = m.encode_ids(ids, layers, batch_tokens=batch_tokens)
    for pooling in ("last", "weighted", "max"):
        found[pooling] = m.encode_ids(ids, layers, pooling=pooling)
    state = m.state(ids[11])
    found |= {f"state {i}": part for i, part in enumerate(state)}
    found["after a state"] = m.encode_ids(ids[:20], layers, state=state)
    return found


def serve() -> None:
    """Answer requests on standard input, a JSON line each: open a model, digest, time."""
    from rwkvsts import RWKV6

    m: Any = None
    for line in sys.stdin:
        ask, answer = json.loads(line), {}
        if "open" in ask:
            m = None
            m = RWKV6.from_pretrained(
                ask["open"], device=DEVICE, dtype=ask["dtype"], tokenizer=None
            )
            answer = {"device": m.device, "memory": m.memory()}
        elif "digest" in ask:
            answer = {
                name: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()
                for name, a in embeddings(m).items()
            }
        elif "time" in ask:
            ids = ids_of(lengths_of(ask["time"]), 65530)
            m.encode_ids(ids, LAYERS)
            start = time.perf_counter()
            result = m.encode_ids(ids, LAYERS)
            answer = {"tokens/s": sum(map(len, ids)) / (time.perf_counter() - start)}
            answer["digest"] = hashlib.sha256(result.tobytes()).hexdigest()
            answer["peak"] = m.memory()["peak"]
        elif "pair" in ask:
            ids, times = ids_of([27, 27] * 100, 65530), []
            for i in range(0, len(ids), 2):
                start = time.perf_counter()
                m.encode_ids(ids[i : i + 2], LAYERS)
                times.append(time.perf_counter() - start)
            answer = {"ms": 1e3 * statistics.median(times)}
        print(json.dumps(answer), flush=True)


# ---- building and asking ----------------------------------------------------------------------


class Build:
    """A source tree, its build and its process."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.environment = {**os.environ, "PYTHONPATH": str(tree), "RWKVSTS_CUDA": "1"}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        self.log = tree / "build" / "turns.log"
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("w") as log:
            self.compiling = subprocess.Popen(
                command, cwd=tree, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def start(self) -> None:
        if self.compiling.wait(400):
            raise SystemExit(f"{self.tree} does not build:\n{self.log.read_text()[-3000:]}")
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--serve"],
            cwd=self.tree,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.tree} has ended: see above")
        return json.loads(line)


def ask_both(builds: list[Build], **request: object) -> list[dict[str, Any]]:
    """Side by side: for what is compared, not timed."""
    for build in builds:
        build.ask(**request)
    return [build.answer() for build in builds]


def archs_here() -> str:
    asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]


def models(folder: Path, tree: Path) -> dict[str, str]:
    """Name: file, of what is compared; the random ones are written here."""
    sys.path.insert(0, str(ROOT / "tests"))
    from makecheckpoint import write_safetensors
    from tinymodel import random_weights

    found = {"bundled": str(tree / "rwkvsts" / "assets" / "demo")}
    for name, sizes in SIZES.items():
        path = folder / f"{name}.safetensors"
        write_safetensors(path, random_weights(**sizes))
        found[name] = str(path)
    finch = dataclasses.replace(checkpoint.FINCH_1B6, L=12)
    checkpoint.write(folder / "finch.safetensors", finch)
    return {**found, FINCH: str(folder / "finch.safetensors")}


def compare(builds: list[Build], found: dict[str, str]) -> int:
    differing = 0
    for name, path in found.items():
        for dtype in DTYPES:
            ask_both(builds, open=path, dtype=dtype)
            before, now = ask_both(builds, digest=True)
            wrong = [key for key in before if before[key] != now[key]]
            differing += len(wrong)
            said = f"{', '.join(wrong)} DIFFER" if wrong else f"{len(before)} results equal"
            print(f"{name:34} {dtype:9} {said}", flush=True)
    return differing


def take_turns(builds: list[Build], path: str, turns: int) -> None:
    opened = ask_both(builds, open=path, dtype="bfloat16")
    print(f"{opened[1]['device']}, 12 blocks of Finch-1B6, bfloat16; median of {turns} turns")
    print(f"{'':14} {'before':>12} {'now':>12}   now/before")
    for workload in WORKLOADS:
        rates: list[list[float]] = [[], []]
        digests, peak = set(), [0, 0]
        for _ in range(turns):
            for i, build in enumerate(builds):
                build.ask(time=workload)
                answer = build.answer()
                rates[i].append(answer["tokens/s"])
                digests.add(answer["digest"])
                peak[i] = max(peak[i], answer["peak"])
        before, now = map(statistics.median, rates)
        same = "same bytes" if len(digests) == 1 else "BYTES DIFFER"
        memory = f"peak {peak[0] / 1e9:.3f}, {peak[1] / 1e9:.3f} GB"
        print(
            f"{workload:14} {before:12,.0f} {now:12,.0f}   {now / before:.3f}  tokens/s, {same}, "
            f"{memory}",
            flush=True,
        )
    times: list[list[float]] = [[], []]
    for _ in range(turns):
        for i, build in enumerate(builds):
            build.ask(pair=True)
            times[i].append(build.answer()["ms"])
    before, now = map(statistics.median, times)
    print(f"{'a pair':14} {before:12.3f} {now:12.3f}   {now / before:.3f}  ms")


def run_tests() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short"]
    command += [str(path) for path in sorted((ROOT / "tests").glob("test_cuda*.py"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print("\n".join(result.stdout.splitlines()[-25:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", nargs="?", type=Path, help="archive or folder of the other tree")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-compare", action="store_true", help="only turns")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    start = time.perf_counter()
    os.environ["RWKVSTS_CUDA_ARCHS"] = archs_here().replace(".", "")
    with tempfile.TemporaryDirectory() as name:
        folder, tree = Path(name), args.before
        if tree.is_file():
            with tarfile.open(args.before) as archive:
                archive.extractall(folder / "before", filter="data")
            tree = folder / "before"
        builds = [Build(tree), Build(ROOT)]
        found = models(folder, tree)
        for build in builds:
            build.start()
        print(f"built in {time.perf_counter() - start:.0f} s", flush=True)
        if not args.no_compare:
            print(f"{compare(builds, found)} results differ", flush=True)
        take_turns(builds, found[FINCH], args.turns)
        for build in builds:
            build.process.kill()
    if not args.no_tests:
        run_tests()
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
