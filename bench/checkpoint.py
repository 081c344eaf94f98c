"""Random RWKV-6 checkpoints of real sizes, for timing: values are noise, shapes and dtypes are not.

One block's numbers serve all blocks, so that making 3.2 GB takes seconds. Written as safetensors in
bfloat16, as released weights are. Beside them the lengths of the texts that all benches time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Size:
    """L blocks, C embedding, F feed-forward, R and D low ranks, V vocabulary, N head size."""

    name: str
    L: int
    C: int
    F: int
    R: int = 32
    D: int = 64
    V: int = 65536
    N: int = 64

    @property
    def flop(self) -> int:
        """Floating-point operations that the products of one block need for a token."""
        low = 2 * 5 * self.R * self.C + 2 * self.D * self.C
        return 2 * (6 * self.C * self.C + 2 * self.C * self.F + low)


FINCH_1B6 = Size("Finch-1B6", 24, 2048, 7168)
SMALL = Size("12 x 1024", 12, 1024, 3584)


def mrpc_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lengths as those of MRPC's sentences in World tokens: N(27, 8) in 6..70, int64 [count]."""
    return np.clip(rng.normal(27, 8, count).round().astype(int), 6, 70)


def floats(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float, about: float):
    """bfloat16 bits of normal numbers."""
    values = about + scale * rng.standard_normal(shape, dtype=np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def shapes_of_block(s: Size) -> dict[str, tuple[tuple[int, ...], float, float]]:
    """Name: shape, scale, mean. Scales keep the stream's size as training does."""
    flat, square, wide = (1, 1, s.C), (s.C, s.C), s.C**-0.5
    block = {
        f"{n}.{part}": ((s.C,), 0.1, float(part == "weight"))
        for n in ("ln1", "ln2", "att.ln_x")
        for part in ("weight", "bias")
    }
    block |= {f"att.time_maa_{j}": (flat, 0.3, 0.5) for j in "xwkvrg"}
    block |= {
        "att.time_maa_w1": ((s.C, 5 * s.R), wide, 0.0),
        "att.time_maa_w2": ((5, s.R, s.C), 0.05, 0.0),
        "att.time_decay": (flat, 1.5, -3.0),
        "att.time_decay_w1": ((s.C, s.D), wide, 0.0),
        "att.time_decay_w2": ((s.D, s.C), 0.05, 0.0),
        "att.time_faaaa": ((s.C // s.N, s.N), 0.5, 0.0),
        "ffn.time_maa_k": (flat, 0.3, 0.5),
        "ffn.time_maa_r": (flat, 0.3, 0.5),
        "ffn.key.weight": ((s.F, s.C), wide, 0.0),
        "ffn.receptance.weight": (square, wide, 0.0),
        "ffn.value.weight": ((s.C, s.F), 0.1 * s.F**-0.5, 0.0),
    }
    for n in ("receptance", "key", "value", "gate"):
        block[f"att.{n}.weight"] = (square, wide, 0.0)
    block["att.output.weight"] = (square, 0.2 * wide, 0.0)
    return block


def tensors(s: Size, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the checkpoint as bfloat16 bits, under BlinkDL's names."""
    rng = np.random.default_rng(seed)
    table = noise(rng, (s.V, s.C), 0.1, 0.0)
    yield "emb.weight", table
    yield "head.weight", table
    for name in ("blocks.0.ln0", "ln_out"):
        yield f"{name}.weight", noise(rng, (s.C,), 0.1, 1.0)
        yield f"{name}.bias", noise(rng, (s.C,), 0.1, 0.0)
    block = {name: noise(rng, *how) for name, how in shapes_of_block(s).items()}
    for i in range(s.L):
        for name, array in block.items():
            yield f"blocks.{i}.{name}", array


def write(path: Path, s: Size) -> None:
    """A safetensors file; left alone where it exists already."""
    if path.exists():
        return
    header, at = {}, 0
    for name, array in tensors(s):
        header[name] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors(s):
            file.write(array.data)
    part.rename(path)
