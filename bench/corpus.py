"""How much of the rate in memory a corpus job keeps, while it reads, tokenises and writes too.

    python bench/corpus.py [--size finch|small|demo] [--device cpu|cuda] [--texts 4096] [--turns 3]
                           [--batch-tokens N]

Embeds the same texts, of MRPC's lengths in tokens, by `encode` from a list and by a job from JSON
Lines into Parquet shards, in turns; the best of each counts, as in timeit. "job" is the time from
the checked input to the manifest, "with the check" includes the first reading of the input, whose
share falls as the model grows. The job's rows are compared with encode's to the bit. Where the
tokens of a pass are named, its passes are counted too: an H200's have 8448 unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint
import numpy as np
import pyarrow.parquet

import rwkvsts
from rwkvsts import corpus

SIZES = {"finch": checkpoint.FINCH_1B6, "small": checkpoint.SMALL}


def sentences(count: int) -> list[str]:
    """Texts whose bytes, which are the tokens here, are as many as MRPC's World tokens."""
    rng = np.random.default_rng(0)
    lengths = checkpoint.mrpc_lengths(rng, count)
    return ["".join(map(chr, rng.integers(97, 123, n))) for n in lengths]


def opened(size: str, device: str, layer: int, folder: Path) -> rwkvsts.RWKV:
    if size == "demo":
        return rwkvsts.load("demo", device=device, max_layer=layer)
    path = folder / f"{size}.safetensors"
    checkpoint.write(path, SIZES[size])
    return rwkvsts.load(path, device=device, tokenizer="bytes", max_layer=layer)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Counting:
    """A core that counts the passes of its runs, where their size is named."""

    def __init__(self, core: Any) -> None:
        self._core, self.passes = core, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def run(self, ids: Any, start: Any, *how: Any) -> Any:
        found, size = self._core.run(ids, start, *how), how[5]
        self.passes += -(-int(start[found[0]]) // size) if size else 0
        return found


def job(
    model: rwkvsts.RWKV, file: Path, out: Path, layer: int, batch_tokens: int | None
) -> tuple[float, float]:
    """Seconds of the check and of the job."""
    sources, columns = corpus.find([str(file)]), corpus.Columns("text", "id")
    start = time.perf_counter()
    found = corpus.survey(sources, columns, "error")
    checked = time.perf_counter() - start
    options = corpus.Options(layers=(layer,))
    return checked, seconds(lambda: corpus.to_folder(model, found, out, options, batch_tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=(*SIZES, "demo"), default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = opened(args.size, args.device, args.layer, folder)
        texts = sentences(args.texts)
        tokens = len(model.tokenizer.encode_many(texts)[0])
        rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
        (folder / "texts.jsonl").write_text("\n".join(rows))
        how = {"layers": args.layer, "batch_tokens": args.batch_tokens}
        model.encode(texts[:64], **how)
        model._core = counting = Counting(model._core)
        memory, whole, checked = [], [], []
        for turn in range(args.turns):
            counting.passes = 0
            memory.append(seconds(lambda: model.encode(texts, **how)))
            passes, counting.passes = counting.passes, 0
            out = folder / f"out{turn}"
            check, run = job(model, folder / "texts.jsonl", out, args.layer, args.batch_tokens)
            jobs = counting.passes
            checked.append(check + run)
            whole.append(run)
        column = pyarrow.parquet.read_table(folder / "out0").column(f"layer_{args.layer}")
        found = np.array(column.combine_chunks().flatten()).reshape(len(texts), -1)
        same = np.array_equal(found, model.encode(texts, **how))
    print(f"{args.size}, {model.device}, {model.dtype}: {len(texts)} texts, {tokens} tokens")
    if args.batch_tokens:
        full = tokens / args.batch_tokens
        print(f"passes: {passes} in memory, {jobs} of the job; {full:.1f} full ones")
    for name, times in (("in memory", memory), ("job", whole), ("with the check", checked)):
        share = min(memory) / min(times)
        print(f"{name:15} {tokens / min(times):10.0f} tokens/s {100 * share:6.1f} %")
    print("the job's rows are encode's to the bit" if same else "THE JOB'S ROWS DIFFER")


if __name__ == "__main__":
    main()
