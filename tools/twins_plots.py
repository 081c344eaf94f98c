"""The plots of the twins: Spearman by layer, norms of the stream by position, loss by step.

Assumes what twins_answer.py has read. Promises each as PDF and PNG, one colour a twin everywhere
(Okabe-Ito, with dashes besides), legible in the width of a page.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from twins_answer import Scores

COLOURS = {"rwkv": "#0072B2", "softmax": "#D55E00"}
DASHES = {"all": "-", "skip_first": "--", "after_zero": ":"}
WIDTH = 7.0  # inches


def save(figure: Figure, path: Path) -> None:
    """`path` with .pdf and .png."""
    FigureCanvasAgg(figure)
    for suffix in (".pdf", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=200)


def tidy(panel: Axes) -> None:
    panel.tick_params(labelsize=7)
    panel.grid(axis="y", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def layers(
    scores: Scores, panels: dict[str, str], overlap: dict[str, float], path: Path
) -> None:  # fmt: skip
    """Spearman by layer, a panel a task: lines are means over seeds, bands their range."""
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for panel, (title, task) in zip(axes, panels.items(), strict=True):
        for mixer, colour in COLOURS.items():
            by_seed = scores.over_seeds(mixer, task)
            for reading, (name, dash) in enumerate(DASHES.items()):
                part = by_seed[:, reading]
                x = np.arange(part.shape[1])
                label = f"{mixer}, {name}"
                panel.plot(x, part.mean(0), color=colour, linestyle=dash, lw=1.2, label=label)
                panel.fill_between(x, part.min(0), part.max(0), color=colour, alpha=0.15, lw=0)
        panel.axhline(overlap[task], color="black", lw=0.8, label="word overlap")
        names = ["input", *(str(i) for i in range(scores.columns - 2)), "final"]
        panel.set_xticks(range(scores.columns), names)
        panel.tick_params(axis="x", rotation=60)
        panel.set_title(title, fontsize=9)
        tidy(panel)
    for panel in axes[::2]:
        panel.set_ylabel("Spearman", fontsize=8)
    for panel in axes[2:]:
        panel.set_xlabel("layer (after block)", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    save(figure, path)


def norms(found: dict[tuple[str, int], NDArray[np.float64]], path: Path) -> None:
    """Mean norm of the stream by position of a text read alone, a line a layer, mean over seeds."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, mixer in zip(axes, COLOURS, strict=True):
        mean = np.mean([value[0] for model, value in found.items() if model[0] == mixer], axis=0)
        blocks = mean[1:-1]
        for layer, row in enumerate(blocks):
            shade = 0.15 + 0.85 * layer / max(len(blocks) - 1, 1)
            label = f"after block {layer}" if layer in (0, len(blocks) - 1) else None
            panel.plot(row, color=COLOURS[mixer], alpha=shade, lw=1.2, label=label)
        panel.set_xticks(range(0, mean.shape[1], 3))
        panel.set_title(mixer, fontsize=9)
        panel.set_xlabel("position of the token", fontsize=8)
        panel.legend(fontsize=7, frameon=False)
        tidy(panel)
    axes[0].set_ylabel("norm of the stream", fontsize=8)
    save(figure, path)


def losses(curves: Path, path: Path) -> None:
    """Training loss (thin) and loss on a sample of the held-out text (dots) by step, every seed."""
    rows: dict[tuple[str, str, str], list[tuple[int, float]]] = defaultdict(list)
    with curves.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["mixer"], row["seed"], row["text"])
            rows[key].append((int(row["step"]), float(row["nats"])))
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    panel = figure.subplots()
    for (mixer, seed, text), points in rows.items():
        x, y = np.array(points).T
        look = {"lw": 0.5, "alpha": 0.6} if text == "training" else {"lw": 0, "marker": "."}
        label = f"{mixer}, {text}" if seed == "1" else None
        panel.plot(x, y, color=COLOURS[mixer], label=label, **look)
    panel.set_xlabel("step", fontsize=8)
    panel.set_ylabel("loss (nats a token)", fontsize=8)
    panel.legend(fontsize=7, frameon=False)
    tidy(panel)
    save(figure, path)
