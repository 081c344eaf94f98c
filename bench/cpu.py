"""How fast RWKV-6 runs on this CPU, beside what the machine could do and what others reach.

    python bench/cpu.py [--sentences 64] [--turns 3] [--sizes finch,small] [--threads N]
                        [--dtypes bfloat16,float32] [--rows N] [--peers] [--check]
                        [--results FILE]
    python bench/cpu.py --threads 1,2,4,8,16 [--sizes finch] [--dtypes bfloat16,float32]
                        [--turns 3] [--rows N]

Makes random checkpoints (bench/checkpoint.py), draws sentences with MRPC's lengths (2816 of them
are the whole task, about 76,000 World tokens), and prints tokens and pairs per second, GFLOP/s,
their share of the rate at which torch's matrix products run in the same shapes (oneDNN and MKL:
the machine's GEMM ceiling; needs torch), a single pair's latency and peak memory. Every
measurement has a process of its own, so that its peak memory is its own. --peers adds
llama-cpp-python and the rwkv package, as far as they are installed (bench/cpu_peers.py); --check
compares every layer with the float64 reference; --results writes what bench/table.py reads.

With several numbers of threads it measures how they scale instead (bench/cpu_scale.py).

What a program can do shows while nothing disturbs it, as in timeit: neighbours on a shared machine
only ever take away. So everything is measured once a turn, in --turns turns, and the best of each
counts; the medians stand beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import check
import checkpoint
import cpu_peers
import cpu_scale
import numpy as np
from checkpoint import Size

import rwkvsts
from rwkvsts.processors import threads_here
from rwkvsts.study.machine import machine_facts, version

SIZES = {"finch": checkpoint.FINCH_1B6, "small": checkpoint.SMALL}
DTYPES = "bfloat16,float32"
PAIRS = 7  # whose median is a turn's figure
RATES = ("tokens/s", "median", "pairs/s", "GFLOP/s", "ceiling", "share")
REST = ("pair ms", "median", "RSS GiB")


def sentences(count: int, vocabulary: int) -> list[list[int]]:
    """Random ids with the lengths of MRPC's sentences."""
    rng = np.random.default_rng(0)
    lengths = checkpoint.mrpc_lengths(rng, count)
    return [rng.integers(1, vocabulary, n).tolist() for n in lengths]


def peak_rss() -> float:
    """GiB that this process ever held. (getrusage's counts what its parent held before exec.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure(
    path: Path, dtype: str, blocks: int, count: int, threads: int, rows: int | None = None
) -> dict[str, Any]:
    """Tokens per second over `count` sentences, one pair's milliseconds, memory."""
    start = time.perf_counter()
    m = rwkvsts.RWKV6.from_pretrained(
        path, device="cpu", dtype=dtype, tokenizer=None, max_layer=blocks - 1, threads=threads
    )
    loaded = time.perf_counter() - start
    layers = [*range(1, 12, 2)] if blocks == 12 else [blocks - 1]  # the paper's; the last
    ids = sentences(count, m.config.n_vocab)
    few = sentences(2 * PAIRS, m.config.n_vocab)
    m.encode_ids(few[:2], layers)

    def seconds(some: list[list[int]]) -> float:
        start = time.perf_counter()
        m.encode_ids(some, layers, batch_tokens=rows, show_progress=False)
        return time.perf_counter() - start

    return {
        "device": m.device,
        "load": loaded,
        "tokens/s": sum(map(len, ids)) / seconds(ids),
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


def compare(size: Size, path: Path, dtype: str, threads: int) -> None:
    """Every layer against float64, three sentences."""
    m = rwkvsts.RWKV6.from_pretrained(
        path, device="cpu", dtype=dtype, tokenizer=None, threads=threads
    )
    ids = [np.array(one) for one in sentences(3, size.V)]
    check.against_float64(m, dict(checkpoint.tensors(size)), ids)


def line(*cells: str) -> None:
    widths = (31, 10, 9, 9, 9, 9, 8, 9, 8, 9, 40)
    print("".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=False)).rstrip())


@dataclass
class Program:
    """One row of the table: `run` measures it once."""

    name: str
    blocks: int
    run: Callable[[], dict[str, Any]]  # tokens/s, pair, rss; ours also device, load
    peer: bool = False
    package: str | None = None  # whose version is told
    results: list[dict[str, Any]] = field(default_factory=list)

    def all(self, what: str) -> list[float]:
        return [result[what] for result in self.results if what in result]


def ours(
    size: Size, path: Path, dtype: str, count: int, threads: int, rows: int | None
) -> list[Program]:
    """The 12 blocks that the paper's layers need, and all of them."""
    return [
        Program(
            f"rwkvsts {dtype}, {blocks} blocks",
            blocks,
            partial(apart, measure, path, dtype, blocks, count, threads, rows),
        )
        for blocks in sorted({12, size.L})
    ]


def take_turns(
    programs: list[Program], size: Size, dtype: str, threads: int, turns: int
) -> float | None:
    """Measure every program `turns` times in turn; the best rate of the products alone, FLOP/s."""
    tops, running = [], list(programs)
    for _ in range(turns):
        with suppress(ImportError):
            tops.append(apart(ceiling, size, dtype, threads))
            print(f"    the products alone: {tops[-1] / 1e9:.0f} GFLOP/s")
        for program in list(running):
            try:
                result = program.run()
            except (ImportError, RuntimeError) as error:
                if not program.peer:
                    raise
                print(f"{program.name}: left out, {error}")
                running.remove(program)
                continue
            program.results.append(result)
            print(
                f"    {program.name}: {result['tokens/s']:.1f} tokens/s, "
                f"a pair {result['pair']:.0f} ms"
            )
    return max(tops, default=None)


def report(programs: list[Program], size: Size, top: float | None, count: int) -> None:
    """A line for each program."""
    tokens = sum(map(len, sentences(count, size.V)))
    own = next(program for program in reversed(programs) if not program.peer).all("tokens/s")
    line("", *RATES, *REST)
    for program in programs:
        if not program.results:
            continue
        rates, pairs = program.all("tokens/s"), program.all("pair")
        best, median = max(rates), statistics.median(rates)
        flops = best * program.blocks * size.flop
        cells = [f"{best:.1f}", f"{median:.1f}", f"{best * count / 2 / tokens:.2f}"]
        cells += [f"{flops / 1e9:.0f}"]
        cells += [f"{top / 1e9:.0f}", f"{100 * flops / top:.0f} %"] if top else ["?", "?"]
        cells += [f"{min(pairs):.0f}", f"{statistics.median(pairs):.0f}"]
        cells += [f"{max(program.all('rss')):.2f}"]
        if program.peer:
            cells += [f"we {max(own) / best:.1f}x, median {statistics.median(own) / median:.1f}x"]
        else:
            cells += [f"load {min(program.all('load')):.1f} s, {program.results[0]['device']}"]
        line(program.name, *cells)


def title(program: Program) -> str:
    """Name and version of a peer, without the blocks."""
    name = program.name.removesuffix(f", {program.blocks} blocks")
    return f"{name} ({program.package} {version(program.package)})" if program.package else name


def rows_of_table(
    programs: list[Program], size: Size, dtype: str, threads: int
) -> list[dict[str, Any]]:
    """What bench/table.py prints of each program."""
    return [
        {
            "program": "rwkvsts" if not program.peer else title(program),
            "size": size.name,
            "dtype": dtype,
            "blocks": program.blocks,
            "threads": threads,
            "device": program.results[0].get("device", "cpu"),
            "tokens/s": program.all("tokens/s"),
            "pair ms": program.all("pair"),
            "peak bytes": max(program.all("rss")) * 2**30,
        }
        for program in programs
        if program.results
    ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", default="finch,small")
    parser.add_argument("--dtypes", default=DTYPES)
    parser.add_argument(
        "--threads",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[threads_here()],
        help="several, as in 1,2,4: how they scale",
    )
    parser.add_argument("--rows", type=int, help="tokens of a pass; default: the device's choice")
    parser.add_argument("--results", type=Path, help="file to write, for bench/table.py")
    parser.add_argument("--peers", action="store_true", help="also measure other programs")
    parser.add_argument("--check", action="store_true", help="also compare with float64")
    parser.add_argument("--folder", type=Path, default=cpu_scale.FOLDER)
    return parser.parse_args()


def main() -> None:
    args = options()
    sys.stdout.reconfigure(line_buffering=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for name in args.sizes.split(","):
        size = SIZES[name]
        if len(args.threads) > 1:
            for dtype in args.dtypes.split(","):
                print(f"\n{size.name}, {dtype}")
                cpu_scale.scale(size, args.folder, dtype, args.threads, args.turns, args.rows)
            continue
        path = args.folder / f"{name}.safetensors"
        checkpoint.write(path, size)
        for dtype in args.dtypes.split(","):
            print(f"\n{size.name}, {dtype}, {args.threads[0]} threads, {args.sentences} sentences")
            results += compare_programs(args, size, path, dtype)
    if args.results:
        args.results.write_text(
            json.dumps({"facts": machine_facts(), "rows": results}, indent=1) + "\n"
        )


def compare_programs(
    args: argparse.Namespace, size: Size, path: Path, dtype: str
) -> list[dict[str, Any]]:
    """Measure and print ours and, if asked for, others; rows for bench/table.py."""
    threads = args.threads[0]
    what = (size, path, dtype, args.sentences, threads)
    programs = ours(*what, args.rows)
    if args.peers:
        programs += cpu_peers.programs(*what)
    top = take_turns(programs, size, dtype, threads, args.turns)
    report(programs, size, top, args.sentences)
    if args.peers:
        cpu_peers.compare(programs, *what)
    if args.check:
        apart(compare, size, path, dtype, threads)
    return rows_of_table(programs, size, dtype, threads)


if __name__ == "__main__":
    main()
