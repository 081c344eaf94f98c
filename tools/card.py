"""Measures the bundled model through the package and prints the tables of MODEL_CARD.md.

    python tools/card.py --data DATA --lm FOLDER --random FOLDER ... --normal FOLDER ... > tables.md

FOLDERs hold model.safetensors and a vocabulary, as assemble_demo.py writes them: the model after
language modelling alone, and random ones of the same shape. Mean pooling, cosine, Spearman; the
interval is a 95 % percentile bootstrap over pairs; the difference to random weights is paired on
the same resamples and is taken to the random model that scores highest on the task at that layer.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkvsts import RWKV6, baselines, datasets, evaluate

TASKS = (
    ("demo", "all"),
    ("mrpc", "train[:1000]"),
    ("mrpc", "validation"),
    ("stsb", "validation"),
    ("stsb", "test"),
    ("sick", "test"),
)
LAYERS = tuple(range(12))
VECTORS = "glove.demo.50d.txt.gz"
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """One model's cosines: scores[task][layer] is float64 [pairs]."""

    name: str
    scores: list[list[Scores]]

    def spearman(self, tasks: list[datasets.Pairs], task: int, layer: int) -> float:
        """Spearman at a layer; a model with one layer for all has it at every layer."""
        return evaluate.spearman(self.at(task, layer), tasks[task].label, resamples=1).value

    def at(self, task: int, layer: int) -> Scores:
        """Cosines of a task at a layer."""
        return self.scores[task][min(layer, len(self.scores[task]) - 1)]


def measure(name: str, source: str, tasks: list[datasets.Pairs], layers: tuple[int, ...]) -> Table:
    """Embed both sides of every task with one model."""
    model = RWKV6.from_pretrained(source, device="cpu", max_layer=max(layers))
    scores = []
    for pairs in tasks:
        first, second = (
            model.encode(side, layers=layers, show_progress=False)
            for side in (pairs.sentence1, pairs.sentence2)
        )
        scores.append([evaluate.cosine(first[:, i], second[:, i]) for i in range(len(layers))])
    return Table(name, scores)


def rows_of(table: Table, tasks: list[datasets.Pairs]) -> list[str]:
    """One Markdown row a layer."""
    rows = []
    for layer in range(max(len(scores) for scores in table.scores)):
        cells = [f"{table.spearman(tasks, task, layer):.3f}" for task in range(len(tasks))]
        rows.append(f"| {table.name}, layer {layer} | " + " | ".join(cells) + " |")
    return rows


def controls(tasks: list[datasets.Pairs]) -> list[str]:
    """Markdown rows of the bundled word vectors and of word overlap."""
    texts = [text for pairs in tasks for text in pairs.sentence1 + pairs.sentence2]
    vectors = baselines.load_vectors(datasets.asset(VECTORS), texts)
    cuts = {"as the paper cuts": baselines.space_words, "words split": baselines.split_words}
    methods = {
        f"GloVe, {name}": lambda pairs, cut=cut: evaluate.cosine(
            vectors.average(pairs.sentence1, cut), vectors.average(pairs.sentence2, cut)
        )
        for name, cut in cuts.items()
    }
    methods["word overlap"] = lambda p: baselines.word_overlap(p.sentence1, p.sentence2)
    rows = []
    for name, method in methods.items():
        values = [evaluate.spearman(method(p), p.label, resamples=1).value for p in tasks]
        rows.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return rows


def gains(trained: Table, random: list[Table], tasks: list[datasets.Pairs]) -> list[str]:
    """Markdown rows: at each layer the interval, and the paired gain over the best random model."""
    rows = []
    for layer in LAYERS:
        cells = []
        for task, pairs in enumerate(tasks):
            best = max(random, key=lambda table: table.spearman(tasks, task, layer))
            score = trained.at(task, layer)
            own = evaluate.spearman(score, pairs.label)
            gain = evaluate.spearman_difference(score, best.at(task, layer), pairs.label)
            paired = f"{gain.value:+.3f} ({gain.low:+.3f}..{gain.high:+.3f})"
            cells.append(f"{own.low:.3f}..{own.high:.3f}; {paired}")
        rows.append(f"| {layer} | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True)
    parser.add_argument("--random", type=Path, nargs="+", required=True)
    parser.add_argument("--normal", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    tasks = [datasets.load(name, split, data=options.data) for name, split in TASKS]
    head = "| | " + " | ".join(f"{p.name} {p.split} ({len(p)})" for p in tasks) + " |"
    line = "|---|" + "---|" * len(tasks)
    trained = measure("trained", "demo", tasks, LAYERS)
    table = [head, line, *rows_of(trained, tasks), *controls(tasks)]
    print("\n".join(table), end="\n\n", flush=True)
    # An untrained stream is the same after every block: its output projections start at zero.
    random = [
        measure(f"random {i}, any", str(f), tasks, (0,)) for i, f in enumerate(options.random, 1)
    ]
    normal = [
        measure(f"normal {i}", str(f), tasks, LAYERS) for i, f in enumerate(options.normal, 1)
    ]
    lm = measure("language model alone", str(options.lm), tasks, LAYERS)
    print("\n".join([head, line, *gains(trained, random + normal, tasks)]), end="\n\n")
    untrained = [row for table in random + normal for row in rows_of(table, tasks)]
    print("\n".join([head, line, *rows_of(lm, tasks), *untrained]))


if __name__ == "__main__":
    main()
