"""What a reader must know to read a table right, in sentences below it."""

from __future__ import annotations

from typing import Any

from . import published
from .table import SIGNIFICANT, Row


def of(rows: list[Row], runs: list[dict[str, Any]], resamples: int, seed: int) -> list[str]:
    """The notes of a table: how it was made, what its marks mean, what not to conclude."""
    return [
        *_statistics(rows, resamples, seed),
        *_choices(rows),
        *_costs(runs),
        *_word_vectors(rows, runs),
        *_posts(rows),
        *_paper(rows),
        *_marks(rows),
    ]


def _statistics(rows: list[Row], resamples: int, seed: int) -> list[str]:
    notes = [
        "Spearman with a 95 % percentile bootstrap interval over pairs "
        f"({resamples} resamples, seed {seed}); 'over overlap' is the lead over word overlap, "
        "paired on the same pairs.",
        "Compared: the best row of each model (and control) has a letter, '>' the letters that "
        "it beats, '~' those within noise; other rows show their distance from the best row of "
        f"their model, '~' within noise. Tests are paired, at {SIGNIFICANT:g} after Holm.",
    ]
    constant = sorted(
        {f"{r.method} on {r.task} {r.split}" for r in rows if r.spearman != r.spearman}
    )
    if constant:
        notes.append(
            f"nan: {', '.join(constant[:5])}{' and others' if constant[5:] else ''} scored all "
            "pairs alike, so nothing correlates."
        )
    tied = {(r.task, r.split): r.ceiling for r in rows if r.auc == r.auc and r.ceiling < 1}
    if tied:
        tops = ", ".join(f"{top:.3f} on {task} {split}" for (task, split), top in tied.items())
        notes.append(
            f"Labels are binary: scores without ties reach a Spearman of at most {tops}. AUC has "
            "no such ceiling: it is the chance that a pair of label 1 scores above one of label 0."
        )
    return notes


def _choices(rows: list[Row]) -> list[str]:
    chosen = {(r.task, r.split, r.chosen_on) for r in rows if r.chosen_on}
    notes = [
        f"{task} {split}: '*' marks the row of each reading that scored best on {source}, and the "
        "best row of a model did so of all its rows; the pairs above had no say in it."
        for task, split, source in sorted(chosen)
    ]
    free = sorted(
        {f"{r.task} {r.split}" for r in rows if r.pooling} - {f"{t} {s}" for t, s, _ in chosen}
    )
    if free:
        notes.append(
            f"{', '.join(free)}: without earlier pairs to choose on, the best row is the best of "
            "those shown on these same pairs, and flatters itself; all other rows were fixed "
            "beforehand."
        )
    return notes


def _costs(runs: list[dict[str, Any]]) -> list[str]:
    lengths = sorted({str(run["config"]["max_length"]) for run in runs})
    return [
        "ms a pair: median of one call per pair, this layer alone; batched: the whole split, each "
        "text once, for all layers of the reading. MiB: the method's own peak allocation. Texts "
        f"are cut to {' or '.join(lengths)} tokens."
    ]


def _word_vectors(rows: list[Row], runs: list[dict[str, Any]]) -> list[str]:
    notes = []
    for vectors in {tuple(run["facts"]["word_vectors"].items()): None for run in runs}:
        found = dict(vectors)
        notes.append(
            f"GloVe: average of word vectors, {found['rows']:,} rows of {found['dims']} numbers in "
            f"{found['source']}, which know {found['share']:.1%} of the texts' words; an unknown "
            "word is a zero vector; 'words split' cuts punctuation off and leaves those out, SIF "
            "and uSIF do likewise, with weights and directions from the task's train sentences."
        )
        whole = (found["rows"], found["dims"]) == (published.GLOVE_ROWS, 50)
        if not whole and any(r.task == "mrpc" for r in rows):
            notes.append(
                f"The paper's GloVe has {published.GLOVE_ROWS:,} rows of 50 numbers; these vectors "
                "are others, so its figures do not stand beside them."
            )
    return notes


def _posts(rows: list[Row]) -> list[str]:
    if all(row.post == "none" for row in rows):
        return []
    return [
        "Post-processing is fitted on sentences of the task's train split, without their labels; "
        "filter is fitted on no data: it drops the directions that the model's head favours; "
        "average and concatenate join the layers named, each at length 1."
    ]


def _paper(rows: list[Row]) -> list[str]:
    notes = []
    if any(row.published_spearman is not None for row in rows):
        notes.append(
            f"Paper: as published in {published.PAPER}. Its RWKV figures use the GPT-2 tokenizer "
            "on a model with another vocabulary, so they measure a scrambled input. Its 0.2186 s a "
            "pair for GloVe on validation is a mean of cumulative times (0.00106 s is meant), and "
            "its GPU memory for GloVe is that of the idle RWKV model (0 is meant)."
        )
    if any(row.tokenizer == "gpt2" for row in rows):
        notes.append("Tokenizer gpt2: the paper's mode, ids that mean other tokens to the model.")
    return notes


def _marks(rows: list[Row]) -> list[str]:
    """Figures that others published for other models on the same pairs."""
    notes = []
    for task, split in dict.fromkeys((row.task, row.split) for row in rows):
        marks = published.MARKS.get((task, split), ())
        listed = "; ".join(
            f"{m.method} {m.spearman:.4f} ({m.source}{', ' + m.caveat if m.caveat else ''})"
            for m in marks
        )
        if marks:
            notes.append(f"Published for other models on {task} {split}: {listed}.")
    return notes
