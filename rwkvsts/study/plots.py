"""The layer plot: Spearman by layer with its interval, a panel per split, controls as lines.

Promises a PNG without a display and colours that the colour-blind can tell apart (Okabe-Ito),
with a marker or a dash besides.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from .experiment import Row, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#CC79A7", "^"))
CONTROL_STYLES = {
    "word overlap": ("#000000", "-"),
    "GloVe": ("#009E73", "--"),
    "GloVe, words split": ("#009E73", ":"),
}


def layers(study: Study, path: str | Path) -> None:
    """Draw the study's layers to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = list(dict.fromkeys(row.split for row in study.rows))
    figure = Figure(figsize=(2.2 + 4.2 * len(splits), 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for panel, split in zip(panels, splits, strict=True):
        _panel(panel, study, [row for row in study.rows if row.split == split])
    panels[0].set_ylabel("Spearman correlation")
    figure.suptitle(
        f"{Path(study.config.model).name} on {study.config.task}, with 95 % intervals over pairs"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, format="png")


def _panel(panel: Axes, study: Study, rows: list[Row]) -> None:
    names = [str(layer) for layer in study.config.layers]
    place = range(len(names))
    for control in (row for row in rows if row.layer is None):
        colour, dash = CONTROL_STYLES[control.method]
        panel.axhline(control.spearman, color=colour, linestyle=dash, label=control.method)
    tokenizers = study.config.tokenizers
    for i, tokenizer in enumerate(tokenizers):
        colour, marker = MODEL_STYLES[i % len(MODEL_STYLES)]
        series = [row for row in rows if row.tokenizer == tokenizer]
        # Side by side, so that the intervals of two tokenizers do not hide each other.
        x = [p + 0.12 * (i - (len(tokenizers) - 1) / 2) for p in place]
        rho = [row.spearman for row in series]
        panel.errorbar(
            x,
            rho,
            yerr=[
                [row.spearman - row.low for row in series],
                [row.high - row.spearman for row in series],
            ],
            color=colour,
            marker=marker,
            markersize=5,
            elinewidth=1,
            capsize=2,
            label=f"{series[0].method}, {tokenizer} tokenizer",
        )
        published = [row.published_spearman for row in series]
        if any(value is not None for value in published):
            panel.plot(
                # Beside the point that repeats it: where both agree, one would hide the other.
                [p - 0.12 for p in x],
                [math.nan if value is None else value for value in published],
                linestyle="none",
                marker="D",
                color="#555555",
                fillstyle="none",
                label=f"published (arXiv 2502.14620), {tokenizer}",
            )
    panel.set_xticks(list(place), names)
    panel.set_xlabel("layer (after block)")
    panel.set_title(f"{rows[0].split}, n = {rows[0].n}", fontsize="medium")
    panel.grid(axis="y", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
