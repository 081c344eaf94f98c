"""States of an RWKV: the past of a sequence as arrays, and as one vector.

Assumes states of one model. Promises that a state's vector depends on that state alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _core
from .embedder import FloatArray

AT_A_TIME = 1 << 28  # bytes of states that a call holds at a time, where it makes one for each text
SEED = 0  # of the projection: vectors of two calls can be compared


class State(NamedTuple):
    """The past of one sequence, float32; C embedding, H heads, N head size, L blocks loaded.

    The two last axes of wkv are (key, value) in RWKV-6, (value, key) in RWKV-7, as in their papers.
    Of S sequences, where the core returns several, each array has a first axis S.
    """

    att_x: FloatArray  # [L, C]
    ffn_x: FloatArray  # [L, C]
    wkv: FloatArray  # [L, H, N, N]

    def __repr__(self) -> str:  # a tuple's own would be pages of numbers
        return f"<State {', '.join(f'{n} {np.shape(a)}' for n, a in self._asdict().items())}>"


def state_bytes(L: int, C: int, N: int) -> int:
    """Bytes of one sequence's state over L blocks."""
    return 4 * L * C * (2 + N)


def vectors(wkv: FloatArray, width: int | None) -> FloatArray:
    """One vector for each state: every head's matrix at length 1, all of them side by side.

    A head that decays slowly adds up many tokens and would drown the others. Projected to `width`,
    each number is added to one of the `width` sums, or taken from it, by a draw that is the same in
    every call: a count sketch (Charikar et al., 2002). Cosines are kept to about 1 / sqrt(width).

    Parameters
    ----------
    wkv : [..., H, N, N]
    width : None for all H N N numbers

    Returns
    -------
    float32 [..., width]
    """
    return _core.in_default_floats(lambda: _vectors(wkv, width))


def _vectors(wkv: FloatArray, width: int | None) -> FloatArray:
    *outer, H, N, _ = wkv.shape
    heads = wkv.reshape(-1, H, N * N).astype(np.float64)
    length = np.linalg.norm(heads, axis=-1, keepdims=True)
    heads = np.divide(heads, length, out=np.zeros_like(heads), where=length > 0)
    flat = heads.reshape(len(heads), -1)
    if width is not None:
        draw = np.random.default_rng(SEED)
        to = draw.integers(0, width, flat.shape[1])
        sign = draw.choice([-1.0, 1.0], flat.shape[1])
        flat = np.array([np.bincount(to, sign * row, width) for row in flat])
    result: FloatArray = flat.astype(np.float32).reshape(*outer, flat.shape[1])
    return result
