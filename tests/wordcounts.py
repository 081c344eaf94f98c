"""A stand-in for a model whose every vector is known, and pairs to score with it."""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from rwkvsts.data import Pairs

WORDS = [f"w{i}" for i in range(40)]


class WordCounts:
    """Counts words; a layer weighs them in its own way. Keeps what it was asked."""

    device, dtype, source, revision = "cpu", "float32", "made/up", "abc123"
    architecture, layers, width = "words", (*range(12), "final"), len(WORDS)
    poolings = ("mean", "last", "weighted", "max")
    n_layer, n_embd, n_vocab = 24, 2048, 65536  # the paper's model's

    def __init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("n_layer", "n_embd", "n_vocab")}
        self.config = types.SimpleNamespace(**sizes)
        self.calls: list[dict[str, Any]] = []

    def encode(self, texts: list[str], layers: Any, **how: Any) -> np.ndarray:
        self.calls.append({"texts": len(texts), "layers": layers, **how})
        counts = np.array([[t.split().count(w) for w in WORDS] for t in texts], np.float32)
        one = not isinstance(layers, list)
        offsets = [99 if x == "final" else x for x in ([layers] if one else layers)]
        words = np.arange(len(WORDS))
        out = np.stack([counts * (1 + (7 * x + 3 * words) % 11) for x in offsets], axis=1)
        if how.get("skip_first") or how.get("pooling") in ("last", "state"):
            out[..., 0] = 0  # any difference will do
        return out[:, 0] if one else out

    def state(self, ids: list[int]) -> tuple[str, list[int]]:
        return "after", ids

    def encode_states(self, texts: list[str], layers: Any, **how: Any) -> np.ndarray:
        return self.encode(texts, layers, pooling="state", **how)[..., :7] + 1

    def branch(self, texts: list[str], suffixes: list[str], layers: Any, **how: Any) -> np.ndarray:
        each = [self.encode([t + end for t in texts], layers, **how) for end in suffixes]
        return np.stack(each, axis=1)

    def norms(self, texts: list[str], layers: list[Any], positions: int) -> np.ndarray:
        """100 for a token before the text, then the number of the token, plus the layer's place."""
        found = np.full((len(texts), len(layers), positions), np.nan, np.float32)
        for row, text in zip(found, texts, strict=True):
            length = min(positions, 1 + len(text.split()))
            row[:, :length] = [100, *range(1, length)]
            row += np.arange(len(layers))[:, None]
        return found

    def head(self) -> np.ndarray:
        return np.random.default_rng(1).normal(size=(80, len(WORDS)))

    def memory(self) -> dict[str, int]:
        return {"weights": 1 << 20, "workspace": 1 << 19, "peak": 3 << 20}


def made_up_pairs(n: int = 60, name: str = "mrpc", split: str = "validation") -> Pairs:
    """Pairs that share half of their words, with labels of chance; other pairs for other splits."""
    rng = np.random.default_rng([7, len(split)])
    first = [" ".join(rng.choice(WORDS, 6)) for _ in range(n)]
    second = [" ".join(np.append(rng.choice(WORDS, 3), s.split()[:3])) for s in first]
    label = rng.integers(0, 2, n).astype(np.float64)
    return Pairs(name, split, first, second, label, "made up")
