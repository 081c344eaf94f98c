"""The golden results of tests/golden: the specification and the core still compute what they did.

make_golden.py beside this file made them. The anchor of another origin is rwkv.cpp's: 256 logits
of its tiny RWKV-6, read here from the two files that its repository holds; test_reference7.py has
those of its tiny RWKV-7.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
import reference7
from make_golden import FOLDER, golden_ids, results
from tinymodel import error, load
from tinymodel7 import read_rwkv_cpp

import rwkvsts
from rwkvsts.files.checkpoint import open_checkpoint
from rwkvsts.files.hub import resolve

FORWARD = {"rwkv6": reference.forward, "rwkv7": reference7.forward}
TOLERANCE = 1e-4  # of a row's length, as in test_model.py


def golden_weights(name: str) -> dict[str, np.ndarray]:
    with open_checkpoint(resolve(FOLDER / f"{name}.safetensors")) as checkpoint:
        bits = {n: checkpoint.read(n) for n in checkpoint.tensors}
    return {n: (a.astype(np.uint32) << 16).view("f4") for n, a in bits.items()}


@pytest.mark.parametrize("name", FORWARD)
def test_the_specification_computes_what_it_did(name: str) -> None:
    """To float64's rounding: NumPy may sum in another order on another machine."""
    found = results(FORWARD[name], golden_weights(name))
    np.testing.assert_allclose(found, np.load(FOLDER / f"{name}.npy"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FORWARD)
def test_the_core_computes_it_in_float32(name: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    m = rwkvsts.load(path, device="cpu", dtype="float32", tokenizer=None)
    found = m.encode_ids(golden_ids(), [0, 1, "final"])
    assert error(found, np.load(FOLDER / f"{name}.npy")) < TOLERANCE


def from_rwkv_cpp(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """rwkv.cpp's arrangement of RWKV-6 to BlinkDL's: low ranks transposed, vectors [1, 1, C]."""
    out = {}
    for name, array in tensors.items():
        leaf = name.rpartition(".")[2]
        if leaf in ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"):
            out[name] = np.ascontiguousarray(array.swapaxes(-1, -2))
        elif leaf == "time_faaaa":
            out[name] = array[..., 0]
        else:
            out[name] = array.reshape(1, 1, -1) if leaf.startswith("time_") else array
    return out


def test_the_logits_that_rwkv_cpp_publishes(shared: Path, tmp_path: Path) -> None:
    """After the prompt '"in', of which an id is a byte; the head is applied here."""
    weights = from_rwkv_cpp(read_rwkv_cpp(shared / "rwkv" / "tiny-rwkv-6v0-1m-FP32.bin"))
    m = load(tmp_path, weights, dtype="float32")
    final = m.encode_ids([list(b'"in')], "final", pooling="last")[0]
    expected = np.fromfile(shared / "rwkv" / "expected-logits-6v0-1m.bin", "<f4")
    assert np.abs(weights["head.weight"].astype(np.float64) @ final - expected).max() < 1e-4
