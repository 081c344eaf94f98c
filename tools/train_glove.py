"""Trains the bundled word vectors: GloVe's objective on the demo model's training text.

    python tools/train_glove.py CORPORA rwkvsts/assets/glove.demo.50d.txt.gz

Words are lower-cased runs of `[a-z0-9]` and single other marks, as `split_words` of
rwkvsts.study.baselines cuts them; each document is counted as often as the demo model reads it.
Co-occurrence within ten words, weighted by 1 / distance, both sides; loss
f(X) (w.c + b + b' - ln X)^2 with f = min(1, (X / x_max)^0.75), AdaGrad, and the sum of both vectors
of a word is written, as in Pennington, Socher and Manning (2014). The same seed and library
versions give the same file.
"""

from __future__ import annotations

import argparse
import gzip
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from corpus import REPEATS, load
from scipy import sparse

WORD = re.compile(r"[a-z0-9]+|[^a-z0-9\s]")
WORDS, DIMENSIONS, WINDOW = 10_000, 50, 10
X_MAX, ALPHA, RATE = 10.0, 0.75, 0.5
EPOCHS, BATCH = 12, 2048
LEAST = 1.0  # a pair must weigh this much to be fitted: it halves the work and loses noise
DECIMALS = 3


def read_words(corpora: Path) -> tuple[list[list[str]], list[int]]:
    """The training documents as words, and how often each is read."""
    documents = [d for d in load(corpora) if not d.held_out]
    return [WORD.findall(d.text.lower()) for d in documents], [REPEATS[d.source] for d in documents]


def co_occurrence(
    documents: list[list[str]], repeats: list[int], row: dict[str, int]
) -> sparse.coo_matrix:
    """Symmetric weighted counts [WORDS, WORDS]; a gap of WINDOW keeps documents apart."""
    gap = [-1] * WINDOW
    ids, weights = [], []
    for words, weight in zip(documents, repeats, strict=True):
        ids.append(np.array([row.get(word, -1) for word in words] + gap, np.int32))
        weights.append(np.full(len(ids[-1]), weight, np.float32))
    stream, weight = np.concatenate(ids), np.concatenate(weights)
    total = sparse.csr_matrix((WORDS, WORDS), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        left, right = stream[:-distance], stream[distance:]
        both = (left >= 0) & (right >= 0)
        value = weight[:-distance][both] / distance
        places = (left[both], right[both])
        total = total + sparse.coo_matrix((value, places), shape=total.shape).tocsr()
    symmetric = (total + total.T).tocoo()
    enough = symmetric.data >= LEAST
    places = (symmetric.row[enough], symmetric.col[enough])
    return sparse.coo_matrix((symmetric.data[enough], places), shape=total.shape)


def fit(counts: sparse.coo_matrix, seed: int) -> np.ndarray:
    """Word plus context vectors, float32 [WORDS, DIMENSIONS]."""
    torch.manual_seed(seed)
    # One table for words and one for contexts, the bias as last column of each.
    tables = [(torch.rand(WORDS, DIMENSIONS + 1) - 0.5) / DIMENSIONS for _ in range(2)]
    squares = [torch.ones_like(table) for table in tables]
    places = [torch.from_numpy(ids.astype(np.int64)) for ids in (counts.row, counts.col)]
    logs = torch.from_numpy(np.log(counts.data))
    # Biases start at the marginals: else the first steps of AdaGrad, all in one direction, put the
    # mean of ln X into the vectors, and every cosine is near 1.
    for table, ids in zip(tables, places, strict=True):
        sums, n = (torch.bincount(ids, w, WORDS) for w in (logs.double(), None))
        table[:, -1] = (sums / n.clamp(min=1) - logs.double().mean() / 2).float()
    weights = torch.from_numpy(np.minimum(1, (counts.data / X_MAX) ** ALPHA).astype(np.float32))
    for epoch in range(EPOCHS):
        begin, loss = time.monotonic(), 0.0
        for batch in torch.randperm(len(logs)).split(BATCH):
            rows = [ids[batch] for ids in places]
            word, context = (table[ids] for table, ids in zip(tables, rows, strict=True))
            dot = (word[:, :-1] * context[:, :-1]).sum(1) + word[:, -1] + context[:, -1]
            error = dot - logs[batch]
            loss += float((weights[batch] * error**2).sum())
            scale = (weights[batch] * error)[:, None]
            one = torch.ones(len(batch), 1)
            gradients = (
                scale * torch.cat([context[:, :-1], one], 1),
                scale * torch.cat([word[:, :-1], one], 1),
            )
            for table, square, ids, gradient in zip(tables, squares, rows, gradients, strict=True):
                summed = torch.zeros_like(table).index_add_(0, ids, gradient)
                square += summed**2
                table -= RATE * summed / square.sqrt()
        spent = time.monotonic() - begin
        print(f"epoch {epoch + 1}: loss {loss / len(logs):.5f}, {spent:.0f} s", flush=True)
    return (tables[0] + tables[1])[:, :-1].numpy()


def number(value: float) -> str:
    """Shortest form at DECIMALS decimals: -0.5 is `-0.5`, 0 is `0`."""
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def write(path: Path, words: list[str], vectors: np.ndarray) -> None:
    """GloVe's text format, .gz without a time stamp, so that the hash is stable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        " ".join([word, *map(number, vector)]) + "\n"
        for word, vector in zip(words, vectors.tolist(), strict=True)
    )
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write("".join(lines).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    documents, repeats = read_words(options.corpora)
    tally: Counter[str] = Counter()
    for words, weight in zip(documents, repeats, strict=True):
        for word, count in Counter(words).items():
            tally[word] += weight * count
    words = sorted(tally, key=lambda word: (-tally[word], word))[:WORDS]
    counts = co_occurrence(documents, repeats, {word: i for i, word in enumerate(words)})
    covered = sum(tally[word] for word in words) / sum(tally.values())
    print(f"{len(counts.data)} pairs; {WORDS} words cover {covered:.1%} of the text", flush=True)
    write(options.out, words, fit(counts, options.seed))
    print(f"{options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
