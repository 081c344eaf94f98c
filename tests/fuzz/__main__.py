"""Damaged files, odd batches and abusive calls, as many as there is time for.

    python tests/fuzz                         2000 cases of each target
    python tests/fuzz torch --count 100000    of one target
    python tests/fuzz --minutes 60 --seed 3   other cases, for an hour
    python tests/fuzz torch --case 17         one case again, in this process

Prints how many cases each target ran and the first of what was found; the status is then 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from drive import run, run_case  # noqa: E402
from targets import TARGETS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--count", type=int, default=2000, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0, help="other cases for another number")
    parser.add_argument("--minutes", type=float, help="stop after so many, shared by the targets")
    parser.add_argument("--case", type=int, help="run one case in this process")
    args = parser.parse_args()
    names = args.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if args.case is not None:
        run_case(names[0], args.seed, args.case)
        return 0
    status = 0
    for name in names:
        start = time.monotonic()
        share = float("inf") if args.minutes is None else start + 60 * args.minutes / len(names)
        count = 10**9 if args.minutes is not None else args.count
        cases, found = run(name, count, args.seed, share)
        seconds = time.monotonic() - start
        print(f"{name:15} {cases:8} cases {len(found):4} found {seconds:7.1f} s", flush=True)
        for one in found[:20]:
            print(one, flush=True)
        status |= bool(found)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
