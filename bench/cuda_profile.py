"""Where the time of a call goes on a GPU: nanoseconds a token and block, kernel by kernel.

    python bench/cuda_profile.py [--model finch|0b1|0b4|1b5] [--texts mrpc,1024x128] [--top 20]

Finch-1B6's shape runs 12 blocks (layers 1, 3, ..., 11), RWKV-7's sizes all of theirs ("final");
weights are random, in bfloat16. For each kind of texts prints the rate of a call (best and median
of five), the time from the first kernel's start to the last one's end, and each kernel's share.
Needs PyTorch with CUDA, whose profiler sees the kernels of all libraries in the process.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections import Counter

import checkpoint
import cuda
import numpy as np
import rwkv7
import torch
from torch.profiler import ProfilerActivity, profile

from rwkvsts import RWKV
from rwkvsts.embedder import Layers

Kernel = tuple[str, float, int]  # name, microseconds of all its launches, launches


def open_model(name: str) -> tuple[RWKV, Layers, int]:
    """The model, the layers asked of it, and its number of blocks."""
    if name == "finch":
        made = cuda.make_model(dict(checkpoint.tensors(cuda.SIZE)), "bfloat16")
        return made, cuda.LAYERS, cuda.BLOCKS
    size = rwkv7.SIZES[name]
    return rwkv7.open_model(rwkv7.make_tensors(size), "cuda", "bfloat16", None), "final", size.L


def texts(kind: str) -> list[np.ndarray]:
    """Random ids: "mrpc" has the lengths of 2816 sentences of MRPC, "32x4096" 32 texts of 4096."""
    if kind == "mrpc":
        return cuda.sentences(2816)
    count, _, length = kind.partition("x")
    rng = np.random.default_rng(0)
    return [rng.integers(1, cuda.SIZE.V, int(length)).astype(np.int32) for _ in range(int(count))]


def rates(m: RWKV, ids: list[np.ndarray], layers: Layers) -> tuple[float, float]:
    """Tokens a second of the best and of the median call; the first two warm up."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        result = m.encode_ids(ids, layers, show_progress=False)
        times.append(time.perf_counter() - start)
        del result  # to give its memory back is not part of the call
    tokens = sum(map(len, ids))
    return tokens / min(times[2:]), tokens / statistics.median(times[2:])


def kernels(m: RWKV, ids: list[np.ndarray], layers: Layers) -> tuple[float, list[Kernel]]:
    """Microseconds from the first kernel to the last, and of each kernel with its launches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            m.encode_ids(ids, layers, show_progress=False)
            torch.cuda.synchronize()
        events = [e for e in seen.events() if e.device_type.name == "CUDA"]
    took: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in events:
        took[event.name] += event.time_range.end - event.time_range.start
        launches[event.name] += 1
    first = min(event.time_range.start for event in events)
    last = max(event.time_range.end for event in events)
    return last - first, [(name, each, launches[name]) for name, each in took.most_common()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=["finch", *rwkv7.SIZES], default="finch")
    parser.add_argument("--texts", default="mrpc,1024x128,32x4096,2x65536")
    parser.add_argument("--top", type=int, default=20, help="kernels shown")
    args = parser.parse_args()
    m, layers, blocks = open_model(args.model)
    for kind in args.texts.split(","):
        ids = texts(kind)
        best, median = rates(m, ids, layers)
        span, found = kernels(m, ids, layers)
        share = 1e3 / sum(map(len, ids)) / blocks  # nanoseconds a token and block of a microsecond
        print(f"{args.model}, {kind}: {best:,.0f} / {median:,.0f} tokens/s, best and median")
        busy = sum(each for _, each, _ in found)
        print(f"{span * share:8.1f} ns a token and block, kernels {busy * share:.1f}")
        for name, each, count in found[: args.top]:
            print(f"{each * share:8.2f} ns {count:6d} x {each / count:7.1f} us  {name[:70]}")


if __name__ == "__main__":
    main()
