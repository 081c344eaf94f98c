"""RWKV-6 in float64 NumPy: the executable specification that the core is tested against.

Written from the equations of the official code (BlinkDL/RWKV-LM, RWKV-v6), for reading and not for
speed: one sequence, one token at a time where the recurrence is. Weights are a dict of arrays under
the names of the official .pth files. T tokens, C embedding, H heads, N head size, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]
LN_EPS = 1e-5
GROUP_NORM_EPS = 64e-5


class State(NamedTuple):
    """What is left of a past: att_x [L, C], ffn_x [L, C], wkv [L, H, N, N] (key, value)."""

    att_x: np.ndarray
    ffn_x: np.ndarray
    wkv: np.ndarray


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def shifted(a: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The row before each row of a [T, C]; `before` [C] for the first."""
    return np.concatenate([before[None], a[:-1]])


def time_mix(
    w: Weights, x: np.ndarray, att_x: np.ndarray, wkv: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [T, C] and the past to the change of x, the new att_x [C] and the new wkv [H, N, N]."""
    T, C = x.shape
    H, N = w["att.time_faaaa"].shape
    a = layer_norm(x, w["ln1.weight"], w["ln1.bias"], LN_EPS)
    d = shifted(a, att_x) - a
    z = np.tanh((a + d * w["att.time_maa_x"].ravel()) @ w["att.time_maa_w1"])
    low = np.einsum("tjr,jrc->jtc", z.reshape(T, 5, -1), w["att.time_maa_w2"])
    mixed = [
        a + d * (w[f"att.time_maa_{j}"].ravel() + m) for j, m in zip("wkvrg", low, strict=True)
    ]
    mixed_w, mixed_k, mixed_v, mixed_r, mixed_g = mixed
    r = (mixed_r @ w["att.receptance.weight"].T).reshape(T, H, N)
    k = (mixed_k @ w["att.key.weight"].T).reshape(T, H, N)
    v = (mixed_v @ w["att.value.weight"].T).reshape(T, H, N)
    g = mixed_g @ w["att.gate.weight"].T
    g = g * sigmoid(g)
    decay = w["att.time_decay"].ravel()
    decay = decay + np.tanh(mixed_w @ w["att.time_decay_w1"]) @ w["att.time_decay_w2"]
    decay = np.exp(-np.exp(decay)).reshape(T, H, N)
    y = np.empty((T, H, N))
    for t in range(T):
        kv = k[t][:, :, None] * v[t][:, None, :]
        y[t] = np.einsum("hk,hkv->hv", r[t], wkv + w["att.time_faaaa"][:, :, None] * kv)
        wkv = decay[t][:, :, None] * wkv + kv
    scale, shift = w["att.ln_x.weight"].reshape(H, N), w["att.ln_x.bias"].reshape(H, N)
    y = layer_norm(y, scale, shift, GROUP_NORM_EPS).reshape(T, C)
    return (y * g) @ w["att.output.weight"].T, a[-1], wkv


def channel_mix(w: Weights, x: np.ndarray, ffn_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [T, C] and the past to the change of x and the new ffn_x [C]."""
    b = layer_norm(x, w["ln2.weight"], w["ln2.bias"], LN_EPS)
    d = shifted(b, ffn_x) - b
    k = (b + d * w["ffn.time_maa_k"].ravel()) @ w["ffn.key.weight"].T
    k = np.maximum(k, 0.0) ** 2
    r = (b + d * w["ffn.time_maa_r"].ravel()) @ w["ffn.receptance.weight"].T
    return sigmoid(r) * (k @ w["ffn.value.weight"].T), b[-1]


def blocks_of(weights: Weights) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))


def fresh_state(weights: Weights) -> State:
    L, C = blocks_of(weights), weights["emb.weight"].shape[1]
    H, N = weights["blocks.0.att.time_faaaa"].shape
    return State(np.zeros((L, C)), np.zeros((L, C)), np.zeros((L, H, N, N)))


def forward(
    weights: Weights, ids: list[int], state: State | None = None
) -> tuple[np.ndarray, State]:
    """Token ids to the stream after each block and after ln_out [L+1, T, C], and the state."""
    w = {name: np.asarray(a, np.float64) for name, a in weights.items()}
    before = state or fresh_state(weights)
    after = State(*(np.array(a, np.float64) for a in before))
    x = layer_norm(w["emb.weight"][ids], w["blocks.0.ln0.weight"], w["blocks.0.ln0.bias"], LN_EPS)
    hidden = []
    for i in range(blocks_of(weights)):
        prefix = f"blocks.{i}."
        block = {name[len(prefix) :]: a for name, a in w.items() if name.startswith(prefix)}
        change, after.att_x[i], after.wkv[i] = time_mix(block, x, after.att_x[i], after.wkv[i])
        x = x + change
        change, after.ffn_x[i] = channel_mix(block, x, after.ffn_x[i])
        x = x + change
        hidden.append(x)
    hidden.append(layer_norm(x, w["ln_out.weight"], w["ln_out.bias"], LN_EPS))
    return np.stack(hidden), after


def pool(x: np.ndarray, kind: str) -> np.ndarray:
    """Rows [T, C] to one [C]; "weighted" weighs token t (from 1) by t."""
    T = len(x)
    position = np.arange(1, T + 1)
    match kind:
        case "mean":
            return x.mean(0)
        case "last":
            return x[-1]
        case "weighted":
            return position @ x / position.sum()
        case "max":
            return x.max(0)
    raise ValueError(kind)


def pooled(
    forward: Callable[[Weights, list[int]], tuple[np.ndarray, Any]],
    weights: Weights,
    ids: list[list[int]],
    kind: str,
) -> np.ndarray:
    """Each sequence's rows of every block and of the last norm, pooled: [S, L + 1, C]."""
    hidden = [forward(weights, sequence)[0] for sequence in ids]
    return np.stack([[pool(x, kind) for x in h] for h in hidden])
