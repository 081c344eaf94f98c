"""The plots of a study: layer curves, bars, similarity by label, time against score, norms.

Promises figures without a display, as wide as a page's text or its column with letters of 7 to 8
points, and one style a method in every plot: colours that the colour-blind can tell apart
(Okabe-Ito), with a marker and a dash besides.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .experiment import Study
from .methods import Scored
from .table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0  # inches: a column's width, and that of two
MOST_CURVES = 6  # in a panel, before only what was chosen is drawn
PUBLISHED = "#555555"
COLOURS = ("#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "^")
LETTERS: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "pdf.fonttype": 42,  # letters stay letters in a PDF
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Style(NamedTuple):
    """How a method is drawn, everywhere."""

    colour: str
    dash: str
    marker: str


CONTROLS = {
    "word overlap": Style("#000000", "-", "x"),
    "GloVe": Style("#009E73", "--", "+"),
    "GloVe, words split": Style("#009E73", ":", "d"),
    "GloVe, SIF": Style("#777777", "--", "1"),
    "GloVe, uSIF": Style("#777777", ":", "2"),
}


def draw(study: Study, name: str) -> Figure | None:
    """One of `PLOTS`; None where there is nothing to show."""
    with _letters():
        figure = PLOTS[name](study)
        if figure is not None:
            figure.draw_without_rendering()  # lays it out, while the letters are these
        return figure


def save(figure: Figure, path: Path, kind: str) -> None:
    """Write a figure as "pdf" or "png"."""
    # Without its date a file of the same figures has the same bytes.
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    with _letters():
        figure.savefig(path, format=kind, dpi=200, metadata=metadata)


def layers(study: Study) -> Figure | None:
    """Spearman by layer with its interval, a panel per split, controls as lines."""
    rows = _drawn(study.rows)
    splits = _splits([row for row in rows if row.layer is not None])
    if not splits:
        return None
    figure, panels = _panels(len(splits), 2.3)
    styles = _styles(study)
    for panel, split in zip(panels, splits, strict=True):
        here = [row for row in rows if (row.task, row.split) == split]
        _layer_panel(panel, here, styles)
        panel.set_title(f"{' '.join(split)}, n = {here[0].n}")
    _share_legend(figure, panels)
    return figure


def bars(study: Study) -> Figure | None:
    """Spearman of each control and of each reading's best layer, with its interval."""
    rows = [row for row in _drawn(study.rows) if row.best]
    splits = _splits(rows)
    styles = _styles(study)
    most = max(sum((r.task, r.split) == s for r in rows) for s in splits)
    lines = max(_bar_name(row).count("\n") + 1 for row in rows)
    figure, panels = _panels(len(splits), 0.5 + max(0.2, 0.15 * lines) * most, columns=1)
    for panel, split in zip(panels, splits, strict=True):
        here = [row for row in rows if (row.task, row.split) == split][::-1]
        names = [_bar_name(row) for row in here]
        rho = np.array([row.spearman for row in here])
        spread = [[r.spearman - r.low for r in here], [r.high - r.spearman for r in here]]
        colours = [styles[row.method].colour for row in here]
        panel.barh(names, rho, color=colours, alpha=0.8)
        panel.errorbar(rho, names, xerr=spread, fmt="none", ecolor="#333333", elinewidth=0.8)
        panel.axvline(0, color="#333333", linewidth=0.5)
        panel.set_title(" ".join(split))
        panel.set_xlabel("Spearman")
    return figure


def _bar_name(row: Row) -> str:
    """In lines that leave the bars half the width of a column."""
    name = row.method if row.layer is None else f"{row.method}, layer {row.layer}"
    return textwrap.fill(name, 28)


def similarity(study: Study) -> Figure | None:
    """The scores that each system's best method gives, by label, on each task's last split."""
    best = [
        (row, scored)
        for row, scored in zip(study.rows, study.scored, strict=True)
        if row.best == "system" and (row.task, row.split) in _last_splits(study.rows)
    ]
    figure, panels = _panels(len(best), 1.7, columns=3)
    styles = _styles(study)
    for panel, (row, scored) in zip(panels, best, strict=True):
        colour = styles[row.method].colour if row.method in styles else PUBLISHED
        names, groups = _by_label(scored)
        boxes: Any = panel.boxplot(
            groups, widths=0.6, patch_artist=True, flierprops={"markersize": 1, "alpha": 0.4}
        )
        for box in boxes["boxes"]:
            box.set(facecolor=colour, alpha=0.5)
        for median in boxes["medians"]:
            median.set(color="#000000")
        panel.set_xticks(range(1, len(names) + 1), names)
        place = "" if row.layer is None else f", layer {row.layer}"
        panel.set_title(f"{row.task} {row.split}\n{row.method}{place}", fontsize=7)
        panel.set_xlabel("label")
        panel.set_ylabel("similarity")
    return figure


def time(study: Study) -> Figure | None:
    """Spearman against the time for one pair alone, every layer a point."""
    last = _last_splits(study.rows)
    rows = [
        row
        for row in _drawn(study.rows)
        if row.ms_per_pair > 0 and (row.task, row.split) in last and not math.isnan(row.spearman)
    ]
    splits = _splits(rows)
    if all(row.layer is None for row in rows):  # controls alone were timed
        return None
    figure, panels = _panels(len(splits), 2.3)
    styles = _styles(study)
    for panel, split in zip(panels, splits, strict=True):
        here = [row for row in rows if (row.task, row.split) == split]
        for method in dict.fromkeys(row.method for row in here):
            series = [row for row in here if row.method == method]
            panel.plot(
                [row.ms_per_pair for row in series],
                [row.spearman for row in series],
                color=styles[method].colour,
                marker=styles[method].marker,
                linestyle=styles[method].dash,
                linewidth=0.6,
                markersize=3,
                label=method,
            )
        panel.set_xscale("log")
        panel.set_xlabel("ms a pair, one pair at a time")
        panel.set_ylabel("Spearman")
        panel.set_title(" ".join(split))
    _share_legend(figure, panels)
    return figure


def norms(study: Study) -> Figure | None:
    """The stream's mean length by layer, a curve per position in the text, a panel per model."""
    import matplotlib

    if not study.norms:
        return None
    figure, panels = _panels(len(study.norms), 2.3)
    colours = matplotlib.colormaps["viridis"]
    for panel, found in zip(panels, study.norms, strict=True):
        names = [str(layer) for layer in found["layers"]]
        for i, (position, row) in enumerate(zip(found["positions"], found["norms"], strict=True)):
            colour = colours(i / max(1, len(found["positions"]) - 1) * 0.9)
            marker = "o" if position == 1 else None
            name = f"token {position}"
            panel.plot(row, color=colour, marker=marker, markersize=3, linewidth=1, label=name)
        _layer_axis(panel, names)
        panel.set_yscale("log")
        panel.set_ylabel("mean length of the stream")
        tokenizer = f", {found['tokenizer']}" if found["tokenizer"] else ""
        panel.set_title(f"{found['model']}{tokenizer}")
    _share_legend(figure, panels)
    return figure


PLOTS: dict[str, Callable[[Study], Figure | None]] = {
    "layers": layers,
    "bars": bars,
    "similarity": similarity,
    "time": time,
    "norms": norms,
}


def _layer_panel(panel: Axes, rows: list[Row], styles: dict[str, Style]) -> None:
    for row in rows:
        if row.layer is None:
            style = styles[row.method]
            panel.axhline(
                row.spearman,
                color=style.colour,
                linestyle=style.dash,
                linewidth=0.9,
                label=row.method,
            )
    names = [str(x) for x in dict.fromkeys(row.layer for row in rows) if x is not None]
    names.sort(key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0))
    for method in dict.fromkeys(row.method for row in rows if row.layer is not None):
        series = [row for row in rows if row.method == method]
        series.sort(key=lambda row: names.index(str(row.layer)))
        x = [names.index(str(row.layer)) for row in series]
        style = styles[method]
        panel.plot(
            x,
            [row.spearman for row in series],
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            markersize=3,
            linewidth=1,
            label=method,
        )
        low, high = [row.low for row in series], [row.high for row in series]
        panel.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0)
        printed = [row.published_spearman for row in series]
        if any(value is not None for value in printed):
            values = [math.nan if value is None else value for value in printed]
            source = next(row.published_source for row in series if row.published_source)
            label = f"published ({source}): {method}"
            panel.plot(x, values, "D", color=PUBLISHED, fillstyle="none", markersize=4, label=label)
    _layer_axis(panel, names)
    panel.set_ylabel("Spearman")
    panel.grid(axis="y", alpha=0.3, linewidth=0.5)


def _layer_axis(panel: Axes, names: list[str]) -> None:
    """Layers by name; where they are many, some of the numbers and "final"."""
    step = max(1, math.ceil(len(names) / 10))
    ticks = [i for i, name in enumerate(names) if i % step == 0 and name != "final"]
    if "final" in names:
        last = names.index("final")
        ticks = [i for i in ticks if last - i >= step] + [last]
    panel.set_xticks(ticks, [_tick(names[i]) for i in ticks])
    panel.set_xlabel("layer (after block)")


def _tick(name: str) -> str:
    """A layer's name, no wider than beside its neighbours: layers joined stand two a line.

    >>> print(_tick("1+3+5+7"))
    1+3
    +5+7
    """
    parts = name.split("+")
    if len(parts) > 6:
        parts = [*parts[:4], "...", parts[-1]]
    pairs = ("+".join(parts[i : i + 2]) for i in range(0, len(parts), 2))
    return "\n+".join(pairs)


def _drawn(rows: list[Row]) -> list[Row]:
    """The rows to draw: of many readings those that stand for a model somewhere, and the plain."""
    methods = list(dict.fromkeys(row.method for row in rows if row.pooling))
    if len(methods) <= MOST_CURVES:
        return rows
    standing = {row.method for row in rows if row.best == "system" or not row.pooling}
    plain = {
        next(row.method for row in rows if (row.model, row.tokenizer) == system and row.pooling)
        for system in dict.fromkeys((row.model, row.tokenizer) for row in rows if row.pooling)
    }
    return [row for row in rows if row.method in standing | plain]


def _styles(study: Study) -> dict[str, Style]:
    """A style for each method that is drawn, the same in every plot of the study."""
    methods = dict.fromkeys(row.method for row in _drawn(study.rows) if row.pooling)
    looks = [Style(c, d, m) for (d, m), c in product(zip(DASHES, MARKERS, strict=True), COLOURS)]
    styles = {method: looks[i % len(looks)] for i, method in enumerate(methods)}
    others = dict.fromkeys(row.method for row in study.rows if not row.pooling)
    return {**{name: CONTROLS.get(name, Style(PUBLISHED, "-.", "*")) for name in others}, **styles}


def _splits(rows: list[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.task, row.split) for row in rows))


def _last_splits(rows: list[Row]) -> list[tuple[str, str]]:
    """The split of each task that comes last: the one that is reported."""
    return list({task: (task, split) for task, split in _splits(rows)}.values())


def _by_label(scored: Scored) -> tuple[list[str], list[Any]]:
    """Scores by label, graded labels in five bins of equal width: names and groups, none empty."""
    label = scored.pairs.label
    values = np.unique(label)
    if len(values) <= 6:
        return [f"{value:g}" for value in values], [scored.scores[label == v] for v in values]
    edges = np.linspace(values[0], values[-1], 6)
    bins = np.clip(np.searchsorted(edges, label, "right") - 1, 0, 4)
    used = [i for i in range(5) if (bins == i).any()]
    names = [f"{edges[i]:.2g}-{edges[i + 1]:.2g}" for i in used]
    return names, [scored.scores[bins == i] for i in used]


def _panels(count: int, height: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, a column wide for one and as wide as the page for more."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = math.ceil(count / across)
    width = COLUMN if across == 1 else PAGE
    figure = Figure(figsize=(width, height * down + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _share_legend(figure: Figure, panels: list[Axes]) -> None:
    """One legend below all panels, each method once."""
    entries: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    wide = figure.get_figwidth() > COLUMN
    longest = max(map(len, entries))
    columns = max(1, min(3, int((105 if wide else 50) / (longest + 8))))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False
    )


@contextmanager
def _letters() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(LETTERS):
        yield
