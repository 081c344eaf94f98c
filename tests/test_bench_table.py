"""bench/table.py: README's table from files of results, no figure typed by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "table.py"


def show(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TABLE), "--print", *options]
    return subprocess.run(command, capture_output=True, text=True)


def result(**more: Any) -> dict[str, Any]:
    row = {
        "program": "rwkvsts",
        "size": "Finch-1B6",
        "dtype": "float32",
        "blocks": 12,
        "threads": 2,
        "device": "cpu amx, 2 threads",
        "tokens/s": [900.0, 1100.0, 1000.0],
        "pair ms": [62.5, 60.25, 70.0],
        "peak bytes": 1.5e9,
    }
    return {**row, **more}


def test_a_line_for_each_result_and_what_made_it(tmp_path: Path) -> None:
    facts = {"date": "2026-11-29T10:00:00+00:00", "cpu": "CPU(R)", "rwkvsts": "1.0", "python": "3"}
    facts |= {"numpy": "2", "os": "Linux"}
    peer = result(program="llama.cpp F32", device="cpu", threads=1, **{"tokens/s": [40.0]})
    gpu = result(threads=None, device="A card", **{"tokens/s": [4e5], "pair ms": [1.084]})
    tight = result(threads=None, device="A card", **{"tokens/s": [3e5], "pair ms": []})
    other = {**facts, "date": "2026-11-24T10:00:00+00:00", "rwkvsts": None}
    (tmp_path / "a.json").write_text(json.dumps({"facts": facts, "rows": [result(), peer]}))
    (tmp_path / "b.json").write_text(json.dumps({"facts": other, "rows": [gpu, tight]}))
    found = show("--folder", str(tmp_path)).stdout.splitlines()
    pair = "60.2 / 62.5 ms"
    assert (
        f"| CPU (amx), 2 threads | rwkvsts | float32, 12 | 1,100 / 1,000 | {pair} | 1.50 GB |"
        in found
    )
    assert f"| CPU, 1 thread | llama.cpp F32 | float32, 12 | 40 | {pair} | 1.50 GB |" in found
    assert "| A card | rwkvsts | float32, 12 | 400,000 | 1.08 ms | 1.50 GB |" in found
    assert "| A card | rwkvsts | float32, 12 | 300,000 |  | 1.50 GB |" in found
    assert "- CPU, 2026-11-29: rwkvsts 1.0, Python 3, NumPy 2, Linux." in found
    assert "- A card, 2026-11-24: rwkvsts of a checkout, Python 3, NumPy 2, Linux." in found


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    found = show("--folder", str(tmp_path))
    assert found.returncode == 2 and "run this without --print first" in found.stderr


def test_readme_holds_what_is_printed() -> None:
    """To renew it: `python bench/table.py --print`, in the place of the lines that it printed."""
    assert show().stdout in (ROOT / "README.md").read_text()
