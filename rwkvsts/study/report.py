"""A study on paper: the table as text, Markdown, LaTeX and CSV.

Text, Markdown and LaTeX show what a reader compares; CSV holds every row and field. A reading of
more layers than fit a page is shown by its best one and its last, but on every step of the ladder
that a study of recipes climbs.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

from .experiment import Study
from .table import OVERLAP, Row, ties_with_best

HEADERS = (
    "method",
    "layer",
    "Spearman [95 %]",
    "paper",
    "AUC",
    "over overlap [95 %]",
    "against the best",
    "ms/pair",
    "batched",
    "MiB",
    "paper ms",
)
TERMINAL = 120  # characters; columns go until the table fits
SPARE = ("paper ms", "batched", "MiB", "AUC", "ms/pair")
MOST_LAYERS = 12  # of a reading, before only its best and its last are shown
SHORTENED = (
    f"Of a reading of more than {MOST_LAYERS} layers its best and its last are shown; every row is "
    "in table.csv."
)


def text(study: Study) -> str:
    """The table for a terminal, notes below."""
    notes = [textwrap.fill(f"- {note}", 110, subsequent_indent="  ") for note in study.notes]
    hidden: list[str] = []
    table = _tabulate(study, "simple")
    for column in SPARE:
        if max(map(len, table.splitlines())) <= TERMINAL:
            break
        hidden.append(column)
        table = _tabulate(study, "simple", hidden)
    if len(shown(study)) < len(study.rows):
        notes.append(f"- {SHORTENED}")
    return "\n".join([table, "", *notes])


def markdown(study: Study) -> str:
    """The table for a README or an issue."""
    machines = [", ".join(f"{k}: {v}" for k, v in _machine(r).items()) for r in study.runs]
    shortened = [SHORTENED] if len(shown(study)) < len(study.rows) else []
    notes = [f"- {note}" for note in [*shortened, *study.notes, *dict.fromkeys(machines)]]
    return "\n".join([_tabulate(study, "github"), "", *notes]) + "\n"


def latex(study: Study) -> str:
    r"""A tabular for `\usepackage{booktabs}`, the notes as comments above it."""
    notes = [f"% {note}" for note in study.notes]
    body = "\n".join([*notes, _tabulate(study, "latex_booktabs", ["paper ms", "batched", "MiB"])])
    # What pdflatex has no letter for would stop it: a prompt in another script, for one.
    return body.encode("latin-1", "replace").decode("latin-1") + "\n"


def csv(study: Study) -> str:
    """Every row and field."""
    table: str = study.frame().to_csv(index=False, lineterminator="\n")
    return table


def shown(study: Study) -> list[Row]:
    """The rows that a page has room for: of a long reading the best layer and the last.

    Where the ladder is shown, each step's layers are counted for themselves: a step whose rows all
    hid behind a better layer of a higher step would be missing.
    """
    by_step = _by_step(study)

    def part(row: Row) -> tuple[str, ...]:
        return row.task, row.split, row.method, row.step if by_step else ""

    layers: dict[tuple[str, ...], list[Row]] = {}
    for row in study.rows:
        layers.setdefault(part(row), []).append(row)
    return [
        row
        for row in study.rows
        if len(layers[part(row)]) <= MOST_LAYERS or row.best or row is layers[part(row)][-1]
    ]


def _by_step(study: Study) -> bool:
    """Whether the table shows the ladder: where a recipe was run, whose steps it tells apart."""
    return any(run["config"]["recipe"] for run in study.runs)


def _tabulate(study: Study, form: str, hidden: list[str] | None = None) -> str:
    from tabulate import tabulate

    by_step = _by_step(study)
    rows: list[list[str]] = []
    title: tuple[str, ...] = ()
    for row in _ordered(shown(study), by_step):
        if (row.task, row.split) != title[:2]:
            rows.append(_title(f"{row.task} {row.split}, n = {row.n}"))
        if by_step and row.step and (row.task, row.split, row.model, row.step) != title:
            rows.append(_title(f"{row.model}: {row.step}"))
        title = (row.task, row.split, row.model, row.step)
        rows.append(_cells(row))
    empty = [not any(row[i] for row in rows) for i in range(len(HEADERS))]
    kept = [i for i, name in enumerate(HEADERS) if not empty[i] and name not in (hidden or ())]
    if form == "github":  # a bar would end the cell, and tabulate leaves it
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    table: str = tabulate(
        [[row[i] for i in kept] for row in rows],
        [HEADERS[i] for i in kept],
        tablefmt=form,
        disable_numparse=True,
        colalign=["right" if i else "left" for i in kept],
    )
    return table


def _ordered(rows: list[Row], by_step: bool) -> list[Row]:
    """As they are; or, where the ladder is shown, each model's rows step by step."""
    if not by_step:
        return rows
    from .settings import STEPS

    splits = list(dict.fromkeys((row.task, row.split) for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))

    def place(row: Row) -> tuple[int, int, int]:
        step = STEPS.index(row.step) if row.step else -1
        return splits.index((row.task, row.split)), models.index(row.model), step

    return sorted(rows, key=place)


def _title(words: str) -> list[str]:
    return [words] + [""] * (len(HEADERS) - 1)


def _cells(row: Row) -> list[str]:
    """A row in the order of `HEADERS`; empty where there is no figure."""
    seconds = row.published_s_per_pair
    lead = "" if row.method == OVERLAP.label else "{:+.3f} [{:+.2f}, {:+.2f}]"
    return [
        row.method,
        "" if row.layer is None else str(row.layer),
        f"{row.spearman:.4f} [{row.low:.2f}, {row.high:.2f}]",
        _figure(row.published_spearman, ".4f"),
        _figure(row.auc, ".3f"),
        lead.format(row.over_overlap, row.over_overlap_low, row.over_overlap_high),
        _standing(row),
        _figure(row.ms_per_pair, ".3g"),
        _figure(row.ms_per_pair_batched, ".3g"),
        _figure(row.peak_mib, ".1f"),
        _figure(None if seconds is None else 1e3 * seconds, ".4g"),
    ]


def _standing(row: Row) -> str:
    """What the row beats, if it stands for its model; else how far behind that one it is."""
    star = "*" if row.chosen_on else ""
    if row.letter:
        beats = f" >{row.beats}" if row.beats else ""
        noise = f" ~{row.within_noise}" if row.within_noise else ""
        return f"{row.letter}{star}{beats}{noise}"
    if math.isnan(row.behind):
        return ""
    return f"{row.behind:+.3f}{star}{' ~' if ties_with_best(row) else ''}"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _machine(run: dict[str, Any]) -> dict[str, Any]:
    """The facts of a run in short, for a line of text."""
    facts = run["facts"]
    names = ("date", "cpu", "cores", "gpu", "os", "python", "numpy", "scipy", "rwkvsts")
    short = {name: facts[name] for name in names if facts.get(name)}
    for model in facts["models"]:
        words = ["model", model["source"], model["revision"], model["tokenizer"]]
        short[" ".join(filter(None, words))] = f"{model['dtype']} on {model['device']}"
    return short
