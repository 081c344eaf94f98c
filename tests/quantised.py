"""The equations of reference.py with 8-bit products: dtype="int8", and what it could be instead.

Every LINEAR product rounds its inputs, row by row, and its weights, output by output, to whole
numbers of at most 127 times a scale. Both may be turned first: multiplied, `turn` numbers at a
time, by an orthogonal Hadamard matrix, which leaves the product as it is and shares an outlying
number out among its neighbours. And both may have a scale for each `group` of inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import reference
from scipy.linalg import hadamard

LINEAR = [f"att.{name}" for name in ("receptance", "key", "value", "gate", "output")]
LINEAR += [f"ffn.{name}" for name in ("key", "receptance", "value")]
TURN = 64  # of the core


def in_blocks(a: np.ndarray, size: int) -> np.ndarray:
    """[R, K] as [R, blocks, size], filled up with zeros."""
    filled = np.pad(a, ((0, 0), (0, -a.shape[1] % size)))
    return filled.reshape(len(a), -1, size)


def rounded(a: np.ndarray, group: int | None) -> np.ndarray:
    """[R, K] as it is once quantised, with a scale a row or, with `group`, a row and group."""
    blocks = in_blocks(a, group or a.shape[1])
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    scale[scale == 0] = 1
    return (np.rint(blocks / scale) * scale).reshape(len(a), -1)[:, : a.shape[1]]


class Quantised:
    """A weight [N, K] that `x @ weight.T` of reference.py multiplies in 8 bits."""

    __array_ufunc__ = None  # so that NumPy leaves x @ this to us

    def __init__(self, weight: np.ndarray, turn: int = TURN, group: int | None = None) -> None:
        self.turning = hadamard(turn) / np.sqrt(turn) if turn else None
        self.group = group
        self.weight = rounded(self._turned(np.asarray(weight, np.float64)), group)

    def _turned(self, a: np.ndarray) -> np.ndarray:
        if self.turning is None:
            return a
        return (in_blocks(a, len(self.turning)) @ self.turning).reshape(len(a), -1)

    @property
    def T(self) -> Quantised:
        return self

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        return rounded(self._turned(x), self.group) @ self.weight.T


def blocks(weights: reference.Weights, how: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Each block's tensors, those of LINEAR products quantised as `how` says; None: as they are."""
    prepared = []
    for i in range(reference.blocks_of(weights)):
        prefix = f"blocks.{i}."
        block: dict[str, Any] = {
            name[len(prefix) :]: np.asarray(a, np.float64)
            for name, a in weights.items()
            if name.startswith(prefix)
        }
        for name in LINEAR if how is not None else ():
            block[f"{name}.weight"] = Quantised(block[f"{name}.weight"], **how)
        prepared.append(block)
    return prepared


def forward(
    weights: reference.Weights, prepared: list[dict[str, Any]], ids: list[int]
) -> np.ndarray:
    """The stream after each block [L, T, C] of a text from its start, in float64."""
    H, N = weights["blocks.0.att.time_faaaa"].shape
    fresh, state = np.zeros(H * N), np.zeros((H, N, N))
    ln0 = [np.asarray(weights[f"blocks.0.ln0.{part}"], np.float64) for part in ("weight", "bias")]
    rows = np.asarray(weights["emb.weight"][ids], np.float64)
    x = reference.layer_norm(rows, *ln0, reference.LN_EPS)
    hidden = []
    for block in prepared:
        x = x + reference.time_mix(block, x, fresh, state)[0]
        x = x + reference.channel_mix(block, x, fresh)[0]
        hidden.append(x)
    return np.stack(hidden)
