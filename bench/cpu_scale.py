"""How tokens per second grow with threads, beside what the same processors reach apart.

Two yardsticks for n threads: n times what one processor reaches while the others rest, and what n
processors reach at the same time, each with a thread and a text of its own. The second is what this
host gives at all: hyperthreads that it calls cores, its power limit and its memory are in it.

One process, so that a number of threads costs one opening of the model: the weights of `BLOCKS`
blocks, which are far more than the caches hold. `BLOCKS` of them say what all would, sooner.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoint
import numpy as np
from checkpoint import Size

import rwkvsts
from rwkvsts.processors import threads_here

BLOCKS = 4
ALONE = 4  # processors measured one after the other, spread over those that are used
FOLDER = Path(tempfile.gettempdir()) / "rwkvsts-bench"  # of checkpoints, unless told otherwise
SECONDS = 1.0  # of one processor, about


def processors() -> list[int]:
    """Those of this process: one of each core, then the others of these cores."""
    first, rest = [], []
    for processor in sorted(os.sched_getaffinity(0)):
        more = threads_here(mask={*first, processor}) > len(first)
        (first if more else rest).append(processor)
    return first + rest


def texts(tokens: int, vocabulary: int) -> list[list[int]]:
    """Random ids with the lengths of MRPC's sentences, exactly so many: passes that are full."""
    from cpu import sentences

    ids = [id for one in sentences(tokens // 20 + 1, vocabulary) for id in one][:tokens]
    cuts, at = [], 0
    for one in sentences(tokens // 20 + 1, vocabulary):
        cuts.append(ids[at : at + len(one)])
        at += len(one)
    return [cut for cut in cuts if cut]


def small_checkpoint(size: Size = checkpoint.FINCH_1B6, folder: Path = FOLDER) -> Path:
    """A file with `BLOCKS` blocks of this size."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{size.name.lower()}-{BLOCKS}.safetensors".replace(" ", "")
    checkpoint.write(path, replace(size, L=BLOCKS))
    return path


class Scale:
    """One dtype's models by their number of threads, and what is measured with them."""

    def __init__(self, path: Path, dtype: str, threads: list[int], rows: int | None) -> None:
        self.models = {
            n: rwkvsts.RWKV6.from_pretrained(
                path, device="cpu", dtype=dtype, tokenizer=None, threads=n
            )
            for n in sorted({1, *threads})
        }
        self.rows = rows
        one = self.models[1]
        few = texts(1024, one.config.n_vocab)
        steps = SECONDS * self._rate(one, few, few) / 1024
        tokens = 1024 if steps < 1.5 else 2048 * round(steps / 2)  # whole passes
        self.ids = {n: texts(n * tokens, one.config.n_vocab) for n in self.models}

    def _rate(self, model: Any, warm: list[list[int]], ids: list[list[int]]) -> float:
        model.encode_ids(warm[:8], [BLOCKS - 1], batch_tokens=self.rows, show_progress=False)
        start = time.perf_counter()
        model.encode_ids(ids, [BLOCKS - 1], batch_tokens=self.rows, show_progress=False)
        return sum(map(len, ids)) / (time.perf_counter() - start)

    def on(self, crews: list[list[int]]) -> float:
        """Tokens per second of calls at the same time, each on its processors, a thread on each."""
        rates = [0.0] * len(crews)
        ready = threading.Barrier(len(crews))

        def call(i: int) -> None:
            os.sched_setaffinity(0, crews[i])  # of this thread; those that it starts inherit it
            n = len(crews[i])
            ids = self.ids[n]
            self._rate(self.models[n], ids, ids[:8])
            ready.wait()
            rates[i] = self._rate(self.models[n], ids, ids)

        calls = [threading.Thread(target=call, args=(i,)) for i in range(len(crews))]
        for one in calls:
            one.start()
        for one in calls:
            one.join()
        return sum(rates)


def scale(size: Size, folder: Path, dtype: str, threads: list[int], turns: int, rows: Any) -> None:
    """Print each number of threads beside both yardsticks: medians of the turns."""
    here = processors()
    numbers = [n for n in threads if n <= len(here)]
    path = small_checkpoint(size, folder)
    start = time.perf_counter()
    models = Scale(path, dtype, numbers, rows)
    spread = np.linspace(0, max(numbers) - 1, min(ALONE, max(numbers))).astype(int)
    alone: list[float] = []
    team: dict[int, list[float]] = {n: [] for n in numbers}
    apart: dict[int, list[float]] = {n: [] for n in numbers}
    print(
        f"{models.models[1].device}, {BLOCKS} blocks; opened in {time.perf_counter() - start:.1f} s"
    )
    for _ in range(turns):
        alone += [models.on([[here[i]]]) for i in spread]
        for n in numbers:
            team[n].append(models.on([here[:n]]))
            apart[n].append(models.on([[processor] for processor in here[:n]]))
    print(
        "one alone, by processor:",
        *(f"{here[i]}: {r:.0f}" for i, r in zip([*spread] * turns, alone, strict=True)),
    )
    print("threads  tokens/s  n x one alone  n at once  share of alone  share of at once")
    one = statistics.median(alone)
    for n in numbers:
        rate, most = statistics.median(team[n]), statistics.median(apart[n])
        print(
            f"{n:7d}  {rate:8.0f}  {n * one:13.0f}  {most:9.0f}  {100 * rate / (n * one):12.0f} %"
            f"  {100 * rate / most:14.0f} %"
        )
    skipped = [n for n in threads if n not in numbers]
    if skipped:
        print(f"left out: {skipped} threads, as this process may use {len(here)} processors")
    print(f"{time.perf_counter() - start:.0f} s in all")
