"""Names of tensors: what a file calls them, and how their numbers lie in it, to BlinkDL's form.

One table for each naming in use: BlinkDL's own (which RWKV-7 embedders put behind `rwkv.`), Hugging
Face's of RWKV-6, flash-linear-attention's of RWKV-6 and RWKV-7 (also that of the RWKV7-Goose
repositories), web-rwkv's, rwkv.cpp's. Assumes names and shapes as a file states them. Promises
that a name of no table comes through unchanged, for the core to judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .layout import refusal

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One of BlinkDL's tensors, as it is had from a tensor of a file.

    name, shape : BlinkDL's
    take : the file's array to this one, which may be a view of it
    """

    name: str
    shape: Shape
    take: Callable[[np.ndarray], np.ndarray]


# ---- ways in which a tensor lies in a file ------------------------------------------------------

# From a file's shape to the parts that the tensor holds. ValueError: what the shape should be.
Way = Callable[[Shape], list[Part]]


def as_it_is(name: str) -> Way:
    return lambda shape: [Part(name, shape, lambda a: a)]


def transposed(name: str) -> Way:
    """The last two axes the other way round."""

    def parts(shape: Shape) -> list[Part]:
        if len(shape) < 2:
            raise ValueError("at least 2 dimensions")
        return [Part(name, (*shape[:-2], shape[-1], shape[-2]), lambda a: a.swapaxes(-1, -2))]

    return parts


def stacked(*names: str) -> Way:
    """Several tensors along the first axis."""

    def row(name: str, i: int, shape: Shape) -> Part:
        return Part(name, shape, lambda a: a[i])

    def parts(shape: Shape) -> list[Part]:
        if len(shape) < 2 or shape[0] != len(names):
            raise ValueError(f"{len(names)} rows")
        return [row(name, i, shape[1:]) for i, name in enumerate(names)]

    return parts


FLA_TO_BLINKDL = (1, 2, 3, 0, 4)  # where w, k, v, r, g stand among r, w, k, v, g


def mix_down(name: str) -> Way:
    """fla's [5R, C], groups in the order r, w, k, v, g, to [C, 5R] in the order w, k, v, r, g."""

    def parts(shape: Shape) -> list[Part]:
        if len(shape) != 2 or shape[0] % 5:
            raise ValueError("2 dimensions, the first a multiple of 5")
        rows, C = shape
        groups = 5, rows // 5, C
        return [
            Part(name, (C, rows), lambda a: a.reshape(groups)[[*FLA_TO_BLINKDL]].reshape(shape).T)
        ]

    return parts


def mix_up(name: str) -> Way:
    """fla's [C, 5R], groups in the order r, w, k, v, g, to [5, R, C] in the order w, k, v, r, g."""

    def parts(shape: Shape) -> list[Part]:
        if len(shape) != 2 or shape[1] % 5:
            raise ValueError("2 dimensions, the second a multiple of 5")
        C, columns = shape
        groups = 5, columns // 5, C
        return [Part(name, groups, lambda a: a.T.reshape(groups)[[*FLA_TO_BLINKDL]])]

    return parts


# ---- the tables ---------------------------------------------------------------------------------

HF_PARTS = {"attention": "att", "feed_forward": "ffn", "pre_ln": "ln0"}

FLA_TOP = {"embeddings": "emb", "norm": "ln_out", "lm_head": "head"}
FLA_PARTS = {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2", "attn.g_norm": "att.ln_x"}
FLA_PARTS |= {"attn": "att"}  # after the longer one
FLA_BLOCK: dict[str, Way] = {
    # RWKV-6 and RWKV-7
    "attn.o_proj.weight": as_it_is("att.output.weight"),
    # RWKV-6
    "attn.r_proj.linear.weight": as_it_is("att.receptance.weight"),
    "attn.k_proj.linear.weight": as_it_is("att.key.weight"),
    "attn.v_proj.linear.weight": as_it_is("att.value.weight"),
    "attn.g_proj.linear.weight": as_it_is("att.gate.weight"),
    "attn.bonus": as_it_is("att.time_faaaa"),
    "attn.x_proj.0.mu": as_it_is("att.time_maa_x"),
    "attn.x_proj.0.linear.weight": mix_down("att.time_maa_w1"),
    "attn.x_proj.2.weight": mix_up("att.time_maa_w2"),
    "attn.x_bias": stacked(*(f"att.time_maa_{j}" for j in "rwkvg")),
    "attn.w_proj.linear.lora.0.weight": transposed("att.time_decay_w1"),
    "attn.w_proj.linear.lora.2.weight": transposed("att.time_decay_w2"),
    "attn.w_proj.linear.lora.2.bias": as_it_is("att.time_decay"),
    "ffn.key.linear.weight": as_it_is("ffn.key.weight"),
    "ffn.key.mu": as_it_is("ffn.time_maa_k"),
    "ffn.receptance.linear.weight": as_it_is("ffn.receptance.weight"),
    "ffn.receptance.mu": as_it_is("ffn.time_maa_r"),
    # RWKV-7
    "attn.r_proj.weight": as_it_is("att.receptance.weight"),
    "attn.k_proj.weight": as_it_is("att.key.weight"),
    "attn.v_proj.weight": as_it_is("att.value.weight"),
    # RWKV-7: the mixes in one tensor in older files, low ranks as products with a bias
    "attn.x_x": stacked(*(f"att.x_{j}" for j in "rwkvag")),
    **{f"attn.{j}_lora.lora.0.weight": transposed(f"att.{j}1") for j in "wavg"},
    **{f"attn.{j}_lora.lora.2.weight": transposed(f"att.{j}2") for j in "wavg"},
    **{f"attn.{j}_lora.lora.2.bias": as_it_is(f"att.{j}0") for j in "wav"},
}

# web-rwkv's RWKV-6; its RWKV-5 has some of these names too, so the file must be known to be RWKV-6.
WEB_RWKV_6: dict[str, Way] = {
    "att.time_first": as_it_is("att.time_faaaa"),
    "att.time_mix_w1": transposed("att.time_maa_w1"),
    "att.time_mix_w2": transposed("att.time_maa_w2"),
    "att.time_decay_w1": transposed("att.time_decay_w1"),
    "att.time_decay_w2": transposed("att.time_decay_w2"),
    **{f"att.time_mix_{j}": as_it_is(f"att.time_maa_{j}") for j in "xwkvrg"},
    **{f"ffn.time_mix_{j}": as_it_is(f"ffn.time_maa_{j}") for j in "kr"},
}
ONLY_WEB_RWKV_6 = ".att.time_mix_w1"

# RWKV-7 of web-rwkv and rwkv.cpp: BlinkDL's names, but the low ranks [R, C] [C, R].
LOW_RANKS_7: dict[str, Way] = {
    f"att.{j}{n}": transposed(f"att.{j}{n}") for j in "wavg" for n in (1, 2)
}
RWKV_CPP_7: dict[str, Way] = {"att.x_rwkvag": stacked(*(f"att.x_{j}" for j in "rwkvag"))}


# ---- names of a file ----------------------------------------------------------------------------

FLA_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)")
WRAPPERS = re.compile(r"\A(?:(?:module|model|base_model|_forward_module)\.)+")
EMBEDDING = re.compile(r"((?:(?!blocks\.|layers\.)\w+\.)*?)(?:rwkv\.)?(?:emb|embeddings)\.weight")
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


class Naming:
    """The tables that fit the tensors of one model, from all its names and shapes."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        ours = {canonical_name(name): shape for name, shape in shapes.items()}
        self._block: dict[str, Way] = dict(RWKV_CPP_7)
        self.origin: str | None = None  # whose naming it is, where it is not BlinkDL's own
        layers = filter(None, map(FLA_LAYER.fullmatch, shapes))
        if any(layer[2] in FLA_BLOCK for layer in layers):
            self.origin = "flash-linear-attention"
        if any(name.endswith(ONLY_WEB_RWKV_6) for name in ours):
            self.origin = "web-rwkv"
            self._block |= WEB_RWKV_6
        if _low_ranks_turned(ours):
            self._block |= LOW_RANKS_7

    def parts(self, where: str, name: str, shape: Shape) -> list[Part]:
        """What a file's tensor holds.

        where : file and tensor, for the CheckpointError of a shape that cannot hold it
        """
        if layer := FLA_LAYER.fullmatch(name):
            block, leaf = f"blocks.{layer[1]}.", layer[2]
            way = FLA_BLOCK.get(leaf) or as_it_is(_renamed(leaf, FLA_PARTS))
        else:
            name = canonical_name(name)
            inner = BLOCK.fullmatch(name)
            block, leaf = (f"blocks.{inner[1]}.", inner[2]) if inner else ("", name)
            way = self._block.get(leaf, as_it_is(leaf)) if inner else as_it_is(name)
        try:
            found = way(shape)
        except ValueError as error:
            raise refusal(where, str(error), f"shape {list(shape)}") from error
        return [Part(block + part.name, part.shape, part.take) for part in found]


def unwrapped(name: str) -> str:
    """A tensor's name without what wrappers of a model put before it, or torch.compile into it.

    `module._orig_mod.blocks.0.ln1.weight` is `blocks.0.ln1.weight`.
    """
    return WRAPPERS.sub("", name.replace("_orig_mod.", ""))


def prefixes(names: Iterable[str]) -> list[str]:
    """What stands before the tensors of each model among unwrapped names: `student.`, or nothing.

    A program that holds a model as an attribute saves it so; the embedding tells how it is called.
    """
    found = filter(None, map(EMBEDDING.fullmatch, names))
    return sorted({embedding[1] for embedding in found})


def canonical_name(name: str) -> str:
    """BlinkDL's name of a tensor that lies as BlinkDL has it; any other is kept as it is.

    `rwkv.blocks.0.pre_ln.weight` is `blocks.0.ln0.weight`, `rwkv.embeddings.weight` `emb.weight`.
    """
    top = name.removeprefix("model.")
    if top.split(".")[0] in FLA_TOP:
        return _renamed(top, FLA_TOP)
    parts = name.removeprefix("rwkv.").split(".")
    if parts[0] == "embeddings":
        parts[0] = "emb"
    elif parts[0] == "blocks" and len(parts) > 2:
        parts[2] = HF_PARTS.get(parts[2], parts[2])
    return ".".join(parts)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """The name with the start that the table has, a whole number of its parts, replaced."""
    for theirs, ours in table.items():
        if name.startswith(theirs + "."):
            return ours + name[len(theirs) :]
    return name


def _low_ranks_turned(shapes: Mapping[str, Shape]) -> bool:
    """Whether the low ranks of RWKV-7 lie [R, C] [C, R]: rwkv.cpp's do, others' shapes tell."""
    if any(name.endswith(".x_rwkvag") for name in shapes):
        return True
    C = (shapes.get("emb.weight") or (0,))[-1]
    down = [shape for name, shape in shapes.items() if re.search(r"\.att\.[wavg]1$", name)]
    return any(len(s) == 2 and s[0] != C and s[1] == C for s in down)
