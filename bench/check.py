"""How near the embeddings of a random checkpoint are to the float64 reference of tests/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from checkpoint import floats

from rwkvsts import RWKV, RWKV7


def against_float64(m: RWKV, tensors: dict[str, np.ndarray], ids: Sequence[np.ndarray]) -> None:
    """Print the cosine of every layer and `final`, the lowest over the sequences of ids.

    `tensors` are m's, bfloat16 bits under BlinkDL's names; m runs all blocks.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    reference = importlib.import_module("reference7" if isinstance(m, RWKV7) else "reference")
    weights = {
        name: floats(bits)
        for name, bits in tensors.items()
        if name not in ("emb.weight", "head.weight")
    }
    # Only the rows that occur, one after the other: the table in float32 would take half a GB.
    weights["emb.weight"] = floats(tensors["emb.weight"][np.concatenate(ids)])
    found = m.encode_ids(ids, [*range(m.n_blocks), "final"])
    at, lowest = 0, np.ones(m.n_blocks + 1)
    for s, sequence in enumerate(ids):
        hidden, _ = reference.forward(weights, list(range(at, at + len(sequence))))
        at += len(sequence)
        right = hidden.mean(1)
        norms = np.linalg.norm(right, axis=-1) * np.linalg.norm(found[s], axis=-1)
        lowest = np.minimum(lowest, (right * found[s]).sum(-1) / norms)
    print(f"{m.device}, lowest cosine to float64 by layer:", " ".join(f"{c:.6f}" for c in lowest))
