"""Random RWKV-7 models of any size, every term exercised, under every naming that is in use."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from makecheckpoint import write_safetensors

import rwkvsts

Arrays = dict[str, np.ndarray]
MIXES = "rwkvag"
LOW_RANKS = ("w", "a", "v", "g")


def random_weights7(
    seed: int = 0,
    *,
    L: int = 3,
    C: int = 64,
    N: int = 64,
    F: int = 96,
    ranks: tuple[int, int, int, int] = (8, 12, 5, 16),
    V: int = 100,
) -> Arrays:
    """Weights whose every term matters: no vector is constant, decays span their whole range.

    ranks : of w, a, v, g. Block 0 has no v0, v1, v2, as in files of the first trainers.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0, about: float = 0.0) -> np.ndarray:
        return (about + scale * rng.standard_normal(shape)).astype(np.float32)

    w = {"emb.weight": normal(V, C), "head.weight": normal(V, C)}
    for name in ("blocks.0.ln0", "ln_out"):
        w[f"{name}.weight"], w[f"{name}.bias"] = normal(C, scale=0.2, about=1), normal(C, scale=0.2)
    for i in range(L):
        b = f"blocks.{i}."
        for name in ("ln1", "ln2", "att.ln_x"):
            w[f"{b}{name}.weight"] = normal(C, scale=0.2, about=1)
            w[f"{b}{name}.bias"] = normal(C, scale=0.2)
        for name in (*(f"att.x_{j}" for j in MIXES), "ffn.x_k"):
            w[b + name] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        for j, R in zip(LOW_RANKS, ranks, strict=True):
            if i == 0 and j == "v":
                continue
            w[f"{b}att.{j}1"] = normal(C, R, scale=C**-0.5)
            w[f"{b}att.{j}2"] = normal(R, C, scale=R**-0.5)
            if j != "g":
                w[f"{b}att.{j}0"] = normal(1, 1, C, scale=2.0 if j == "w" else 1.0)
        w[b + "att.k_k"] = normal(1, 1, C, scale=0.2, about=0.9)
        w[b + "att.k_a"] = normal(1, 1, C, scale=0.2, about=1)
        w[b + "att.r_k"] = normal(C // N, N, scale=0.3)
        for name in ("receptance", "key", "value", "output"):
            w[f"{b}att.{name}.weight"] = normal(C, C, scale=C**-0.5)
        w[b + "ffn.key.weight"] = normal(F, C, scale=C**-0.5)
        w[b + "ffn.value.weight"] = normal(C, F, scale=F**-0.5)
    return w


def load7(folder: Path, weights: Arrays, **options: Any) -> rwkvsts.RWKV7:
    """The package's model of these weights, through a file as a user's would be."""
    path = folder / "model.safetensors"
    write_safetensors(path, weights)
    model = rwkvsts.load(path, **{"device": "cpu", "tokenizer": None, **options})
    assert isinstance(model, rwkvsts.RWKV7)
    return model


# ---- other namings of the same weights ----------------------------------------------------------


def unused_v(weights: Arrays) -> Arrays:
    """As the newer trainer writes it: with block 0's v0, v1, v2, which nothing uses."""
    C = weights["emb.weight"].shape[1]
    shapes = {"v0": (1, 1, C), "v1": (C, 3), "v2": (3, C)}
    return weights | {f"blocks.0.att.{n}": np.full(s, 9, np.float32) for n, s in shapes.items()}


def fla_names(weights: Arrays, *, stacked: bool = False) -> Arrays:
    """As flash-linear-attention and the Hugging Face repositories have it.

    stacked : the six mixes in one tensor x_x [6, C], as older files have them
    """
    top = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
    rooms = {"att": "attn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
    leaves = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    leaves |= {"ln_x": "g_norm"}
    low = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}
    out: Arrays = {}
    for name, array in weights.items():
        parts = name.split(".")
        flat = array.ravel() if array.shape[:2] == (1, 1) else array
        if parts[0] != "blocks":
            out[f"{top[parts[0]]}.{parts[1]}"] = flat
            continue
        leaf = parts[3]
        if parts[2] == "att":
            if leaf[0] in "wavg" and leaf[1:] in low:
                out[f"model.layers.{parts[1]}.attn.{leaf[0]}_lora.lora.{low[leaf[1:]]}"] = flat.T
                continue
            parts[3] = leaves.get(leaf, leaf)
        parts[:3] = "model.layers", parts[1], rooms.get(parts[2], parts[2])
        out[".".join(parts)] = flat
    return _stack_mixes(out, "model.layers.{}.attn.x_", "x", (6, -1)) if stacked else out


def web_rwkv_names(weights: Arrays) -> Arrays:
    """As web-rwkv's converter leaves them: BlinkDL's names, the low ranks transposed."""
    low = tuple(f".att.{j}{n}" for j in LOW_RANKS for n in (1, 2))
    return {n: a.T.copy() if n.endswith(low) else a for n, a in weights.items()}


def rwkv_cpp_names(weights: Arrays) -> Arrays:
    """As rwkv.cpp has it: web-rwkv's form, and the six mixes in one tensor x_rwkvag [6, 1, C]."""
    return _stack_mixes(web_rwkv_names(weights), "blocks.{}.att.x_", "rwkvag", (6, 1, -1))


def embedder_names(weights: Arrays, seed: int = 0) -> Arrays:
    """As EmbeddingRWKV has it: no LM head, three sentence heads, and what belongs to images."""
    rng = np.random.default_rng(seed)
    C = weights["emb.weight"].shape[1]
    out = {f"rwkv.{n}": a for n, a in weights.items() if n != "head.weight"}
    for task in ("cls", "sts", "retr"):
        head = f"head.{task}_head."
        for leaf, shape in (("fc1.weight", (C, C)), ("fc2.weight", (C, C)), ("norm.bias", (C,))):
            out[head + leaf] = (rng.standard_normal(shape) * C**-0.5).astype(np.float32)
        out[head + "norm.weight"] = rng.uniform(0.5, 1.5, C).astype(np.float32)
    return out | {
        "vit.embeddings.weight": np.ones((2, 2), np.float32),
        "proj.gate": np.ones(2, "f4"),
    }


def _stack_mixes(weights: Arrays, prefix: str, name: str, shape: tuple[int, ...]) -> Arrays:
    """The six tensors of every block as one; prefix has {} where the block's number is."""
    out = dict(weights)
    i = 0
    while prefix.format(i) + "r" in out:
        mixes = np.stack([out.pop(prefix.format(i) + j).ravel() for j in MIXES])
        out[prefix.format(i) + name] = mixes.reshape(shape)
        i += 1
    return out


# ---- rwkv.cpp's files ---------------------------------------------------------------------------


def read_rwkv_cpp(path: Path) -> Arrays:
    """The float32 tensors of a rwkv.cpp file, under its own names, dimensions in NumPy's order."""
    data = path.read_bytes()
    at, out = 24, {}  # after magic, version, V, C, L and the type of the file
    while at < len(data):
        ndim, length, kind = struct.unpack_from("<3I", data, at)
        assert kind == 0, f"{path} holds type {kind}: expected float32"
        shape = struct.unpack_from(f"<{ndim}I", data, at + 12)[::-1]
        at += 12 + 4 * ndim
        name = data[at : at + length].decode()
        array = np.frombuffer(data, "<f4", int(np.prod(shape)), at + length).reshape(shape)
        out[name] = array
        at += length + array.nbytes
    return out


def from_rwkv_cpp(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """rwkv.cpp's tensors under BlinkDL's names; a head of 64, as every released model has."""
    low = tuple(f".att.{j}{n}" for j in LOW_RANKS for n in (1, 2))
    out: Arrays = {}
    for name, array in tensors.items():
        if name.endswith("x_rwkvag"):
            out |= {name[:-6] + j: m[None] for j, m in zip(MIXES, array, strict=True)}
        elif name.endswith("r_k"):
            out[name] = array.reshape(-1, 64)
        else:
            out[name] = array.T.copy() if name.endswith(low) else array
    return out
