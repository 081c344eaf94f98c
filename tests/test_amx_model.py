"""AMX where there is none: its kernel on the software model of the tile registers.

Few processors have the instructions, and what lies around the kernel differs under them: inputs are
written in the order of its tiles by whoever makes them. bench/amx_model.h stands in for the tiles,
so layout, edges and what is stored where are held to the float64 reference on any processor with
AVX512-BF16. It is no claim about the hardware's speed, nor its last bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from standin import compile_cpu, model_on
from test_cpu import BFLOAT16_ERROR, SIZES, mean_rows
from tinymodel import FEATURES, error, exact_in_bf16, random_ids, random_weights

MODEL = Path(__file__).resolve().parents[1] / "bench" / "amx_model.h"
ENTRY = """
#include "backend.h"

__attribute__((visibility("default"))) const struct backend *rwkvsts_cuda_backend(int abi) {
    return abi == CUDA_BACKEND_ABI ? cpu_backend() : NULL;
}
"""
# Whole tiles, so that inputs are written as tiles; the same but beyond a block of K and of panels;
# sizes that fit no tile, where inputs are packed.
SHAPES = {
    "whole tiles": SIZES["head size 64"],
    "wide": {"C": 192, "N": 64, "F": 2144, "R": 32, "D": 64},
    "nothing fits": SIZES["nothing fits"],
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not FEATURES["avx512bf16"]:
        pytest.skip("the rows' kernels under AMX need AVX512-BF16, which is not here")
    folder = tmp_path_factory.mktemp("amx")
    return compile_cpu(folder, ENTRY, "-O2", f'-DEMULATE_AMX="{MODEL}"')


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(library: Path, shape: str) -> None:
    """One row more or less than a tile of 16 and of 32, and than an item of 64 rows."""
    weights = exact_in_bf16(random_weights(11, L=2, **SHAPES[shape]))
    ids = random_ids(12, [1, 15, 16, 17, 32, 33, 70])
    m = model_on(library, weights, "bfloat16", threads=2)
    assert m.device.startswith("cpu amx")
    expected = np.array([mean_rows(weights, [sequence])[0] for sequence in ids])
    assert error(m.encode_ids(ids, [0, 1]), expected) < BFLOAT16_ERROR


@pytest.mark.parametrize("shape", ["whole tiles", "nothing fits"])
def test_bits_ignore_batch_order_and_threads(library: Path, shape: str) -> None:
    rng = np.random.default_rng(13)
    weights = random_weights(14, L=2, **SHAPES[shape])
    ids = random_ids(15, rng.integers(1, 80, 5).tolist())  # the software model is slow
    one, three = (model_on(library, weights, "bfloat16", threads=n) for n in (1, 3))
    alone = np.concatenate([one.encode_ids([i], [0, 1], "weighted") for i in ids])
    for batch_tokens in (7, 64, 300):
        order = rng.permutation(len(ids))
        found = three.encode_ids(
            [ids[i] for i in order], [0, 1], "weighted", batch_tokens=batch_tokens
        )
        assert found.tobytes() == alone[order].tobytes(), batch_tokens
