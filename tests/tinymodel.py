"""Random RWKV-6 models of any size, every term exercised, loaded as a user's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from makecheckpoint import bf16, write_safetensors

from rwkvsts import RWKV6, _core

FEATURES = _core.cpu_features()
SETS = ("portable", "avx2", "avx512", "avx512bf16", "amx")  # of instructions


def random_weights(
    seed: int = 0,
    *,
    L: int = 3,
    C: int = 64,
    N: int = 64,
    F: int = 96,
    R: int = 8,
    D: int = 12,
    V: int = 100,
) -> dict[str, np.ndarray]:
    """Weights whose every term matters: no vector is constant, decays are slow and fast."""
    rng = np.random.default_rng(seed)
    H = C // N

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
        for name in ("att.time_maa_" + j for j in "xwkvrg"):
            w[b + name] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        for name in ("ffn.time_maa_k", "ffn.time_maa_r"):
            w[b + name] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        w[b + "att.time_maa_w1"] = normal(C, 5 * R, scale=C**-0.5)
        w[b + "att.time_maa_w2"] = normal(5, R, C, scale=0.3 * R**-0.5)
        w[b + "att.time_decay"] = rng.uniform(-6, 1, (1, 1, C)).astype(np.float32)
        w[b + "att.time_decay_w1"] = normal(C, D, scale=C**-0.5)
        w[b + "att.time_decay_w2"] = normal(D, C, scale=0.5 * D**-0.5)
        w[b + "att.time_faaaa"] = normal(H, N, scale=0.5)
        for name in ("receptance", "key", "value", "gate", "output"):
            w[f"{b}att.{name}.weight"] = normal(C, C, scale=C**-0.5)
        w[b + "ffn.key.weight"] = normal(F, C, scale=C**-0.5)
        w[b + "ffn.receptance.weight"] = normal(C, C, scale=C**-0.5)
        w[b + "ffn.value.weight"] = normal(C, F, scale=F**-0.5)
    return w


def exact_in_bf16(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What bfloat16 leaves of weights, in float32: a kernel and the reference then see the same."""
    return {n: (bf16(a).astype(np.uint32) << 16).view(np.float32) for n, a in weights.items()}


def random_ids(seed: int, lengths: list[int], V: int = 100) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, n).tolist() for n in lengths]


def load(folder: Path, weights: dict[str, np.ndarray], **options: Any) -> RWKV6:
    """The package's model of these weights, through a file as a user's would be."""
    path = folder / "model.safetensors"
    write_safetensors(path, weights)
    return RWKV6.from_pretrained(path, **{"device": "cpu", "tokenizer": None, **options})


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest ||found - expected|| / ||expected|| over the rows."""
    difference = np.linalg.norm(found - expected, axis=-1)
    return float(np.max(difference / np.linalg.norm(expected, axis=-1)))
