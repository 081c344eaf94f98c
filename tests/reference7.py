"""RWKV-7 in float64 NumPy: the executable specification that the core is tested against.

Written from the equations of the official code (BlinkDL/RWKV-LM, RWKV-v7), for reading and not for
speed: one sequence, one token at a time where the recurrence is. Weights are a dict of arrays under
the names of the official .pth files. T tokens, C embedding, H heads, N head size, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from reference import (
    GROUP_NORM_EPS,
    LN_EPS,
    State,
    Weights,
    blocks_of,
    layer_norm,
    shifted,
    sigmoid,
)

NORM_FLOOR = 1e-12
LOG_DECAY = -np.exp(-0.5)  # a decay is exp(LOG_DECAY * sigmoid(.)): between 0.545 and 1


def low_rank(
    w: Weights,
    name: str,
    x: np.ndarray,
    activation: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """x [T, C] through the two thin matrices `name`1 [C, R] and `name`2 [R, C]."""
    z = x @ w[f"att.{name}1"]
    return (activation(z) if activation else z) @ w[f"att.{name}2"]


def time_mix(
    w: Weights, x: np.ndarray, att_x: np.ndarray, S: np.ndarray, v_first: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x [T, C] and the past to the change of x, the new att_x [C], the new S and v_first [T, C].

    S : [H, N, N], (value, key)
    v_first : what block 0 calls v; None in block 0 itself
    """
    T, C = x.shape
    H, N = w["att.r_k"].shape
    heads = T, H, N
    a = layer_norm(x, w["ln1.weight"], w["ln1.bias"], LN_EPS)
    d = shifted(a, att_x) - a
    x_r, x_w, x_k, x_v, x_a, x_g = (a + d * w[f"att.x_{j}"].ravel() for j in "rwkvag")
    r = x_r @ w["att.receptance.weight"].T
    k = x_k @ w["att.key.weight"].T
    v = x_v @ w["att.value.weight"].T
    decay = np.exp(LOG_DECAY * sigmoid(w["att.w0"].ravel() + low_rank(w, "w", x_w, np.tanh)))
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(w["att.v0"].ravel() + low_rank(w, "v", x_v))
    rate = sigmoid(w["att.a0"].ravel() + low_rank(w, "a", x_a))
    g = low_rank(w, "g", x_g, sigmoid)
    kk = (k * w["att.k_k"].ravel()).reshape(heads)
    kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), NORM_FLOOR)
    k = k * (1 + (rate - 1) * w["att.k_a"].ravel())
    r, k, v, decay, rate = (m.reshape(heads) for m in (r, k, v, decay, rate))
    y = np.empty(heads)
    for t in range(T):
        removed = np.einsum("hvk,hk->hv", S, -kk[t])
        S = S * decay[t][:, None, :]
        S = S + removed[:, :, None] * (kk[t] * rate[t])[:, None, :]
        S = S + v[t][:, :, None] * k[t][:, None, :]
        y[t] = np.einsum("hvk,hk->hv", S, r[t])
    scale, shift = w["att.ln_x.weight"].reshape(H, N), w["att.ln_x.bias"].reshape(H, N)
    y = layer_norm(y, scale, shift, GROUP_NORM_EPS)
    y = y + (r * k * w["att.r_k"]).sum(-1, keepdims=True) * v
    return (y.reshape(T, C) * g) @ w["att.output.weight"].T, a[-1], S, v_first


def channel_mix(w: Weights, x: np.ndarray, ffn_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [T, C] and the past to the change of x and the new ffn_x [C]."""
    b = layer_norm(x, w["ln2.weight"], w["ln2.bias"], LN_EPS)
    k = (b + (shifted(b, ffn_x) - b) * w["ffn.x_k"].ravel()) @ w["ffn.key.weight"].T
    return np.maximum(k, 0.0) ** 2 @ w["ffn.value.weight"].T, b[-1]


def fresh_state(weights: Weights) -> State:
    L, C = blocks_of(weights), weights["emb.weight"].shape[1]
    H, N = weights["blocks.0.att.r_k"].shape
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
    v_first = None
    for i in range(blocks_of(weights)):
        prefix = f"blocks.{i}."
        block = {name[len(prefix) :]: a for name, a in w.items() if name.startswith(prefix)}
        past = after.att_x[i], after.wkv[i], v_first
        change, after.att_x[i], after.wkv[i], v_first = time_mix(block, x, *past)
        x = x + change
        change, after.ffn_x[i] = channel_mix(block, x, after.ffn_x[i])
        x = x + change
        hidden.append(x)
    hidden.append(layer_norm(x, w["ln_out.weight"], w["ln_out.bias"], LN_EPS))
    return np.stack(hidden), after
