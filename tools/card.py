"""Measures a model through the package and prints the tables of MODEL_CARD.md.

    python tools/card.py --data DATA [--model demo] > tables.md

Mean pooling, cosine, Spearman, on a CPU. The comparison with random weights is declared here before
a model's scores on the tasks are known, and the card gives the reasons. Tasks: the bundled pairs;
of MRPC all that takes part in no choice, 3133 pairs (the 408 of validation alone leave a paired
difference uncertain by 0.06); STS-B test; SICK test. BESIDE are printed below them. Random models:
the same shape, every weight matrix at PyTorch's default (`assemble_demo.random_model`), seeds
SEEDS; beside them the same with idle blocks, whose stream is the embedding at every layer. The
layer: highest mean Spearman over the development pairs, before any random model is scored; the
random models are scored at the same layer. Won: against every seed the 95 % interval of the paired
difference lies above zero. Strictly won: every random score lies under the model's own 95 %
interval.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from assemble_demo import write_random
from numpy.typing import NDArray
from prepare_demo import DEVELOPMENT

from rwkvsts import RWKV6
from rwkvsts.data import datasets
from rwkvsts.study import baselines, statistics

SEEDS = (101, 102, 103, 104, 105)
RESAMPLES = 10_000
TASKS = (
    ("demo", "all"),
    ("mrpc", "train[:1000] + validation + test"),
    ("stsb", "test"),
    ("sick", "test"),
)
BESIDE = (
    ("mrpc", "train[:1000]"),
    ("mrpc", "validation"),
    ("mrpc", "test"),
    ("stsb", "validation"),
)
LAYERS = tuple(range(12))
VECTORS = "glove.demo.50d.txt.gz"
VOCABULARY = "demo/rwkv_vocab_demo.txt"
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """One model's cosines: scores[task][layer] is float64 [pairs]."""

    name: str
    scores: list[list[Scores]]

    def spearman(self, tasks: list[datasets.Pairs], task: int, layer: int) -> float:
        """Spearman at a layer; a model with one layer for all has it at every layer."""
        return statistics.spearman(self.at(task, layer), tasks[task].label, resamples=1).value

    def at(self, task: int, layer: int) -> Scores:
        """Cosines of a task at a layer."""
        return self.scores[task][min(layer, len(self.scores[task]) - 1)]


def load(name: str, splits: str, data: Path) -> datasets.Pairs:
    """One set of pairs; splits joined by " + " are joined."""
    parts = [datasets.load(name, split, data=data) for split in splits.split(" + ")]
    first = [text for part in parts for text in part.sentence1]
    second = [text for part in parts for text in part.sentence2]
    return datasets.Pairs(name, splits, first, second, np.concatenate([p.label for p in parts]))


def measure(name: str, source: str, tasks: list[datasets.Pairs], layers: tuple[int, ...]) -> Table:
    """Embed both sides of every task with one model."""
    model = RWKV6.from_pretrained(source, device="cpu", max_layer=max(layers))
    scores = []
    for pairs in tasks:
        first, second = (
            model.encode(side, layers=layers, show_progress=False)
            for side in (pairs.sentence1, pairs.sentence2)
        )
        scores.append([statistics.cosine(first[:, i], second[:, i]) for i in range(len(layers))])
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
        f"GloVe, {name}": lambda pairs, cut=cut: statistics.cosine(
            vectors.average(pairs.sentence1, cut), vectors.average(pairs.sentence2, cut)
        )
        for name, cut in cuts.items()
    }
    methods["word overlap"] = lambda p: baselines.word_overlap(p.sentence1, p.sentence2)
    rows = []
    for name, method in methods.items():
        values = [statistics.spearman(method(p), p.label, resamples=1).value for p in tasks]
        rows.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return rows


def chosen_layer(trained: Table, development: list[datasets.Pairs]) -> int:
    """The layer with the highest mean Spearman over the development sets."""

    def mean(layer: int) -> float:
        values = [trained.spearman(development, i, layer) for i in range(len(development))]
        return float(np.mean(values))

    return max(LAYERS, key=mean)


def comparison(
    trained: Table, random: list[Table], tasks: list[datasets.Pairs], layer: int
) -> list[str]:
    """Markdown rows, one a task: the model against every random model at one layer."""
    rows = []
    for task, pairs in enumerate(tasks):
        if task == len(TASKS):
            rows.append("| *beside the tasks* | | | | | |")
        score = trained.at(task, layer)
        own = statistics.spearman(score, pairs.label, RESAMPLES)
        scores = [table.spearman(tasks, task, layer) for table in random]
        gains = [
            statistics.spearman_difference(score, table.at(task, layer), pairs.label, RESAMPLES)
            for table in random
        ]
        least = min(gains, key=lambda gain: gain.low)
        won = sum(gain.low > 0 for gain in gains)
        strictly = sum(value < own.low for value in scores)
        rows.append(
            f"| {pairs.name} {pairs.split} | {own.value:.3f} ({own.low:.3f}..{own.high:.3f}) "
            f"| {min(scores):.3f}..{max(scores):.3f} "
            f"| {least.value:+.3f} ({least.low:+.3f}..{least.high:+.3f}) "
            f"| {won} of {len(random)} | {strictly} of {len(random)} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="demo", help="a folder, or the bundled one")
    options = parser.parse_args()
    development = [load(*names, options.data) for names in DEVELOPMENT]
    tasks = [load(*names, options.data) for names in TASKS + BESIDE]

    def head(sets: list[datasets.Pairs]) -> None:
        print("| | " + " | ".join(f"{p.name} {p.split} ({len(p)})" for p in sets) + " |")
        print("|---|" + "---|" * len(sets))

    chosen_by = measure("development", options.model, development, LAYERS)
    head(development)
    print("\n".join(rows_of(chosen_by, development)))
    layer = chosen_layer(chosen_by, development)
    print(f"\nlayer {layer}\n", flush=True)
    trained = measure("trained", options.model, tasks, LAYERS)
    head(tasks)
    print("\n".join([*rows_of(trained, tasks), *controls(tasks)]), end="\n\n", flush=True)
    for idle in (False, True):
        random = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                write_random(seed, idle, datasets.asset(VOCABULARY), Path(folder))
                name = f"{'idle' if idle else 'random'} {seed}"
                random.append(measure(name, folder, tasks, (0,) if idle else (layer,)))
        print(f"{'idle' if idle else 'all twelve blocks random'}, layer {layer}\n")
        print("| | trained | random, 5 seeds | least gain | won | strictly won |")
        print("|---|---|---|---|---|---|")
        print("\n".join(comparison(trained, random, tasks, layer)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
