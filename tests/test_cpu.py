"""The CPU's kernels: every instruction set that this processor has, both dtypes, against float64.

Which set runs must not be seen in anything but the last bits; how sequences are batched, ordered
and spread over threads must not be seen at all. Sizes are chosen so that no dimension is a multiple
of a vector, a tile or a block, and one model so wide that every blocking of the products is walked.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import reference
from makecheckpoint import bf16
from tinymodel import FEATURES, SETS, error, exact_in_bf16, load, random_ids, random_weights

from rwkvsts import DeviceError

DTYPES = ["float32", "bfloat16"]
BFLOAT16_ERROR = (2 * (1 - 0.9995)) ** 0.5  # a row off by so much, any way, has a cosine of 0.9995
TOLERANCE = {"float32": 1e-5, "bfloat16": BFLOAT16_ERROR}
LENGTHS = [1, 2, 3, 5, 12, 13, 31, 32, 33, 70, 100, 1]
SIZES = {
    "head size 64": {"C": 192, "N": 64, "F": 672, "R": 32, "D": 64},
    "head size 8": {"C": 40, "N": 8, "F": 140, "R": 4, "D": 6},
    "nothing fits": {"C": 99, "N": 33, "F": 131, "R": 3, "D": 5},
    "odd heads": {"C": 7, "N": 7, "F": 3, "R": 1, "D": 1},
}


def mean_rows(weights: dict[str, np.ndarray], ids: list[list[int]]) -> np.ndarray:
    return np.array([reference.forward(weights, sequence)[0].mean(1)[:-1] for sequence in ids])


Case = tuple[dict[str, np.ndarray], list[list[int]], np.ndarray]


@cache
def expected_rows(size: str) -> Case:
    """A model, sequences and what they must give; once for all instruction sets."""
    weights = exact_in_bf16(random_weights(7, L=3, **SIZES[size]))
    ids = random_ids(8, LENGTHS)
    return weights, ids, mean_rows(weights, ids)


@cache
def expected_rows_of_a_wide_model(F: int, R: int, D: int) -> Case:
    weights = exact_in_bf16(random_weights(3, L=1, C=576, N=64, F=F, R=R, D=D))
    ids = random_ids(4, [70] * 9 + [3])
    return weights, ids, mean_rows(weights, ids)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_reference(
    tmp_path: Path, instructions: str, dtype: str, size: str
) -> None:
    """float32: sums of at most 700 products at 6e-8 each stay far below 1e-5 of a row over three
    blocks. bfloat16 rounds each input of a product by up to 2^-9; see BFLOAT16_ERROR."""
    weights, ids, expected = expected_rows(size)
    m = load(tmp_path, weights, dtype=dtype, instruction_set=instructions, threads=2)
    assert instructions in m.device
    assert error(m.encode_ids(ids, layers=[0, 1, 2]), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["head size 64", "nothing fits"])
def test_bits_ignore_batch_order_and_threads(
    tmp_path: Path, instructions: str, dtype: str, size: str
) -> None:
    rng = np.random.default_rng(5)
    weights = random_weights(1, L=2, **SIZES[size])
    ids = random_ids(2, rng.integers(1, 80, 24).tolist())
    options = {"dtype": dtype, "instruction_set": instructions}
    models = [load(tmp_path, weights, threads=n, **options) for n in (1, 2, 5)]
    alone = np.concatenate([models[0].encode_ids([i], [0, 1], "weighted") for i in ids])
    for _ in range(2):
        for m in models:
            order = rng.permutation(len(ids))[: rng.integers(1, len(ids) + 1)]
            rows = int(rng.integers(5, 400))  # cuts long sequences anywhere
            batch = m.encode_ids([ids[i] for i in order], [0, 1], "weighted", batch_tokens=rows)
            assert batch.tobytes() == alone[order].tobytes(), (rows, m.device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [(2130, 33, 35), (2144, 32, 64)])
def test_a_wide_model_walks_every_block(
    tmp_path: Path, instructions: str, dtype: str, inner: tuple[int, int, int]
) -> None:
    """Inputs beyond a block of K, outputs beyond a block of panels, rows beyond a row block."""
    weights, ids, expected = expected_rows_of_a_wide_model(*inner)
    m = load(tmp_path, weights, dtype=dtype, instruction_set=instructions, threads=2)
    found = m.encode_ids(ids, layers=[0])
    assert error(found, expected) < TOLERANCE[dtype]
    assert m.encode_ids(ids[-1:], layers=[0]).tobytes() == found[-1:].tobytes()


def test_float32_keeps_bfloat16_weights_exactly(tmp_path: Path, instructions: str) -> None:
    """They are packed as they come, at half the memory, and widened in the kernel."""
    weights = exact_in_bf16(random_weights(1, **SIZES["nothing fits"]))
    ids = random_ids(2, LENGTHS)
    options = {"dtype": "float32", "instruction_set": instructions}
    wide = load(tmp_path, weights, **options)
    small = load(tmp_path, {n: bf16(a) for n, a in weights.items()}, **options)
    assert small.memory()["weights"] < 0.7 * wide.memory()["weights"]
    assert small.encode_ids(ids, [0, 2]).tobytes() == wide.encode_ids(ids, [0, 2]).tobytes()


def test_float16_weights_load_into_both_dtypes(tmp_path: Path) -> None:
    weights = {n: a.astype(np.float16) for n, a in random_weights(1).items()}
    ids = random_ids(2, LENGTHS)
    expected = mean_rows({n: a.astype(np.float32) for n, a in weights.items()}, ids)
    for dtype in DTYPES:
        found = load(tmp_path, weights, dtype=dtype).encode_ids(ids, layers=[0, 1, 2])
        assert error(found, expected) < TOLERANCE[dtype]


def test_sets_agree_to_rounding(tmp_path: Path) -> None:
    weights, ids = random_weights(1, **SIZES["head size 64"]), random_ids(2, LENGTHS)
    rows = [
        load(tmp_path, weights, dtype="float32", instruction_set=name).encode_ids(ids, [2])
        for name in SETS
        if name == "portable" or FEATURES[name]
    ]
    assert all(error(found, rows[0]) < 1e-5 for found in rows)


def test_auto_takes_bfloat16_only_where_it_is_an_instruction(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(1))
    assert m.dtype == ("bfloat16" if FEATURES["avx512bf16"] or FEATURES["amx"] else "float32")


def test_a_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    weights = random_weights(1)
    with pytest.raises(ValueError, match="expected portable") as caught:
        load(tmp_path, weights, instruction_set="mmx")
    assert type(caught.value) is ValueError  # the file is fine
    for name in SETS[1:]:
        if not FEATURES[name]:
            with pytest.raises(DeviceError, match=f'"{name}" needs'):
                load(tmp_path, weights, instruction_set=name)


def test_float16_products_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float16"):
        load(tmp_path, random_weights(1), dtype="float16")
