"""Runs cases of a target in child processes, and survives what they do.

Promises a report of every case that raised, crashed, took too long or too much memory, by its
number, with which it can be run again.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from targets import TARGETS

BATCH = 200  # cases of a child: starting one takes longer than most cases
SECONDS = 20.0  # of a case; none needs one
MEMORY = 4 << 30  # bytes of address space beside what the child begins with


@dataclass(frozen=True)
class Found:
    """A case that found something."""

    target: str
    seed: int
    case: int
    what: str

    def __str__(self) -> str:
        again = f"python tests/fuzz {self.target!r} --seed {self.seed} --case {self.case}"
        return f"{self.target}, case {self.case}: {self.what}\n  again: {again}"


def run_case(target: str, seed: int, case: int) -> None:
    """One case, in this process; raises what it finds."""
    dice = random.Random(f"{target} {seed} {case}")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        TARGETS[target].check(dice, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(
    target: str, count: int, seed: int = 0, until: float = float("inf")
) -> tuple[int, list[Found]]:
    """Cases 0 .. count-1, fewer if the clock passes `until`; how many ran, and what was found."""
    found: list[Found] = []
    case = 0
    while case < count and time.monotonic() < until:
        last = min(case + BATCH, count)
        case, what = _batch(target, seed, case, last)
        if what is not None:
            found.append(Found(target, seed, case, what))
            case += 1
    return case, found


def _batch(target: str, seed: int, first: int, last: int) -> tuple[int, str | None]:
    """Run cases in a child; the case it came to, and what it found there."""
    shared = mmap.mmap(-1, 8 + (1 << 16))  # the case under way, then a text
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _work(target, seed, first, last, shared)
    watched, since = first, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        case = int.from_bytes(shared[:8], "little")
        if ended:
            break
        if case != watched:
            watched, since = case, time.monotonic()
        elif time.monotonic() - since > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return case, f"still at it after {SECONDS:g} s"
        time.sleep(0.002)
    text = bytes(shared[8:]).rstrip(b"\0").decode(errors="replace")
    if os.WIFSIGNALED(status):
        return case, f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return case, text or None


def _work(target: str, seed: int, first: int, last: int, shared: mmap.mmap) -> NoReturn:
    faulthandler.enable()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for case in range(first, last):
            shared[:8] = case.to_bytes(8, "little")
            run_case(target, seed, case)
        shared[:8] = last.to_bytes(8, "little")
    except BaseException as error:
        lines = traceback.format_exception(error, limit=-3, chain=False)  # the innermost calls
        text = "".join(lines).encode(errors="replace")[:2000]
        shared[8 : 8 + len(text)] = text
    os._exit(0)
