"""How fast RWKV-6 runs on this GPU: Finch-1B6's shape, random weights made in memory, 12 blocks.

    python bench/cuda.py [--check] [--sweep] [--peers] [--dtype bfloat16] [--repeats 5]
                         [--results FILE]

Prints tokens per second end to end (ids in, NumPy rows of layers 1, 3, ..., 11 out), one pair's
latency, peak device memory, the same within 1.6 GB, and the share of the rate at which the block's
products alone would run at `--ceiling` tokens per second. --check compares every layer with the
float64 reference and the bits over random batchings; --sweep tries other numbers of tokens a pass;
--peers runs what else is installed on the same weights and sentences: see cuda_peers.py; --results
writes what bench/table.py reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import check
import checkpoint
import cuda_peers
import numpy as np

from rwkvsts import RWKV6, _core
from rwkvsts.device import cuda_facts, cuda_library, cuda_route, query_cuda
from rwkvsts.opening import Opened
from rwkvsts.study.machine import machine_facts

BLOCKS = 12
LAYERS = [*range(1, BLOCKS, 2)]
SIZE = dataclasses.replace(checkpoint.FINCH_1B6, L=BLOCKS)


def sentences(count: int, seed: int = 0) -> list[np.ndarray]:
    """Random ids with the lengths of MRPC's sentences."""
    rng = np.random.default_rng(seed)
    lengths = checkpoint.mrpc_lengths(rng, count)
    return [rng.integers(1, SIZE.V, n).astype(np.int32) for n in lengths]


def make_model(tensors: dict[str, np.ndarray], dtype: str, budget: int = 0) -> RWKV6:
    core = _core.Model(
        [(name, a.shape) for name, a in tensors.items()],
        dtype=dtype,
        cuda=True,
        library=cuda_library(),
        budget=budget,
    )
    for name, a in tensors.items():
        if core.wants(name):
            core.put(name, a, "bfloat16")
    core.seal()
    return RWKV6(Opened(core, None, dtype, BLOCKS, None))


def seconds(m: RWKV6, ids: list[np.ndarray], repeats: int, rows: int | None = None) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        result = m.encode_ids(ids, LAYERS, batch_tokens=rows, show_progress=False)
        times.append(time.perf_counter() - start)
        del result  # giving 138 MB back to the system takes 5 ms, and is not part of the call
    return statistics.median(times[1:])


def pair_seconds(m: RWKV6, ids: list[np.ndarray], pairs: int = 200) -> tuple[float, float]:
    """Median and 90th percentile of a call for two sentences, each pair another one."""
    for _warm_up in range(2):
        times = []
        for i in range(pairs):
            start = time.perf_counter()
            m.encode_ids(ids[2 * i : 2 * i + 2], LAYERS)
            times.append(time.perf_counter() - start)
    return statistics.median(times), statistics.quantiles(times, n=10)[-1]


def check_bits(m: RWKV6, ids: list[np.ndarray], repeats: int) -> None:
    """Embeddings over random batchings and repeats, compared as bytes."""
    rng = np.random.default_rng(0)
    right = m.encode_ids(ids, LAYERS)
    different = 0
    for batch_tokens in (60, 128, 300, 777, 1500, 3000, 5000, 12000, None):
        order = rng.permutation(len(ids))
        found = m.encode_ids([ids[i] for i in order], LAYERS, batch_tokens=batch_tokens)
        different += found.tobytes() != right[order].tobytes()
    for i in range(0, len(ids), 97):
        different += m.encode_ids([ids[i]], LAYERS)[0].tobytes() != right[i].tobytes()
    few = ids[:300]
    for _ in range(repeats):
        different += m.encode_ids(few, LAYERS).tobytes() != right[:300].tobytes()
    print(f"bits: {different} of {9 + len(range(0, len(ids), 97)) + repeats} runs differ")


def write_results(path: Path, dtype: str, rows: list[dict[str, Any]]) -> None:
    """What bench/table.py reads."""
    same = {"program": "rwkvsts", "size": SIZE.name, "dtype": dtype, "blocks": BLOCKS}
    same |= {"threads": None, "device": query_cuda().name, "pair ms": []}
    results = {"facts": machine_facts(), "rows": [{**same, **row} for row in rows]}
    path.write_text(json.dumps(results, indent=1) + "\n")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sentences", type=int, default=2816)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ceiling", type=float, default=565_000, help="of the products alone")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--results", type=Path, help="file to write, for bench/table.py")
    return parser.parse_args()


def main() -> None:
    args = options()
    tensors = dict(checkpoint.tensors(SIZE))
    ids = sentences(args.sentences)
    tokens = sum(map(len, ids))
    print(f"{query_cuda().name}, {args.dtype}, {BLOCKS} blocks; {len(ids)} texts, {tokens} tokens")
    start = time.perf_counter()
    m = make_model(tensors, args.dtype)
    print(f"opened in {time.perf_counter() - start:.2f} s")
    sizes = [SIZE.C, SIZE.C // SIZE.N, SIZE.N, SIZE.F, SIZE.R, SIZE.D]
    facts = cuda_facts()
    for step, kernel in cuda_route(facts, args.dtype, sizes, 64 * facts[3], 70).items():
        print(f"  {step}: {kernel}")
    rate = tokens / seconds(m, ids, args.repeats)
    print(f"{rate:,.0f} tokens/s, {100 * rate / args.ceiling:.0f} % of the products alone")
    print("memory:", {name: f"{size / 1e9:.3f} GB" for name, size in m.memory().items()})
    median, slow = pair_seconds(m, ids)
    own = {"tokens/s": [rate], "pair ms": [1e3 * median], "peak bytes": m.memory()["peak"]}
    print(f"a pair: {1e3 * median:.3f} ms, 90 % within {1e3 * slow:.3f} ms")
    if args.check:
        check_bits(m, ids, 100)
        check.against_float64(m, tensors, ids[:3])
    if args.sweep:
        for batch_tokens in (2112, 4224, 8448, 12672, 16896, 33792):
            swept = tokens / seconds(m, ids, 3, batch_tokens)
            print(f"{batch_tokens:6d} tokens a pass: {swept:,.0f} tokens/s")
    small = make_model(tensors, args.dtype, 1_600_000_000)
    within = tokens / seconds(small, ids, args.repeats)
    peak = small.memory()["peak"]
    print(f"within 1.6 GB: {within:,.0f} tokens/s, peak {peak / 1e9:.3f} GB")
    del small
    peers: list[dict[str, Any]] = []
    if args.peers:
        rows = m.encode_ids(ids, LAYERS), m.encode_ids(ids[: cuda_peers.SAMPLE], "final")
        ours = cuda_peers.Ours(lambda: seconds(m, ids, 1), tokens, median, *rows)
        cuda_peers.measure(tensors, SIZE, LAYERS, ids, ours)
        own["tokens/s"], peers = [rate, *ours.rates], ours.peers
    if args.results:
        small_row = {"program": "rwkvsts within 1.6 GB", "tokens/s": [within], "peak bytes": peak}
        write_results(args.results, args.dtype, [own, small_row, *peers])


if __name__ == "__main__":
    main()
