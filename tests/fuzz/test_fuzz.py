"""A short run of every fuzzer, and each request of the core for memory refused once.

The long run is marked slow; `python tests/fuzz` runs for as long as you like.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import targets
from drive import run
from mutate import MUTATORS, mutated
from targets import TARGETS, Target

import rwkvsts

SHORT, LONG = 40, 5000


@pytest.mark.parametrize("target", TARGETS)
def test_short(target: str) -> None:
    cases, found = run(target, SHORT)
    assert (cases, "\n".join(map(str, found))) == (SHORT, "")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_long(target: str) -> None:
    cases, found = run(target, LONG, seed=1)
    assert (cases, "\n".join(map(str, found))) == (LONG, "")


def test_the_same_dice_give_the_same_file() -> None:
    seed = bytes(range(256)) * 20
    files = [mutated(seed, random.Random(i), [seed]) for i in range(300)]
    assert files == [mutated(seed, random.Random(i), [seed]) for i in range(300)]
    assert len(set(files)) > 290
    for mutator in MUTATORS:
        mutator(bytearray(), random.Random(1), [])  # an empty file has no place to change


BAD = {
    "raises": lambda dice, folder: 1 / 0,
    "says": lambda dice, folder: targets.refuses(KeyError, lambda: {}["x" * 5000]),
    "crashes": lambda dice, folder: __import__("ctypes").string_at(0),
    "takes memory": lambda dice, folder: bytearray(8 << 30),
    "waits": lambda dice, folder: time.sleep(60),
}


@pytest.mark.parametrize("case", BAD)
def test_the_driver_sees_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to go wrong is found, by its number, and the next cases still run."""

    def check(dice: random.Random, folder: object) -> None:
        if dice.random() < 0.2:
            BAD[case](dice, folder)

    monkeypatch.setitem(TARGETS, "bad", Target(check))  # type: ignore[arg-type]
    monkeypatch.setattr("drive.SECONDS", 1.0)
    bad = [i for i in range(12) if random.Random(f"bad 0 {i}").random() < 0.2]
    cases, found = run("bad", 12)
    assert cases == 12 and bad
    words = {
        "raises": "ZeroDivisionError",
        "says": "Finding: a message of",
        "crashes": "ended by SIGSEGV",
        "takes memory": "MemoryError",
        "waits": "still at it",
    }[case]
    assert [one.case for one in found] == bad
    assert all(words in one.what for one in found)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc",
    reason="refuses memory between the core and glibc",
)
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another library is preloaded already")
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="needs a C compiler")
def test_memory_and_threads_that_are_refused() -> None:
    """Each request of the core fails once: MemoryError, nothing left, the same bits afterwards."""
    root = str(Path(rwkvsts.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("faults.py")],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(line.split()[-3]) for line in done.stdout.splitlines()]
    assert len(counts) == 5 and min(counts) >= 5 and max(counts) >= 60
