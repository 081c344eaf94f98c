"""RWKV-7 end to end: published logits, the float64 reference, the official package, itself.

float32 results must agree with the reference to 1e-4 of a row's length. Sums of at most 700
products at 6e-8 each stay below 1e-5; but a head's first y is v times one number, k.r, and
GroupNorm divides by its size again: where k.r happens to cancel, its rounding grows tenfold. In
bfloat16, where the inputs of a product are rounded by up to 2^-9, 0.1 is left for the same reason.
A wrong term is off by more than 1e-2 in float32, where all that the code says is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import reference
import reference7
from makecheckpoint import bf16, write_safetensors, write_torch
from tinymodel import FEATURES, SETS, error, exact_in_bf16, random_ids
from tinymodel7 import (
    Arrays,
    fla_names,
    from_rwkv_cpp,
    load7,
    random_weights7,
    read_rwkv_cpp,
    rwkv_cpp_names,
    unused_v,
    web_rwkv_names,
)

import rwkvsts
from rwkvsts import CheckpointError

DTYPES = ["float32", "bfloat16"]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
LENGTHS = [1, 2, 3, 5, 12, 13, 31, 32, 33, 70, 100, 1]
SIZES = {
    "head size 64": {"C": 192, "N": 64, "F": 768, "ranks": (32, 64, 32, 96)},
    "head size 8": {"C": 40, "N": 8, "F": 140, "ranks": (4, 6, 3, 8)},
    "nothing fits": {"C": 99, "N": 33, "F": 131, "ranks": (3, 5, 7, 1)},
    "odd heads": {"C": 7, "N": 7, "F": 3, "ranks": (1, 1, 1, 1)},
}


def mean_rows(weights: Arrays, ids: list[list[int]]) -> np.ndarray:
    return np.array([reference7.forward(weights, sequence)[0].mean(1) for sequence in ids])


@cache
def expected_rows(size: str) -> tuple[Arrays, list[list[int]], np.ndarray]:
    """A model, sequences and what they must give; once for all instruction sets."""
    weights = exact_in_bf16(random_weights7(7, L=3, **SIZES[size]))
    ids = random_ids(8, LENGTHS)
    return weights, ids, mean_rows(weights, ids)


# ---- others' results ----------------------------------------------------------------------------


@pytest.mark.parametrize("naming", [dict, fla_names, rwkv_cpp_names])
def test_logits_of_the_tiny_model(shared: Path, tmp_path: Path, naming: type[Arrays]) -> None:
    """rwkv.cpp publishes 256 logits after the prompt '"in'; the head is applied here."""
    weights = from_rwkv_cpp(read_rwkv_cpp(shared / "rwkv7" / "tiny-rwkv-7v0-834K-FP32.bin"))
    m = load7(tmp_path, naming(weights), dtype="float32", tokenizer="bytes")
    assert (m.config.n_layer, m.config.n_embd, m.config.head_size) == (12, 64, 64)
    logits = weights["head.weight"] @ m.encode('"in', layers="final", pooling="last")
    expected = np.fromfile(shared / "rwkv7" / "expected-logits-7v0-834K.bin", "<f4")
    assert np.abs(logits - expected).max() < 1e-4


OFFICIAL = """
import os, sys
os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
import numpy as np
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1], strategy="cpu fp32")
rows, _ = model.forward(list(range(1, 41)), None, full_output=True)
np.save(sys.argv[2], rows.numpy())
"""


@pytest.mark.slow
def test_the_official_package_agrees(tmp_path: Path) -> None:
    """The package `rwkv` on random weights of the 0.1B shape; its head is the identity here."""
    pytest.importorskip("rwkv", reason="pip install rwkv, the official package, to compare with it")
    pytest.importorskip("torch", reason="the package rwkv needs torch")
    weights = random_weights7(1, L=12, C=768, F=3072, ranks=(64, 64, 32, 128), V=768)
    weights["head.weight"] = np.eye(768, dtype=np.float32)
    write_torch(tmp_path / "model.pth", unused_v(weights))
    # Its own process: it reads its switches from the environment when it is imported.
    command = [sys.executable, "-c", OFFICIAL, str(tmp_path / "model"), str(tmp_path / "rows.npy")]
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ))
    expected = np.load(tmp_path / "rows.npy")
    cosine = {}
    for dtype in DTYPES:
        m = rwkvsts.load(tmp_path / "model.pth", device="cpu", dtype=dtype, tokenizer=None)
        ids = [list(range(1, n)) for n in range(2, 42)]
        rows = m.encode_ids(ids, layers="final", pooling="last")
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
        cosine[dtype] = (rows * expected).sum(1) / lengths
    assert cosine["float32"].min() > 0.9999
    assert np.median(cosine["bfloat16"]) > 0.999


# ---- the float64 reference ----------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_reference(
    tmp_path: Path, instructions: str, dtype: str, size: str
) -> None:
    weights, ids, expected = expected_rows(size)
    m = load7(tmp_path, weights, dtype=dtype, instruction_set=instructions, threads=2)
    assert instructions in m.device
    found = m.encode_ids(ids, layers=[0, 1, 2, "final"])
    assert error(found, expected) < TOLERANCE[dtype]


def test_every_pooling_agrees_with_the_reference(tmp_path: Path) -> None:
    weights, ids, _ = expected_rows("head size 64")
    hidden = [reference7.forward(weights, sequence)[0] for sequence in ids]
    m = load7(tmp_path, weights, dtype="float32")
    for pooling in ("mean", "last", "weighted", "max"):
        found = m.encode_ids(ids, layers=[0, 1, 2, "final"], pooling=pooling)
        expected = np.array([[reference.pool(x, pooling) for x in layers] for layers in hidden])
        assert error(found, expected) < TOLERANCE["float32"], pooling


@cache
def expected_of_the_wide() -> tuple[Arrays, list[list[int]], np.ndarray]:
    weights = random_weights7(3, L=2, C=576, F=2304, ranks=(96, 96, 64, 320))
    ids = random_ids(4, [70] * 9 + [3])
    return weights, ids, mean_rows(weights, ids)


def test_a_wide_model_walks_every_block(tmp_path: Path, instructions: str) -> None:
    """Inputs beyond a block of K, low ranks beyond a panel, rows beyond a row block."""
    weights, ids, expected = expected_of_the_wide()
    m = load7(tmp_path, weights, dtype="float32", instruction_set=instructions, threads=2)
    found = m.encode_ids(ids, layers=[0, 1, "final"])
    assert error(found, expected) < TOLERANCE["float32"]
    assert m.encode_ids(ids[-1:], layers=[0, 1, "final"]).tobytes() == found[-1:].tobytes()


def test_extreme_gates_stay_finite(tmp_path: Path) -> None:
    """Decays at both ends of their range, learning rates of 0 and 1, keys of zero length."""
    weights = random_weights7(5, L=2)
    for i in range(2):
        for name in ("w0", "a0") + (("v0",) if i else ()):
            weights[f"blocks.{i}.att.{name}"][..., ::2] = 200.0
            weights[f"blocks.{i}.att.{name}"][..., 1::2] = -200.0
    weights["blocks.1.att.k_k"][:] = 0
    ids = random_ids(6, [40])
    found = load7(tmp_path, weights, dtype="float32").encode_ids(ids, layers=[0, 1, "final"])
    assert error(found, mean_rows(weights, ids)) < TOLERANCE["float32"]


# ---- same text, same bits -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["head size 64", "nothing fits"])
def test_bits_ignore_batch_order_and_threads(
    tmp_path: Path, instructions: str, dtype: str, size: str
) -> None:
    rng = np.random.default_rng(5)
    weights = random_weights7(1, L=2, **SIZES[size])
    ids = random_ids(2, rng.integers(1, 80, 24).tolist())
    options = {"dtype": dtype, "instruction_set": instructions}
    models = [load7(tmp_path, weights, threads=n, **options) for n in (1, 2, 5)]
    alone = np.concatenate([models[0].encode_ids([i], [0, 1], "weighted") for i in ids])
    for _ in range(2):
        for m in models:
            order = rng.permutation(len(ids))[: rng.integers(1, len(ids) + 1)]
            rows = int(rng.integers(5, 400))  # cuts long sequences anywhere
            batch = m.encode_ids([ids[i] for i in order], [0, 1], "weighted", batch_tokens=rows)
            assert batch.tobytes() == alone[order].tobytes(), (rows, m.device)


def test_sets_agree_to_rounding(tmp_path: Path) -> None:
    weights, ids = random_weights7(1, **SIZES["head size 64"]), random_ids(2, LENGTHS)
    rows = [
        load7(tmp_path, weights, dtype="float32", instruction_set=name).encode_ids(ids, [2])
        for name in SETS
        if name == "portable" or FEATURES[name]
    ]
    assert all(error(found, rows[0]) < TOLERANCE["float32"] for found in rows)


def test_every_naming_gives_the_same_bits(tmp_path: Path) -> None:
    weights = {name: bf16(a) for name, a in random_weights7(L=2).items()}
    ids = random_ids(1, [3, 20, 90])
    others = {n: bf16(a) for n, a in unused_v(random_weights7(L=2)).items()}
    write_torch(tmp_path / "a.pth", weights)
    write_torch(tmp_path / "b.pth", others)
    write_torch(tmp_path / "c.bin", fla_names(weights))
    write_safetensors(tmp_path / "d.safetensors", fla_names(others, stacked=True))
    write_safetensors(tmp_path / "e.safetensors", web_rwkv_names(weights))
    write_safetensors(tmp_path / "f.safetensors", rwkv_cpp_names(weights))
    rows = []
    for path in sorted(tmp_path.iterdir()):
        m = rwkvsts.load(path, device="cpu", tokenizer=None)
        rows.append(m.encode_ids(ids, [0, 1, "final"]).tobytes())
    assert len(set(rows)) == 1 and len(rows) == 6


# ---- states -------------------------------------------------------------------------------------


def test_state_after_a_prefix(tmp_path: Path) -> None:
    weights = random_weights7(9, L=3, C=64, N=8)
    prefix, rest = random_ids(1, [13, 29])
    m = load7(tmp_path, weights, dtype="float32")
    state = m.state(prefix)
    _, expected = reference7.forward(weights, prefix)
    for found, wanted in zip(state, expected, strict=True):
        assert found.dtype == np.float32 and found.shape == wanted.shape
        assert np.abs(found - wanted).max() < TOLERANCE["float32"] * np.abs(wanted).max()
    hidden = reference7.forward(weights, rest, expected)[0]
    found = m.encode_ids([rest, rest], layers=[0, 2], state=state)
    assert error(found[0], hidden[[0, 2]].mean(1)) < TOLERANCE["float32"]
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prefix_computed_once_gives_the_bits_of_the_whole(tmp_path: Path, dtype: str) -> None:
    m = load7(tmp_path, random_weights7(2, L=2), dtype=dtype)
    whole = random_ids(3, [50])[0]
    expected = m.encode_ids([whole], layers=[0, 1], pooling="last")
    for cut in (1, 17, 49):
        state = m.state(whole[cut // 2 : cut], m.state(whole[: cut // 2]) if cut > 1 else None)
        found = m.encode_ids([whole[cut:]], layers=[0, 1], pooling="last", state=state)
        assert found.tobytes() == expected.tobytes(), cut


# ---- loading ------------------------------------------------------------------------------------


def test_blocks_above_max_layer_are_not_loaded(tmp_path: Path) -> None:
    weights = random_weights7(1, L=4)
    whole, part = load7(tmp_path, weights), load7(tmp_path, weights, max_layer=1)
    ids = random_ids(2, [9, 30])
    assert whole.encode_ids(ids, [0, 1]).tobytes() == part.encode_ids(ids, [0, 1]).tobytes()
    assert part.n_blocks == 2 and part.config.n_layer == 4
    assert part.memory()["weights"] < 0.6 * whole.memory()["weights"]


def test_one_block_alone(tmp_path: Path) -> None:
    """It has no rank of the mix with v_first to read off any tensor."""
    weights = random_weights7(1, L=1)
    ids = random_ids(2, [9, 30])
    found = load7(tmp_path, weights, dtype="float32").encode_ids(ids, [0, "final"])
    assert error(found, mean_rows(weights, ids)) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["att.v1", "att.g2", "ffn.x_k", "att.r_k", "ln2.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    weights = random_weights7(1, L=2)
    del weights[f"blocks.1.{name}"]
    with pytest.raises(CheckpointError, match=rf"blocks\.1\.{name}"):
        load7(tmp_path, weights)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("blocks.0.ffn.s_emb.weight", "RWKV-7a or 7b"),
        ("blocks.1.ffn.s_emb_x.weight", "RWKV-7a or 7b"),
        ("blocks.0.qkv.k_emb.weight", "RWKV-7b"),
        ("blocks.2.ffn.enn.weight", "RWKV-8"),
        ("blocks.0.rosa.q.weight", "RWKV-8"),
        ("blocks.0.att.time_state", "state-tuned"),
        ("blocks.0.att.x_b", "RWKV-7 has no such tensor"),
    ],
)
def test_relatives_are_refused_by_name(tmp_path: Path, name: str, what: str) -> None:
    """They share most names with RWKV-7 and would run as it, wrongly."""
    weights = random_weights7(1, L=3, C=16, N=8) | {name: np.ones((2, 2), np.float32)}
    with pytest.raises(CheckpointError, match=what) as caught:
        load7(tmp_path, weights)
    assert name in str(caught.value)


def test_the_wrong_class_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", random_weights7(1, L=1))
    with pytest.raises(CheckpointError, match="RWKV-7, not RWKV-6"):
        rwkvsts.RWKV6.from_pretrained(tmp_path, device="cpu", tokenizer=None)
