"""How fast RWKV-6 runs on this CPU, beside what the machine could do and what others reach.

    python bench/cpu.py [--sentences 64] [--sizes finch,small] [--threads N] [--peers]

Makes random checkpoints (bench/checkpoint.py), draws sentences with MRPC's lengths (2816 of them
are the whole task, about 76,000 World tokens), and prints tokens and pairs per second, GFLOP/s,
their share of the rate at which torch's matrix products run in the same shapes (oneDNN and MKL:
the machine's GEMM ceiling; needs torch), a single pair's latency and peak memory. Every
measurement has a process of its own, so that its peak memory is its own. --peers adds
llama-cpp-python and the rwkv package, as far as they are installed (bench/cpu_peers.py).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import checkpoint
import numpy as np
from checkpoint import Size

import rwkvsts

SIZES = {"finch": checkpoint.FINCH_1B6, "small": checkpoint.SMALL}
DTYPES = ("bfloat16", "float32")
PAIR_REPEATS = 7


def sentences(count: int, vocabulary: int) -> list[list[int]]:
    """Random ids with the lengths of MRPC's sentences in World tokens: N(27, 8) in 6..70."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(27, 8, count).round().astype(int), 6, 70)
    return [rng.integers(1, vocabulary, n).tolist() for n in lengths]


def peak_rss() -> float:
    """GiB that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure(path: Path, dtype: str, blocks: int, count: int, threads: int) -> dict[str, Any]:
    """Tokens per second over `count` sentences, one pair's milliseconds, memory."""
    start = time.perf_counter()
    m = rwkvsts.RWKV6.from_pretrained(
        path, device="cpu", dtype=dtype, tokenizer=None, max_layer=blocks - 1, threads=threads
    )
    loaded = time.perf_counter() - start
    layers = [*range(1, 12, 2)] if blocks == 12 else [blocks - 1]  # the paper's; the last
    ids = sentences(count, m.config.n_vocab)
    m.encode_ids(ids[:2], layers)
    start = time.perf_counter()
    m.encode_ids(ids, layers, show_progress=False)
    took = time.perf_counter() - start
    pairs = []
    for i in range(PAIR_REPEATS):
        start = time.perf_counter()
        m.encode_ids(ids[2 * i : 2 * i + 2], layers)
        pairs.append(time.perf_counter() - start)
    return {
        "device": m.device,
        "load": loaded,
        "tokens/s": sum(map(len, ids)) / took,
        "pairs/s": count / 2 / took,
        "pair": 1e3 * statistics.median(pairs),
        "rss": peak_rss(),
    }


def ceiling(size: Size, dtype: str, threads: int, rows: int = 1024) -> float:
    """FLOP/s of torch's products in a block's shapes, weights from memory each time."""
    import torch

    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    shapes = [(size.C, size.C)] * 6 + [(size.F, size.C), (size.C, size.F)]
    sets = 1 + (200 << 20) // (2 * sum(n * k for n, k in shapes))
    weights = [[torch.randn(n, k).to(kind) for n, k in shapes] for _ in range(sets)]
    inputs = {k: torch.randn(rows, k).to(kind) for k in (size.C, size.F)}
    best = float("inf")
    with torch.inference_mode():
        for repeat in range(4):
            start = time.perf_counter()
            for w in weights[repeat % sets]:
                torch.nn.functional.linear(inputs[w.shape[1]], w)
            best = min(best, time.perf_counter() - start)
    return 2.0 * rows * sum(n * k for n, k in shapes) / best


def ceiling_or_none(size: Size, dtype: str, threads: int) -> float | None:
    try:
        return apart(ceiling, size, dtype, threads)
    except ImportError:
        return None


def line(*cells: str) -> None:
    widths = (34, 10, 9, 9, 9, 9, 9, 9, 9)
    print(
        "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), flush=True
    )


def report(size: Size, path: Path, blocks: int, count: int, threads: int) -> dict[str, float]:
    """One line for each dtype; tokens per second by dtype."""
    rates = {}
    for dtype in DTYPES:
        top = ceiling_or_none(size, dtype, threads)
        r = apart(measure, path, dtype, blocks, count, threads)
        flops = r["tokens/s"] * blocks * size.flop
        share = f"{100 * flops / top:.0f} %" if top else "?"
        limit = f"{top / 1e9:.0f}" if top else "?"
        line(
            f"rwkvsts {dtype}, {r['device'].split(',')[0]}",
            f"{r['tokens/s']:.1f}",
            f"{r['pairs/s']:.2f}",
            f"{flops / 1e9:.0f}",
            limit,
            share,
            f"{r['pair']:.0f}",
            f"{r['rss']:.2f}",
            f"{r['load']:.1f}",
        )
        rates[dtype] = r["tokens/s"]
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--sizes", default="finch,small")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", action="store_true", help="also measure other programs")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "rwkvsts-bench"
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.sizes.split(","):
        size = SIZES[name]
        path = args.folder / f"{name}.safetensors"
        checkpoint.write(path, size)
        for blocks in sorted({12, size.L}):
            print(f"\n{size.name}, {blocks} blocks, {args.threads} threads")
            line(
                "",
                "tokens/s",
                "pairs/s",
                "GFLOP/s",
                "ceiling",
                "share",
                "pair ms",
                "RSS GiB",
                "load s",
            )
            rates = report(size, path, blocks, args.sentences, args.threads)
        if args.peers:
            import cpu_peers

            cpu_peers.report(size, path, args.sentences, args.threads, rates)


if __name__ == "__main__":
    main()
