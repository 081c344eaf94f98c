"""Turns the scores of twins_train.py into the answer that TWINS.md declares: tables and plots.

    python tools/twins_answer.py RUN DATA ANSWER

Assumes RUN, the folder that twins_train.py left, and DATA with mrpc/, stsb/ and sick/ for labels.
Promises `answer.md` (every table), `layers.csv` (Spearman of every twin, seed, set, reading and
layer) and the plots of twins_plots.py. Layers and readings are chosen on development pairs alone.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import twins_plots
from numpy.typing import NDArray
from scipy.stats import rankdata, t
from twins_names import MIXERS, READINGS, SEEDS

from rwkvsts.data import datasets
from rwkvsts.study.baselines import word_overlap
from rwkvsts.study.statistics import Difference, Estimate, auc, estimates, holm

RESAMPLES = 2000
# What is reported, and the development pairs that choose its layer and reading.
TASKS = {
    "mrpc/test": ("mrpc/train",),
    "stsb/test": ("stsb/validation",),
    "sick-2014/test": ("sick-2014/validation",),
    "demo/all": ("mrpc/train", "stsb/validation", "sick-2014/validation"),
    "mrpc/validation": ("mrpc/train",),
}
CLAIMED = tuple(TASKS)[:4]  # a claim is made for these; MRPC validation is shown besides
NAMES = {
    "mrpc/test": "MRPC test",
    "stsb/test": "STS-B test",
    "sick-2014/test": "SICK-R test",
    "demo/all": "bundled pairs",
    "mrpc/validation": "MRPC validation",
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """A reading and a column of the scores: 0 is `input`, 1 to L the blocks, L + 1 `final`."""

    reading: int
    column: int

    def name(self, columns: int) -> str:
        """As the tables write it."""
        return f"{layer_name(self.column, columns)}, {READINGS[self.reading]}"


def layer_name(column: int, columns: int) -> str:
    """The layer of a column of the scores."""
    return {0: "input", columns - 1: "final"}.get(column, str(column - 1))


def rank_correlations(scores: Floats, label: Floats) -> Floats:
    """Spearman of each column of `scores` [n, ...] with `label` [n]."""
    x, y = rankdata(scores, axis=0), rankdata(label)
    x, y = x - x.mean(0), y - y.mean()
    return np.tensordot(y, x, 1) / np.sqrt((x**2).sum(0) * (y**2).sum())


class Scores:
    """Cosines and labels of a run, and the Spearman of all its settings."""

    def __init__(self, run: Path, data: Path) -> None:
        self.cosines: dict[tuple[str, int], dict[str, Floats]] = {}
        for kind in (*MIXERS, "untrained"):
            with np.load(run / f"scores_{kind}.npz") as file:
                for key in file:
                    seed, name = key.split("/", 1)
                    of_model = self.cosines.setdefault((kind, int(seed)), {})
                    of_model[name] = file[key].astype(np.float64)
        self.norms = {model: sets.pop("norms") for model, sets in self.cosines.items()}
        self.labels: dict[str, Floats] = {}
        self.overlap: dict[str, Floats] = {}
        for name in dict.fromkeys((*TASKS, *(dev for devs in TASKS.values() for dev in devs))):
            pairs = datasets.load(*name.split("/"), data=data)
            self.labels[name] = pairs.label
            self.overlap[name] = word_overlap(pairs.sentence1, pairs.sentence2)
        self.spearman = {  # [3, L + 2]
            (*model, name): rank_correlations(sets[name], label)
            for model, sets in self.cosines.items()
            for name, label in self.labels.items()
        }
        self.columns = next(iter(self.spearman.values())).shape[1]

    def over_seeds(self, mixer: str, name: str) -> Floats:
        """Spearman by seed, reading and column, [3, 3, L + 2]."""
        return np.array([self.spearman[mixer, seed, name] for seed in SEEDS])

    def choose(self, mixer: str, task: str, reading: int | None = None) -> Setting:
        """The best setting on the task's development pairs, of one reading if it is given."""
        mean = np.mean([self.over_seeds(mixer, dev) for dev in TASKS[task]], axis=(0, 1))
        mean[:, 0] = -np.inf  # `input` is a control
        if reading is not None:
            mean[np.arange(len(READINGS)) != reading] = -np.inf
        return Setting(*(int(i) for i in np.unravel_index(mean.argmax(), mean.shape)))

    def column(self, mixer: str, seed: int, task: str, setting: Setting) -> Floats:
        """Cosines of a task's pairs in one setting."""
        return self.cosines[mixer, seed][task][:, setting.reading, setting.column]


@dataclass(frozen=True)
class Side:
    """One twin in one setting on one task: by seed, and their mean with the mean's resamples."""

    setting: Setting
    by_seed: Floats
    mean: Estimate


def mean_estimate(parts: list[Estimate]) -> Estimate:
    """The mean of several models' estimates, resample by resample."""
    draws = np.mean([part.draws for part in parts], axis=0)
    return Estimate(float(np.mean([part.value for part in parts])), draws)


def sides(scores: Scores, task: str, settings: list[tuple[str, Setting]]) -> list[Side]:
    """Each twin in its setting, all on the same resamples of the task's pairs."""
    columns = [scores.column(m, seed, task, setting) for m, setting in settings for seed in SEEDS]
    found = estimates(columns, scores.labels[task], RESAMPLES)
    made = []
    for i, (_, setting) in enumerate(settings):
        parts = found[i * len(SEEDS) : (i + 1) * len(SEEDS)]
        made.append(Side(setting, np.array([p.value for p in parts]), mean_estimate(parts)))
    return made


def seed_interval(differences: Floats) -> tuple[float, float]:
    """95 % t-interval of the mean of a few differences, one a seed."""
    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return differences.mean() - half, differences.mean() + half


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float) -> str:
    return f"{value:.3f}"


def signed(difference: Difference) -> str:
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def by_seeds(side: Side) -> str:
    """The mean over seeds and their standard deviation."""
    return f"{side.mean.value:.3f} ± {side.by_seed.std(ddof=1):.3f}"


def comparison(scores: Scores, reading: int | None) -> str:
    """`rwkv` against `softmax`, each by its chosen setting; a verdict where none is held back."""
    found = []
    for task in TASKS:
        settings = [(mixer, scores.choose(mixer, task, reading)) for mixer in MIXERS]
        found.append((task, *sides(scores, task, settings)))
    p = [one.mean.minus(other.mean).p for task, one, other in found if task in CLAIMED]
    adjusted = dict(zip(CLAIMED, holm(p), strict=True))
    rows = []
    for task, one, other in found:
        each = one.by_seed - other.by_seed
        low, high = seed_interval(each)
        row = [NAMES[task], one.setting.name(scores.columns), by_seeds(one)]
        row += [other.setting.name(scores.columns), by_seeds(other)]
        row += [signed(one.mean.minus(other.mean)), ", ".join(f"{x:+.3f}" for x in each)]
        row += [f"{low:+.3f} to {high:+.3f}"]
        if reading is None:
            row += ["", ""]
            if task in CLAIMED:
                shown = adjusted[task] < 0.05 and low * high > 0
                leader = "rwkv" if each.mean() > 0 else "softmax"
                row[-2:] = [f"{adjusted[task]:.2g}", leader if shown else "not told apart"]
        rows.append(row)
    head = ["task", "rwkv: layer, reading", "Spearman", "softmax: layer, reading", "Spearman"]
    head += ["rwkv less softmax (95 % over pairs)", "by seed", "95 % over seeds"]
    return table(head + (["p (Holm)", "shown"] if reading is None else []), rows)


def controls(scores: Scores) -> str:
    """Each twin's chosen setting beside word overlap and averaged embeddings."""
    rows = []
    for task in TASKS:
        label = scores.labels[task]
        overlap, untrained = estimates(
            [scores.overlap[task], scores.cosines["untrained", SEEDS[0]][task][:, 0, 0]],
            label,
            RESAMPLES,
        )
        for mixer in MIXERS:
            chosen = scores.choose(mixer, task)
            settings = [(mixer, chosen), (mixer, Setting(READINGS.index("all"), 0))]
            one, plain = sides(scores, task, settings)
            row = [NAMES[task], mixer, by_seeds(one), number(overlap.value)]
            row += [signed(one.mean.minus(overlap)), by_seeds(plain)]
            row += [signed(one.mean.minus(plain.mean)), number(untrained.value)]
            columns = (scores.column(mixer, seed, task, chosen) for seed in SEEDS)
            area = np.mean([auc(column, label) for column in columns])
            rows.append([*row, "" if np.isnan(area) else number(float(area))])
    head = [
        "task",
        "twin",
        "chosen setting",
        "word overlap",
        "lead over it",
        "embeddings, averaged",
    ]
    return table([*head, "lead over them", "untrained", "AUC"], rows)


def language(run: Path) -> str:
    """Bits per byte of the held-out text, by twin and seed."""
    facts = json.loads((run / "run.json").read_text())
    rows = []
    for mixer in MIXERS:
        bits = {m["seed"]: m["bits_per_byte"] for m in facts["models"] if m["mixer"] == mixer}
        seconds = [m["train_seconds"] for m in facts["models"] if m["mixer"] == mixer]
        row = [mixer, str(facts["parameters"][mixer])]
        row += [f"{bits[seed]:.4f}" for seed in SEEDS]
        rows.append([*row, f"{np.mean(seconds):.0f}"])
    head = ["twin", "parameters", *(f"bits a byte, seed {seed}" for seed in SEEDS)]
    text = table([*head, "seconds of training, mean"], rows)
    return text + (
        f"\n{facts['steps']} steps, {facts['tokens'] / 1e6:.1f} million tokens "
        f"({facts['epochs']:.2f} readings of the text), PyTorch {facts['torch']}.\n"
    )


def write_layers(scores: Scores, path: Path) -> None:
    """Spearman of everything, a row a setting."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("twin", "seed", "set", "reading", "layer", "spearman"))
        for (mixer, seed, name), values in scores.spearman.items():
            for (reading, column), value in np.ndenumerate(values):
                layer = layer_name(column, scores.columns)
                writer.writerow((mixer, seed, name, READINGS[reading], layer, f"{value:.5f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("answer", type=Path)
    options = parser.parse_args()
    options.answer.mkdir(parents=True, exist_ok=True)
    scores = Scores(options.run, options.data)
    parts = ["# The twins\n", language(options.run), "## Chosen on development pairs\n"]
    parts += [comparison(scores, None), "## Against the controls\n", controls(scores)]
    for reading, name in enumerate(READINGS):
        parts += [f"## Reading `{name}` alone, layer chosen\n", comparison(scores, reading)]
    (options.answer / "answer.md").write_text("\n".join(parts))
    write_layers(scores, options.answer / "layers.csv")
    overlap = {
        name: float(rank_correlations(scores.overlap[name], label))
        for name, label in scores.labels.items()
    }
    panels = {NAMES[task]: task for task in CLAIMED}
    twins_plots.layers(scores, panels, overlap, options.answer / "twins_layers")
    twins_plots.norms(scores.norms, options.answer / "twins_norms")
    twins_plots.losses(options.run / "curves.csv", options.answer / "twins_loss")
    print((options.answer / "answer.md").read_text())


if __name__ == "__main__":
    main()
