"""The table of README's "How fast": what was measured, on what, when, with which versions.

    python bench/table.py FOLDER                measure this machine into FOLDER, print all of it
    python bench/table.py FOLDER --print        print what FOLDER holds already

Measures with bench/cpu.py and, where a CUDA device can be used, bench/cuda.py; arguments behind
`--` go to the first, as in `-- --peers --turns 5`. Each leaves a file of results in FOLDER, named
after the machine, so that the folder gathers machines: copy their files together and print.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkvsts.study.machine import cpu_model, gpu_name

BENCH = Path(__file__).resolve().parent
COLUMNS = ("", "tokens/s", "a pair alone", "peak memory")
HEAD = (
    "Finch-1B6's shape, random weights, MRPC's sentence lengths, mean pooled; best / median of all"
)


def measure(folder: Path, more: list[str]) -> None:
    """Run the benches of this machine; each writes its file."""
    folder.mkdir(parents=True, exist_ok=True)
    benches = [("cpu.py", cpu_model(), ["--sizes", "finch", *more])]
    gpu = gpu_name()
    if gpu:
        benches.append(("cuda.py", gpu, []))
    for bench, machine, options in benches:
        name = re.sub(r"\W+", "-", machine).strip("-").lower()
        command = [sys.executable, str(BENCH / bench), "--results", str(folder / f"{name}.json")]
        subprocess.run([*command, *options], check=True)


def best_and_median(values: list[float], best: float, form: str) -> str:
    """Both; one figure where there is one."""
    median = statistics.median(values)
    return f"{best:{form}} / {median:{form}}" if len(values) > 1 else f"{median:{form}}"


def cells(facts: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    on = row["device"]
    if row["threads"]:
        on = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''} of {facts['cpu']}"
        if row["device"].startswith("cpu "):
            on += f" ({row['device'].removeprefix('cpu ').partition(',')[0]})"
    program = "" if row["program"] == "rwkvsts" else f"{row['program']}: "
    rates, pairs = row["tokens/s"], row["pair ms"]
    return [
        f"{program}{on}, {row['dtype']}, {row['blocks']} blocks",
        best_and_median(rates, max(rates), ",.0f"),
        best_and_median(pairs, min(pairs), ".3g") + " ms",
        f"{row['peak bytes'] / 1e9:.2f} GB",
    ]


def lines(results: list[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown, then what each machine's figures were made with."""
    yield f"{HEAD} turns:\n"
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" * len(COLUMNS) + "|"
    for result in results:
        for row in result["rows"]:
            yield "| " + " | ".join(cells(result["facts"], row)) + " |"
    yield ""
    for result in results:
        facts = result["facts"]
        name = result["rows"][0]["device"] if not result["rows"][0]["threads"] else facts["cpu"]
        yield (
            f"{name}: {facts['date'][:10]}, rwkvsts {facts['rwkvsts'] or 'of a checkout'}, "
            f"Python {facts['python']}, NumPy {facts['numpy']}, {facts['os']}."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--print", action="store_true", help="measure nothing")
    parser.add_argument("more", nargs="*", help="for bench/cpu.py, behind --")
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
