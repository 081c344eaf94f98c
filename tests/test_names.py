"""Every naming of a model's tensors that is in use gives BlinkDL's tensors, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makecheckpoint import hf_names, write_safetensors, write_sharded, write_torch
from tinymodel import random_weights
from tinymodel7 import (
    embedder_names,
    fla_names,
    from_rwkv_cpp,
    random_weights7,
    rwkv_cpp_names,
    unused_v,
    web_rwkv_names,
)

import rwkvsts
from rwkvsts import CheckpointError
from rwkvsts.files.checkpoint import open_checkpoint
from rwkvsts.files.hub import resolve

Arrays = dict[str, np.ndarray]


def fla_stacked(weights: Arrays) -> Arrays:
    return fla_names(weights, stacked=True)


def fla_names_6(weights: Arrays) -> Arrays:
    """RWKV-6 as fla's own converter arranges it: five groups in the order r, w, k, v, g."""
    out = {
        "model.embeddings.weight": weights["emb.weight"],
        "lm_head.weight": weights["head.weight"],
    }
    norms = [("ln1", "attn_norm"), ("ln2", "ffn_norm"), ("att.ln_x", "attn.g_norm")]
    products = {"receptance": "r_proj.linear", "key": "k_proj.linear", "value": "v_proj.linear"}
    products |= {"gate": "g_proj.linear", "output": "o_proj"}
    for end in (".weight", ".bias"):
        out["model.layers.0.pre_norm" + end] = weights["blocks.0.ln0" + end]
        out["model.norm" + end] = weights["ln_out" + end]
    i = 0
    while f"blocks.{i}.ln1.weight" in weights:
        w = {n.removeprefix(f"blocks.{i}."): a for n, a in weights.items()}
        mine: Arrays = {
            theirs + end: w[ours + end] for ours, theirs in norms for end in (".weight", ".bias")
        }
        mine |= {f"attn.{b}.weight": w[f"att.{a}.weight"] for a, b in products.items()}
        down = dict(zip("wkvrg", np.split(w["att.time_maa_w1"], 5, axis=1), strict=True))
        up = dict(zip("wkvrg", w["att.time_maa_w2"], strict=True))
        mine |= {
            "attn.x_proj.0.mu": w["att.time_maa_x"].ravel(),
            "attn.x_proj.0.linear.weight": np.concatenate([down[j] for j in "rwkvg"], 1).T,
            "attn.x_proj.2.weight": np.concatenate([up[j] for j in "rwkvg"], 0).T,
            "attn.x_bias": np.stack([w[f"att.time_maa_{j}"].ravel() for j in "rwkvg"]),
            "attn.w_proj.linear.lora.0.weight": w["att.time_decay_w1"].T,
            "attn.w_proj.linear.lora.2.weight": w["att.time_decay_w2"].T,
            "attn.w_proj.linear.lora.2.bias": w["att.time_decay"].ravel(),
            "attn.bonus": w["att.time_faaaa"],
            "ffn.key.linear.weight": w["ffn.key.weight"],
            "ffn.key.mu": w["ffn.time_maa_k"].ravel(),
            "ffn.receptance.linear.weight": w["ffn.receptance.weight"],
            "ffn.receptance.mu": w["ffn.time_maa_r"].ravel(),
            "ffn.value.weight": w["ffn.value.weight"],
        }
        out |= {f"model.layers.{i}.{n}": np.ascontiguousarray(a) for n, a in mine.items()}
        i += 1
    return out


def web_rwkv_names_6(weights: Arrays) -> Arrays:
    turned = ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2")
    return {
        n.replace("time_faaaa", "time_first").replace("time_maa", "time_mix"): np.ascontiguousarray(
            a.swapaxes(-1, -2) if n.endswith(turned) else a
        )
        for n, a in weights.items()
    }


NAMINGS_6 = [dict, hf_names, fla_names_6, web_rwkv_names_6]
NAMINGS_7 = [dict, fla_names, fla_stacked, web_rwkv_names, rwkv_cpp_names]


def assert_same_tensors(path: Path, weights: Arrays) -> None:
    """The file holds these weights, dimensions of one left aside, as the core leaves them."""
    with open_checkpoint(resolve(path)) as checkpoint:
        assert set(checkpoint.tensors) == set(weights)
        for name, expected in weights.items():
            found = checkpoint.read(name)
            assert found.shape == checkpoint.tensors[name].shape and found.flags.c_contiguous
            assert np.squeeze(found).shape == np.squeeze(expected).shape, name
            assert found.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("naming", NAMINGS_6)
def test_rwkv_6(tmp_path: Path, naming: Callable[[Arrays], Arrays]) -> None:
    weights = random_weights(1, L=2, C=32, N=8, D=32)  # C = D: a shape that tells nothing
    write_safetensors(tmp_path / "model.safetensors", naming(weights))
    assert_same_tensors(tmp_path, weights)


@pytest.mark.parametrize("naming", NAMINGS_7)
def test_rwkv_7(tmp_path: Path, naming: Callable[[Arrays], Arrays]) -> None:
    weights = random_weights7(1, L=2, C=32, N=8)
    write_torch(tmp_path / "a.pth", naming(weights))
    assert_same_tensors(tmp_path / "a.pth", weights)


@pytest.mark.parametrize("naming", [dict, fla_names, rwkv_cpp_names])
def test_low_ranks_as_wide_as_the_model(tmp_path: Path, naming: Callable[[Arrays], Arrays]) -> None:
    weights = random_weights7(1, L=2, C=32, N=8, ranks=(32, 32, 32, 32))
    write_safetensors(tmp_path / "model.safetensors", naming(weights))
    assert_same_tensors(tmp_path, weights)


def test_unused_tensors_of_block_0_are_listed(tmp_path: Path) -> None:
    weights = unused_v(random_weights7(1, L=2, C=32, N=8))
    for naming in NAMINGS_7:
        write_safetensors(tmp_path / "model.safetensors", naming(weights))
        assert_same_tensors(tmp_path, weights)


def test_a_split_tensor_of_a_shard(tmp_path: Path) -> None:
    weights = random_weights7(1, L=2, C=32, N=8)
    write_sharded(tmp_path, fla_stacked(weights), ".safetensors", shards=3)
    assert_same_tensors(tmp_path, weights)


def test_an_embedder_keeps_its_heads_and_images(tmp_path: Path) -> None:
    weights = random_weights7(1, L=2, C=32, N=8)
    stored = embedder_names(weights)
    write_torch(tmp_path / "a.pth", stored)
    rwkv = {n: a for n, a in weights.items() if n != "head.weight"}
    others = {n: a for n, a in stored.items() if not n.startswith("rwkv.")}
    assert len(others) == 14
    assert_same_tensors(tmp_path / "a.pth", rwkv | others)


def test_the_maker_of_rwkv_cpp_names_and_its_reader_agree() -> None:
    weights = random_weights7(1, L=2)
    again = from_rwkv_cpp(rwkv_cpp_names(weights))
    assert set(again) == set(weights)
    assert all(np.array_equal(np.squeeze(again[n]), np.squeeze(a)) for n, a in weights.items())


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.attn.x_x", (5, 4), "6 rows"),
        ("model.layers.0.attn.x_bias", (6, 4), "5 rows"),
        ("model.layers.0.attn.x_proj.0.linear.weight", (9, 4), "a multiple of 5"),
        ("model.layers.0.attn.x_proj.2.weight", (4, 9), "a multiple of 5"),
        ("model.layers.0.attn.w_lora.lora.0.weight", (4,), "at least 2 dimensions"),
    ],
)
def test_a_shape_that_cannot_be_split(
    tmp_path: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    write_safetensors(tmp_path / "model.safetensors", {name: np.zeros(shape, np.float32)})
    with pytest.raises(CheckpointError, match=expected) as caught:
        open_checkpoint(resolve(tmp_path))
    assert name in str(caught.value) and "model.safetensors" in str(caught.value)


def test_a_refusal_says_whose_names_the_file_uses(tmp_path: Path) -> None:
    """The message speaks in BlinkDL's names, which such a file does not hold."""
    arrays = {
        "model.embeddings.weight": np.ones((9, 64), np.float32),
        "model.layers.0.attn.bonus": np.ones((1, 64), np.float32),
        "model.layers.0.attn.x_bias": np.ones((5, 64), np.float32),
        "model.layers.0.attn.x_proj.0.mu": np.ones(64, np.float32),
    }
    write_safetensors(tmp_path / "x.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"missing.*in flash-linear-attention's naming.*take"):
        rwkvsts.load(tmp_path, device="cpu", tokenizer=None)
