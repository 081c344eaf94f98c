"""How fast RWKV-6 runs on this CPU, beside what the machine could do and what others reach.

    python bench/cpu.py [--sentences 64] [--rounds 3] [--sizes finch,small] [--threads N] [--peers]

Makes random checkpoints (bench/checkpoint.py), draws sentences with MRPC's lengths (2816 of them
are the whole task, about 76,000 World tokens), and prints tokens and pairs per second, GFLOP/s,
their share of the rate at which torch's matrix products run in the same shapes (oneDNN and MKL:
the machine's GEMM ceiling; needs torch), a single pair's latency and peak memory. Every
measurement has a process of its own, so that its peak memory is its own. --peers adds
llama-cpp-python and the rwkv package, as far as they are installed (bench/cpu_peers.py), and takes
turns with them.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import checkpoint
import cpu_peers
import numpy as np
from checkpoint import Size

import rwkvsts

SIZES = {"finch": checkpoint.FINCH_1B6, "small": checkpoint.SMALL}
DTYPES = ("bfloat16", "float32")
PAIRS = 7  # of which the median is a turn's figure
RATES = ("tokens/s", "median", "pairs/s", "GFLOP/s", "ceiling", "share")
REST = ("pair ms", "median", "RSS GiB", "load s")


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


def measure(
    path: Path, dtype: str, blocks: int, count: int, threads: int, rounds: int
) -> dict[str, Any]:
    """Tokens per second of `rounds` passes over the sentences, a pair's milliseconds, memory."""
    start = time.perf_counter()
    m = rwkvsts.RWKV6.from_pretrained(
        path, device="cpu", dtype=dtype, tokenizer=None, max_layer=blocks - 1, threads=threads
    )
    loaded = time.perf_counter() - start
    layers = [*range(1, 12, 2)] if blocks == 12 else [blocks - 1]  # the paper's; the last
    ids = sentences(count, m.config.n_vocab)
    tokens = sum(map(len, ids))
    few = sentences(2 * PAIRS, m.config.n_vocab)
    m.encode_ids(few[:2], layers)

    def seconds(some: list[list[int]]) -> float:
        start = time.perf_counter()
        m.encode_ids(some, layers, show_progress=False)
        return time.perf_counter() - start

    return {
        "device": m.device,
        "load": loaded,
        "tokens/s": [tokens / seconds(ids) for _ in range(rounds)],
        "pair": 1e3 * statistics.median(seconds(few[2 * i : 2 * i + 2]) for i in range(PAIRS)),
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


def line(*cells: str) -> None:
    widths = (45, 10, 14, 9, 9, 9, 8, 9, 12, 9, 6)
    print("".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=False)).rstrip())


@dataclass
class Turns:
    """All measurements of one size in one dtype; what is reported is the best of each kind.

    A program's own speed is what it reaches while nothing disturbs it, as in timeit: neighbours on
    a shared machine only ever take away. So short pieces take turns over the whole run, and
    everybody's best piece counts; medians stand beside it.
    """

    size: Size
    path: Path
    dtype: str
    count: int
    threads: int
    rounds: int
    ceiling: float = 0.0
    ours: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # by number of blocks

    def take(self) -> None:
        """One turn of ours: the products alone, the paper's 12 blocks, all blocks."""
        try:
            top = apart(ceiling, self.size, self.dtype, self.threads)
            print(f"    the products alone: {top / 1e9:.0f} GFLOP/s")
            self.ceiling = max(top, self.ceiling)
        except ImportError:
            pass
        for blocks in sorted({12, self.size.L}):
            how = (self.path, self.dtype, blocks, self.count, self.threads, self.rounds)
            turn = apart(measure, *how)
            self.ours.setdefault(blocks, []).append(turn)
            rates = " ".join(f"{rate:.1f}" for rate in turn["tokens/s"])
            print(f"    a turn, {blocks} blocks: {rates} tokens/s, a pair {turn['pair']:.0f} ms")

    def best(self) -> float:
        """Tokens per second over all blocks."""
        return max(max(turn["tokens/s"]) for turn in self.ours[self.size.L])

    def report(self) -> None:
        """A line for each number of blocks."""
        tokens = sum(map(len, sentences(self.count, self.size.V)))
        line("", *RATES, *REST)
        for blocks, turns in self.ours.items():
            rates = [rate for turn in turns for rate in turn["tokens/s"]]
            flops = max(rates) * blocks * self.size.flop
            line(
                f"rwkvsts {self.dtype}, {turns[0]['device'].split(',')[0]}, {blocks} blocks",
                f"{max(rates):.1f}",
                f"{statistics.median(rates):.1f} of {len(rates)}",
                f"{max(rates) * self.count / 2 / tokens:.2f}",
                f"{flops / 1e9:.0f}",
                f"{self.ceiling / 1e9:.0f}" if self.ceiling else "?",
                f"{100 * flops / self.ceiling:.0f} %" if self.ceiling else "?",
                f"{min(turn['pair'] for turn in turns):.0f}",
                f"{statistics.median(turn['pair'] for turn in turns):.0f} of {len(turns)}",
                f"{max(turn['rss'] for turn in turns):.2f}",
                f"{min(turn['load'] for turn in turns):.1f}",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="of a turn")
    parser.add_argument("--sizes", default="finch,small")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", action="store_true", help="also measure other programs")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "rwkvsts-bench"
    )
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.sizes.split(","):
        size = SIZES[name]
        path = args.folder / f"{name}.safetensors"
        checkpoint.write(path, size)
        for dtype in DTYPES:
            print(f"\n{size.name}, {dtype}, {args.threads} threads")
            turns = Turns(size, path, dtype, args.sentences, args.threads, args.rounds)
            turns.take()
            peers = cpu_peers.measure(turns) if args.peers else {}
            turns.report()
            cpu_peers.report(turns, peers)


if __name__ == "__main__":
    main()
