"""Scores sentence pairs with a twin: every layer and reading of TWINS.md, by cosine.

Assumes the pairs.npz of twins_prepare.py. Promises float32 arithmetic, texts of one length together
and none padded, means and cosines without bfloat16. What `score` returns, by name:
`SET/SPLIT` float32 [pairs, 3, L + 2], cosines by reading (READINGS) and layer (`input`, 0 to L - 1,
`final`); `norms` float32 [2, L + 2, POSITIONS], the mean norm of the stream by layer and position,
of the texts alone and behind id 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from twins_model import Twin
from twins_names import READINGS

POSITIONS = 16  # tokens of which norms are averaged, over all texts that have so many
BATCH = 1024  # texts


class Sentences:
    """The distinct sentences of all sets, and which two make each pair."""

    def __init__(self, path: Path, at_most: int | None = None) -> None:
        """Read the pairs of `path`, of each set the first `at_most`."""
        self.texts: list[np.ndarray] = []
        self.pairs: dict[str, np.ndarray] = {}  # [n, 2], rows of texts
        row: dict[bytes, int] = {}
        with np.load(path) as file:
            arrays = dict(file)
        for name in (key for key in arrays if f"{key}/lengths" in arrays):
            ends = arrays[f"{name}/lengths"].astype(np.int64).cumsum()
            rows = []
            for text in np.split(arrays[name], ends[:-1])[: at_most and 2 * at_most]:
                if text.tobytes() not in row:
                    row[text.tobytes()] = len(self.texts)
                    self.texts.append(text)
                rows.append(row[text.tobytes()])
            self.pairs[name] = np.array(rows).reshape(-1, 2)

    def batches(self) -> list[np.ndarray]:
        """Rows of texts of one length, at most BATCH together."""
        lengths = np.array([len(text) for text in self.texts])
        batches = []
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            batches += [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]
        return batches


@torch.no_grad()
def score(model: Twin, sentences: Sentences, device: str) -> dict[str, np.ndarray]:
    """Cosines of all pairs, and norms by position; see the top of this file."""
    layers, width = model.shape.num_hidden_layers + 2, model.shape.hidden_size
    size = (len(sentences.texts), len(READINGS), layers, width)
    means = torch.empty(size, device=device)
    norms = torch.zeros(2, layers, POSITIONS, device=device)
    counted = 0
    for rows in sentences.batches():
        texts = np.stack([sentences.texts[row] for row in rows]).astype(np.int64)
        ids = torch.from_numpy(texts).to(device)
        alone = model.streams(ids)
        behind = model.streams(F.pad(ids, (1, 0)))  # id 0 in front
        place = torch.from_numpy(rows).to(device)
        means[place] = torch.stack([readings(a, b) for a, b in zip(alone, behind, strict=True)], 2)
        if ids.shape[1] >= POSITIONS:
            counted += len(rows)
            norms[0] += torch.stack([first_norms(x) for x in alone])
            norms[1] += torch.stack([first_norms(x) for x in behind])
    units = F.normalize(means, dim=3)
    found = {"norms": (norms / max(counted, 1)).cpu().numpy()}
    for name, pairs in sentences.pairs.items():
        first, second = torch.from_numpy(pairs.T).to(device)
        found[name] = (units[first] * units[second]).sum(3).cpu().numpy()
    return found


def readings(alone: Tensor, behind: Tensor) -> Tensor:
    """The three means [B, 3, C] of one layer's stream: alone [B, T, C], behind [B, T + 1, C]."""
    without_first = alone[:, 1:] if alone.shape[1] > 1 else alone
    return torch.stack([x.mean(1) for x in (alone, without_first, behind[:, 1:])], 1)


def first_norms(stream: Tensor) -> Tensor:
    """Norms of the first POSITIONS tokens [POSITIONS], summed over texts."""
    return stream[:, :POSITIONS].norm(dim=2).sum(0)
