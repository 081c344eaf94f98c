"""Makes tests/golden: a random model of each architecture and its float64 results, a few KB each.

    python tests/make_golden.py

The results are those of tests/reference.py and tests/reference7.py on the day they were made. They
are kept, so that a mistake made in the specification and in the core alike shows as a difference
from what both once computed. Run this again only when the specification itself is found wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import reference
import reference7
from makecheckpoint import bf16, write_safetensors
from tinymodel import exact_in_bf16, random_ids, random_weights
from tinymodel7 import random_weights7

FOLDER = Path(__file__).resolve().parent / "golden"
LENGTHS = [1, 2, 7, 40]
Forward = Callable[[dict[str, np.ndarray], list[int]], tuple[np.ndarray, reference.State]]
V = 32


def golden_ids() -> list[list[int]]:
    return random_ids(2, LENGTHS, V)


def results(forward: Forward, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Mean-pooled rows of every block and of the last norm, float64 [S, L + 1, C]."""
    return np.stack([forward(weights, ids)[0].mean(1) for ids in golden_ids()])


def main() -> None:
    sizes = {"L": 2, "C": 16, "N": 8, "F": 24, "V": V}
    models = {
        "rwkv6": (random_weights(1, R=3, D=2, **sizes), reference.forward),
        "rwkv7": (random_weights7(1, ranks=(2, 3, 2, 4), **sizes), reference7.forward),
    }
    for name, (weights, forward) in models.items():
        stored = {n: bf16(a) for n, a in weights.items()}
        write_safetensors(FOLDER / f"{name}.safetensors", stored)
        np.save(FOLDER / f"{name}.npy", results(forward, exact_in_bf16(weights)))


if __name__ == "__main__":
    main()
