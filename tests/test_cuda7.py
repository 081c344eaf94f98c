"""RWKV-7 by CUDA on a real device: against the float64 reference, and against itself.

Needs a GPU. Tolerances are test_rwkv7.py's, for the reasons that it gives; float16 rounds less than
bfloat16 does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference7
from tinymodel import error, exact_in_bf16, random_ids
from tinymodel7 import Arrays, load7, random_weights7

from rwkvsts import RWKV7, DeviceError

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device")]

TILE = 16  # tokens that wkv7_chunk works on together
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1}
LENGTHS = [1, 2, 3, 17, 64, 65, 200, 31, 1, 128]
SIZES: dict[str, dict[str, Any]] = {
    "heads of 64": {"C": 256, "N": 64, "F": 448, "ranks": (32, 64, 32, 96)},
    "heads of 64, the 1.5B's ranks": {"C": 1024, "F": 1024, "ranks": (96, 96, 64, 256), "L": 2},
    "heads of 8": {"C": 64, "N": 8, "F": 224, "ranks": (8, 16, 8, 24)},
    "heads of 16": {"C": 48, "N": 16, "F": 104, "ranks": (8, 8, 16, 8)},
    "heads of 32": {"C": 96, "N": 32, "F": 64, "ranks": (32, 16, 8, 32)},
    "heads of 128": {"C": 256, "N": 128, "F": 128, "ranks": (32, 32, 32, 64), "L": 1},
    "one block": {"C": 128, "L": 1, "F": 64},
}


def rounded(**sizes: Any) -> Arrays:
    """Random weights that bfloat16 holds, and float16 nearly: the reference sees the same."""
    return exact_in_bf16(random_weights7(**{"ranks": (8, 16, 8, 16), **sizes}))


def on_gpu(folder: Path, weights: Arrays, **options: Any) -> RWKV7:
    return load7(folder, weights, **{"device": "cuda", **options})


def expected(weights: Arrays, ids: list[list[int]], pooling: str) -> np.ndarray:
    return reference.pooled(reference7.forward, weights, ids, pooling)


@pytest.mark.parametrize("size", SIZES)
def test_against_the_reference(tmp_path: Path, dtype: str, size: str) -> None:
    weights = rounded(**SIZES[size])
    ids = random_ids(1, LENGTHS)
    m = on_gpu(tmp_path, weights, dtype=dtype)
    found = m.encode_ids(ids, [*range(m.n_blocks), "final"])
    assert error(found, expected(weights, ids, "mean")) < TOLERANCE[dtype]


def test_extreme_gates_stay_finite(tmp_path: Path) -> None:
    weights = rounded(L=2)
    for i in range(2):
        for name in ("w0", "a0") + (("v0",) if i else ()):
            weights[f"blocks.{i}.att.{name}"][..., ::2] = 200.0
            weights[f"blocks.{i}.att.{name}"][..., 1::2] = -200.0
    weights["blocks.1.att.k_k"][:] = 0
    ids = random_ids(6, [40])
    found = on_gpu(tmp_path, weights, dtype="float32").encode_ids(ids, [0, 1, "final"])
    assert error(found, expected(weights, ids, "mean")) < TOLERANCE["float32"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"C": 256, "F": 448, "ranks": (32, 64, 32, 96)},
        {"C": 1024, "F": 448, "ranks": (64, 64, 64, 128), "L": 2},
    ],
)
def test_the_bits_of_a_text_are_its_own(tmp_path: Path, dtype: str, sizes: dict[str, Any]) -> None:
    """Whatever the pass, its neighbours and its kernel: few rows, cublasLt, a recorded pass."""
    m = on_gpu(tmp_path, rounded(**sizes), dtype=dtype)
    rng = np.random.default_rng(0)
    ids = random_ids(3, rng.integers(1, 90, 120).tolist())
    layers = [0, m.n_blocks - 1, "final"]
    right = m.encode_ids(ids, layers)
    assert np.isfinite(right).all()
    for batch_tokens in (1, 16, 37, 128, 250, 300, 1000, 4000):
        order = rng.permutation(len(ids))
        found = m.encode_ids([ids[i] for i in order], layers, batch_tokens=batch_tokens)
        assert found.tobytes() == right[order].tobytes(), batch_tokens
    for i in range(0, len(ids), 7):
        assert m.encode_ids([ids[i]], layers)[0].tobytes() == right[i].tobytes()
    state = m.state(ids[0])
    right = m.encode_ids(ids, layers, state=state)
    for batch_tokens in (37, 1000):
        found = m.encode_ids(ids, layers, batch_tokens=batch_tokens, state=state)
        assert found.tobytes() == right.tobytes(), batch_tokens


def test_a_long_text_has_its_bits_in_any_company(tmp_path: Path, dtype: str) -> None:
    """By two warps a head, by four, or its states ahead and its parts side by side: by how many of
    its tokens a pass holds. The last, 1,024 tokens, ends with a whole part."""
    weights = rounded(C=256, F=448, ranks=(32, 64, 32, 96), L=2)
    m = on_gpu(tmp_path, weights, dtype=dtype)
    ids = random_ids(15, [1500, 30, 513, 512, 2100, 7, 1024])
    layers = [0, 1, "final"]
    right = m.encode_ids(ids, layers)
    for batch_tokens in (64, 300, 500, 640, 1700):
        found = m.encode_ids(ids, layers, batch_tokens=batch_tokens)
        assert found.tobytes() == right.tobytes(), batch_tokens
    for i, text in enumerate(ids):
        assert m.encode_ids([text], layers)[0].tobytes() == right[i].tobytes()
    state = m.state(ids[4])
    parts = m.state(ids[4][1280:], m.state(ids[4][:1280]))
    assert all(np.array_equal(a, b) for a, b in zip(parts, state, strict=True))
    near = m.encode_ids(ids[2:3], layers)
    assert error(near, expected(weights, ids[2:3], "mean")) < TOLERANCE[dtype]


@pytest.mark.parametrize("N", [64, 16])
def test_a_state_continues_its_text(tmp_path: Path, dtype: str, N: int) -> None:
    """To the bit, but to rounding where a cut parts tokens that bfloat16 works on together."""
    m = on_gpu(tmp_path, rounded(C=128, N=N), dtype=dtype)
    (whole,) = random_ids(7, [90])
    at_once, last = m.state(whole), m.encode_ids([whole], [0, 2], pooling="last")
    for cut in (64, 41):
        state = m.state(whole[:cut])
        both = m.state(whole[cut:], state)
        rest = m.encode_ids([whole[cut:]], [0, 2], pooling="last", state=state)
        if cut % TILE and dtype == "bfloat16" and N == 64:
            assert error(rest, last) < 2 * TOLERANCE[dtype]  # each is so near to float64
            assert max(map(error, both, at_once)) < 2 * TOLERANCE[dtype]
            continue
        assert rest.tobytes() == last.tobytes()
        assert all(a.tobytes() == b.tobytes() for a, b in zip(both, at_once, strict=True))


def test_a_state_after_a_prefix(tmp_path: Path) -> None:
    weights = rounded(C=128, N=16)
    (prefix,) = random_ids(1, [13])
    found = on_gpu(tmp_path, weights, dtype="float32").state(prefix)
    for a, b in zip(found, reference7.forward(weights, prefix)[1], strict=True):
        assert np.abs(a - b).max() < TOLERANCE["float32"] * np.abs(b).max()


def test_low_ranks_that_no_kernel_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="a low rank of 12: on CUDA a multiple of 8"):
        on_gpu(tmp_path, rounded(ranks=(12, 16, 8, 16)))
    with pytest.raises(DeviceError, match="low ranks of 80 together: on CUDA at most 64"):
        on_gpu(tmp_path, rounded(C=64, ranks=(32, 16, 16, 16)))
