"""What 8-bit products cost in accuracy on the bundled model.

    python bench/int8.py [--texts 16]                  the choice: scales a row, groups, turning
    python bench/int8.py --data ../shared/data [--pairs 2000]    the gate: dtype="int8" as it runs

The first compares ways of quantising, in float64 by the equations of tests/reference.py
(tests/quantised.py), on the bundled pairs: the lowest cosine to exact products over all layers,
mean-pooled. Beside the model as it is stand two that are the same function with outlying inputs:
some columns of the norms are scaled up, and the weights that read them down.

The second runs the program on MRPC (train[:1000] and validation), STS-B and SICK: how near texts
stay to float32, by the lowest cosine of their layers, and how far Spearman's correlation moves at
the layer where it moves most.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import rwkvsts
from rwkvsts import data
from rwkvsts.files.checkpoint import open_checkpoint
from rwkvsts.files.hub import resolve
from rwkvsts.opening import DEMO

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import quantised

WAYS = {
    "a scale a row": {"turn": 0},
    "groups of 128 inputs": {"turn": 0, "group": 128},
    "groups of 64": {"turn": 0, "group": 64},
    "groups of 32": {"turn": 0, "group": 32},
    "turned by 32, a scale a row": {"turn": 32},
    "turned by 64, a scale a row": {"turn": 64},
}
LOWEST = 0.999
TASKS = (
    ("mrpc", "train[:1000]"),
    ("mrpc", "validation"),
    ("stsb", "test"),
    ("sick-2014", "test"),
)
READERS = {
    "ln1": ("att.receptance", "att.key", "att.value", "att.gate"),
    "ln2": ("ffn.key", "ffn.receptance"),
}
LOW_RANKS = {"ln1": ("att.time_maa_w1", "att.time_decay_w1"), "ln2": ()}


def demo_weights() -> dict[str, np.ndarray]:
    """The bundled model's tensors in float64."""
    weights = {}
    with open_checkpoint(resolve(DEMO)) as checkpoint:
        for name in checkpoint.tensors:
            bits = checkpoint.read(name)
            weights[name] = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return weights


def with_outliers(weights: dict[str, np.ndarray], columns: int, factor: float):
    """The same function, whose norms have some columns `factor` times as large."""
    rng = np.random.default_rng(0)
    changed = dict(weights)
    for i in range(quantised.reference.blocks_of(weights)):
        for norm, readers in READERS.items():
            scale = np.ones(len(weights["ln_out.weight"]))
            scale[rng.choice(len(scale), columns, replace=False)] = factor
            for part in ("weight", "bias"):
                changed[f"blocks.{i}.{norm}.{part}"] = weights[f"blocks.{i}.{norm}.{part}"] * scale
            for name in readers:
                changed[f"blocks.{i}.{name}.weight"] = weights[f"blocks.{i}.{name}.weight"] / scale
            for name in LOW_RANKS[norm]:
                changed[f"blocks.{i}.{name}"] = weights[f"blocks.{i}.{name}"] / scale[:, None]
    return changed


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def choose(count: int) -> None:
    """Print the lowest cosine of each way of quantising, and of single tokens beside it."""
    tokenizer = rwkvsts.load("demo", device="cpu", max_layer=0).tokenizer
    lines = data.asset("pairs.tsv").read_text("utf-8").splitlines()[1:]
    texts = [text for line in lines for text in line.split("\t") if len(text) > 20][:count]
    ids = [np.array(tokenizer.encode(text)) for text in texts]
    demo = demo_weights()
    models = {
        "as it is": demo,
        "8 columns x 30": with_outliers(demo, 8, 30),
        "2 columns x 100": with_outliers(demo, 2, 100),
    }
    print(f"lowest cosine over {len(ids)} texts, 12 layers, mean-pooled (of a single token)")
    print(f"{'':30}" + "".join(f"{name:22}" for name in models))
    for way, how in WAYS.items():
        cells = []
        for weights in models.values():
            plain, quick = quantised.blocks(weights, None), quantised.blocks(weights, how)
            exact = [quantised.forward(weights, plain, i) for i in ids]
            found = [quantised.forward(weights, quick, i) for i in ids]
            pooled = min(
                cosines(e.mean(1), f.mean(1)).min() for e, f in zip(exact, found, strict=True)
            )
            token = min(cosines(e, f).min() for e, f in zip(exact, found, strict=True))
            cells.append(f"{pooled:.5f} ({token:.5f})")
        print(f"{way:30}" + "".join(f"{cell:22}" for cell in cells), flush=True)


def gate(folder: Path, most: int) -> None:
    """Print how far dtype="int8" is from float32, data set by data set."""
    models = {
        dtype: rwkvsts.load("demo", device="cpu", dtype=dtype)
        for dtype in ("float32", "bfloat16", "int8")
    }
    print("of a text: the lowest cosine of its layers; of a data set: the worst layer's Spearman")
    for task, split in TASKS:
        pairs = data.load(task, split, data=folder)
        labels = np.asarray(pairs.label)[:most]
        texts = [*pairs.sentence1[:most], *pairs.sentence2[:most]]
        rows, rank = {}, {}
        for dtype, m in models.items():
            rows[dtype] = m.encode(texts, layers=m.layers, show_progress=False)
            scores = cosines(rows[dtype][: len(labels)], rows[dtype][len(labels) :])
            rank[dtype] = [spearmanr(column, labels).statistic for column in scores.T]
        for dtype in ("bfloat16", "int8"):
            near = cosines(rows["float32"], rows[dtype]).min(1)
            apart = np.abs(np.subtract(rank[dtype], rank["float32"])).max()
            print(
                f"{task} {split}, {len(labels)} pairs, {dtype}: lowest cosine {near.min():.5f}, "
                f"median {np.median(near):.5f}, {(near < LOWEST).sum()} of {len(near)} texts below "
                f"{LOWEST}; Spearman apart by at most {apart:.5f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=16, help="of the choice")
    parser.add_argument("--data", type=Path, help="folder of mrpc, stsb and sick: the gate")
    parser.add_argument("--pairs", type=int, default=10_000, help="of each data set at most")
    args = parser.parse_args()
    if args.data:
        gate(args.data, args.pairs)
    else:
        choose(args.texts)


if __name__ == "__main__":
    main()
