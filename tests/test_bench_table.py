"""bench/table.py: README's table from files of results, no figure typed by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "bench" / "table.py"


def show(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TABLE), str(folder), "--print"]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_line_for_each_result_and_what_made_it(tmp_path: Path) -> None:
    facts = {"date": "2026-11-29T10:00:00+00:00", "cpu": "CPU", "rwkvsts": "1.0", "python": "3"}
    facts |= {"numpy": "2", "os": "Linux"}
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
    peer = {**row, "program": "llama.cpp F32", "device": "cpu", "tokens/s": [40.0]}
    gpu = {**row, "threads": None, "device": "A card", "tokens/s": [4e5], "pair ms": [1.08]}
    (tmp_path / "a.json").write_text(json.dumps({"facts": facts, "rows": [row, peer]}))
    (tmp_path / "b.json").write_text(json.dumps({"facts": facts, "rows": [gpu]}))
    found = show(tmp_path).stdout.splitlines()
    assert (
        "| 2 threads of CPU (amx), float32, 12 blocks | 1,100 / 1,000 | 60.2 / 62.5 ms | 1.50 GB |"
        in found
    )
    assert any(line.startswith("| llama.cpp F32: 2 threads of CPU") for line in found)
    assert "| A card, float32, 12 blocks | 400,000 | 1.08 ms | 1.50 GB |" in found
    assert "CPU: 2026-11-29, rwkvsts 1.0, Python 3, NumPy 2, Linux." in found
    assert any(line.startswith("A card: 2026-11-29") for line in found)


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    found = show(tmp_path)
    assert found.returncode == 2 and "run this without --print first" in found.stderr
