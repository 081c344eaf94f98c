"""The table of README's "How fast": what was measured, on what, when, with which versions.

    python bench/table.py --print                  print README's table, of all machines
    python bench/table.py -- --peers --turns 3     measure this machine anew first

Measures with bench/cpu.py and, where a CUDA device can be used, bench/cuda.py; arguments behind
`--` go to the first, but --peers to both. Each leaves a file of results in bench/results, named
after the machine, so that the folder gathers machines. README holds what is printed, to the letter;
a test compares.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rwkvsts.study.machine import cpu_model, gpu_name

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
COLUMNS = ("on", "program", "dtype, blocks", "tokens/s", "a pair alone", "peak memory")
HEAD = (
    "Finch-1B6's shape, random weights, MRPC's sentence lengths, mean pooled; the paper needs\n"
    "12 of the 24 blocks. Best / median where there were several turns."
)


def measure(folder: Path, more: list[str]) -> None:
    """Run the benches of this machine; each writes its file."""
    folder.mkdir(parents=True, exist_ok=True)
    benches = [("cpu.py", cpu_model(), ["--sizes", "finch", *more])]
    gpu = gpu_name()
    if gpu:
        benches.append(("cuda.py", gpu, ["--peers"] if "--peers" in more else []))
    for bench, machine, options in benches:
        name = re.sub(r"\W+", "-", machine).strip("-").lower()
        command = [sys.executable, str(BENCH / bench), "--results", str(folder / f"{name}.json")]
        subprocess.run([*command, *options], check=True)


def three_digits(value: float) -> str:
    """As many decimals as three digits leave; thousands set apart."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def best_and_median(values: list[float], best: float, form: Callable[[float], str]) -> str:
    """Both; one figure where there is one."""
    median = form(statistics.median(values))
    return f"{form(best)} / {median}" if len(values) > 1 else median


def place(facts: dict[str, Any], row: dict[str, Any]) -> str:
    """What a row was measured on."""
    if not row["threads"]:
        return str(row["device"])
    cpu = facts["cpu"].replace("(R)", "").replace("(TM)", "")
    kernels = row["device"].removeprefix("cpu ").partition(",")[0]
    cpu += f" ({kernels})" if kernels != "cpu" else ""
    return f"{cpu}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"


def cells(facts: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    rates, pairs = row["tokens/s"], row["pair ms"]
    return [
        place(facts, row),
        row["program"],
        f"{row['dtype']}, {row['blocks']}",
        best_and_median(rates, max(rates), "{:,.0f}".format),
        best_and_median(pairs, min(pairs), three_digits) + " ms" if pairs else "",
        f"{row['peak bytes'] / 1e9:.2f} GB",
    ]


def lines(results: list[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown, then what each machine's figures were made with."""
    yield f"{HEAD}\n"
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" * len(COLUMNS) + "|"
    for result in results:
        for row in result["rows"]:
            yield "| " + " | ".join(cells(result["facts"], row)) + " |"
    yield ""
    for result in results:
        facts = result["facts"]
        name = result["rows"][0]["device"] if not result["rows"][0]["threads"] else facts["cpu"]
        name = name.replace("(R)", "").replace("(TM)", "")
        made = (
            f"rwkvsts {facts['rwkvsts'] or 'of a checkout'}, Python {facts['python']}, "
            f"NumPy {facts['numpy']}, {facts['os']}"
        )
        yield f"- {name}, {facts['date'][:10]}: {made}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=RESULTS, help="of files; default: %(default)s"
    )
    parser.add_argument("--print", action="store_true", help="measure nothing")
    parser.add_argument("more", nargs="*", help="for the benches, behind --")
    args = parser.parse_args()
    if not args.print:
        measure(args.folder, args.more)
    files = sorted(args.folder.glob("*.json"))
    if not files:
        parser.error(f"no results in {args.folder}: run this without --print first")
    for line in lines([json.loads(file.read_text()) for file in files]):
        print(line)


if __name__ == "__main__":
    main()
