"""A study on paper: the table as text, Markdown, LaTeX, CSV and JSON.

Text, Markdown and LaTeX show what a reader compares; CSV and JSON hold every field, JSON the
machine and the settings as well. Promises that a file under its final name is whole.
"""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files.writing import replacing
from .experiment import Row, Study

HEADERS = (
    "method",
    "layer",
    "Spearman [95 %]",
    "paper",
    "AUC",
    "over overlap [95 %]",
    "ms/pair",
    "batched",
    "MiB",
    "paper ms",
)
# Without its last column the table fits 120 characters.
TERMINAL_COLUMNS = len(HEADERS) - 1


def text(study: Study) -> str:
    """The table for a terminal, notes below."""
    notes = [textwrap.fill(f"- {note}", 110, subsequent_indent="  ") for note in study.notes]
    return "\n".join([_tabulate(study, "simple", TERMINAL_COLUMNS), "", *notes])


def markdown(study: Study) -> str:
    """The table for a README or an issue."""
    machine = ", ".join(f"{name}: {value}" for name, value in _machine(study).items())
    notes = [f"- {note}" for note in [*study.notes, machine]]
    return "\n".join([_tabulate(study, "github"), "", *notes]) + "\n"


def latex(study: Study) -> str:
    """A `booktabs` tabular, the notes as comments above it."""
    notes = [f"% {note}" for note in study.notes]
    return "\n".join([*notes, _tabulate(study, "latex_booktabs")]) + "\n"


def to_json(study: Study) -> str:
    """Everything: facts of the run, settings, notes, rows. A figure that does not exist is null."""
    content = {
        "facts": study.facts,
        "config": asdict(study.config),
        "notes": study.notes,
        "rows": [asdict(row) for row in study.rows],
    }
    return json.dumps(_without_nan(content), indent=2, allow_nan=False, default=str) + "\n"


def write(study: Study, folder: str | Path) -> list[Path]:
    """Write study.csv, .json, .md, .tex and .png into `folder`, making it; returns the paths."""
    from . import plots

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "study.csv": study.frame().to_csv(index=False),
        "study.json": to_json(study),
        "study.md": markdown(study),
        "study.tex": latex(study),
    }
    for name, content in contents.items():
        with replacing(folder / name) as part:
            part.write_text(content, "utf-8")
    with replacing(folder / "study.png") as part:
        plots.layers(study, part)
    return [folder / name for name in [*contents, "study.png"]]


def _tabulate(study: Study, form: str, columns: int = len(HEADERS)) -> str:
    from tabulate import tabulate

    rows: list[list[str]] = []
    split = None
    for row in study.rows:
        if row.split != split:
            split = row.split
            rows.append([f"{split}, n = {row.n}"] + [""] * (len(HEADERS) - 1))
        rows.append(_cells(row))
    shown = [i for i in range(columns) if any(row[i] for row in rows)]
    if form == "github":  # a bar would end the cell, and tabulate leaves it
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    table: str = tabulate(
        [[row[i] for i in shown] for row in rows],
        [HEADERS[i] for i in shown],
        tablefmt=form,
        disable_numparse=True,
        colalign=["right" if i else "left" for i in shown],
    )
    return table


def _cells(row: Row) -> list[str]:
    """A row in the order of `HEADERS`; empty where there is no figure."""
    seconds = row.published_s_per_pair
    lead = "" if row.method == "word overlap" else "{:+.3f} [{:+.2f}, {:+.2f}]"
    return [
        f"{row.method}, {row.tokenizer}" if row.tokenizer else row.method,
        "" if row.layer is None else str(row.layer),
        f"{row.spearman:.4f} [{row.low:.2f}, {row.high:.2f}]",
        _figure(row.published_spearman, ".4f"),
        _figure(row.auc, ".3f"),
        lead.format(row.over_overlap, row.over_overlap_low, row.over_overlap_high),
        _figure(row.ms_per_pair, ".3g"),
        _figure(row.ms_per_pair_batched, ".3g"),
        _figure(row.peak_mib, ".1f"),
        _figure(None if seconds is None else 1e3 * seconds, ".4g"),
    ]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _machine(study: Study) -> dict[str, Any]:
    """The facts of the run in short, for a line of text."""
    facts = study.facts
    names = ("date", "cpu", "cores", "gpu", "os", "python", "numpy", "scipy", "rwkvsts")
    short = {name: facts[name] for name in names if facts.get(name)}
    for model in facts["models"]:
        revision = f" {model['revision']}" if model["revision"] else ""
        short[f"model ({model['tokenizer']})"] = (
            f"{model['source']}{revision} {model['dtype']} on {model['device']}"
        )
    return short


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
