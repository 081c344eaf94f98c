"""Builds for a CPU against each other in turns: tokens per second of a team of threads.

    python bench/cpu_turns.py --threads 16 --dtype bfloat16 --rounds 5 OTHER [OTHER ...]

OTHER is another checkout, built in place as this one is. Each build has a process of its own, which
opens `cpu_scale.BLOCKS` blocks of Finch-1B6's shape once and waits for its turn. The first OTHER is
also measured as so many workers of one thread at the same time, which no team of its can pass.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
APART = "at once"


def work(threads: int, dtype: str) -> None:
    """Answer each line of stdin with a rate."""
    import cpu_scale

    model = cpu_scale.Scale(cpu_scale.small_checkpoint(), dtype, [threads], None)
    here = cpu_scale.processors()[:threads]
    print("ready", flush=True)
    for line in sys.stdin:
        crews = [[one] for one in here] if line.strip() == APART else [here]
        print(model.on(crews), flush=True)


def start(tree: Path, threads: int, dtype: str) -> subprocess.Popen[str]:
    """A worker with the build of a checkout; the bench is ours."""
    command = [sys.executable, __file__, "--work", "--threads", str(threads), "--dtype", dtype]
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(worker: subprocess.Popen[str], what: str) -> str:
    assert worker.stdin and worker.stdout
    if what:
        worker.stdin.write(what + "\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"a worker ended: {worker.args}")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("others", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.threads, args.dtype)
        return
    trees = [*args.others, HERE.parent]
    workers = [start(tree, args.threads, args.dtype) for tree in trees]
    for worker in workers:
        ask(worker, "")
    turns = [(workers[0], APART), *((worker, "team") for worker in workers)]
    rates: list[list[float]] = [[] for _ in turns]
    for _ in range(args.rounds):
        for turn, found in zip(turns, rates, strict=True):
            found.append(float(ask(*turn)))
    for name, found in zip([f"{trees[0]}, {APART}", *map(str, trees)], rates, strict=True):
        each = " ".join(f"{rate:.0f}" for rate in found)
        print(f"{name}: median {statistics.median(found):.0f}, best {max(found):.0f} of {each}")
    for worker in workers:
        worker.kill()


if __name__ == "__main__":
    main()
