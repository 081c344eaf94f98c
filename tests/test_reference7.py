"""The specification of RWKV-7 itself: against published logits, and its states against one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import reference7
from tinymodel import random_ids
from tinymodel7 import from_rwkv_cpp, random_weights7, read_rwkv_cpp


def test_logits_of_the_tiny_model(shared: Path) -> None:
    """rwkv.cpp publishes 256 logits after the prompt '"in'; an id is a byte there."""
    weights = from_rwkv_cpp(read_rwkv_cpp(shared / "rwkv7" / "tiny-rwkv-7v0-834K-FP32.bin"))
    final = reference7.forward(weights, list(b'"in'))[0][-1, -1]
    expected = np.fromfile(shared / "rwkv7" / "expected-logits-7v0-834K.bin", "<f4")
    assert np.abs(weights["head.weight"] @ final - expected).max() < 1e-5


def test_a_state_continues_a_sequence() -> None:
    weights = random_weights7(1, C=32, N=8)
    ids = random_ids(2, [11])[0]
    whole, end = reference7.forward(weights, ids)
    _, middle = reference7.forward(weights, ids[:4])
    rest, same_end = reference7.forward(weights, ids[4:], middle)
    np.testing.assert_allclose(rest, whole[:, 4:], rtol=1e-12, atol=1e-12)
    for a, b in zip(end, same_end, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_every_weight_matters() -> None:
    """A term that could be left out without a trace would be tested by nothing."""
    weights = random_weights7(3, L=2, C=16, N=8)
    ids = random_ids(4, [6])[0]
    before = reference7.forward(weights, ids)[0]
    for name, array in weights.items():
        if name == "head.weight":
            continue
        rng = np.random.default_rng(5)
        other = weights | {name: array + 0.1 * rng.standard_normal(array.shape)}
        assert np.abs(reference7.forward(other, ids)[0] - before).max() > 1e-6, name
