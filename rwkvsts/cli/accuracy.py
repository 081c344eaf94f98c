"""`rwkvsts info MODEL --accuracy FILE`: what a dtype costs on texts of one's own, layer by layer.

Assumes a file of UTF-8, a text a line. Promises that the two models are not in memory together, and
that float32 is the CPU's: what everything else is measured against.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import device
from ..data.readers import decode_line, read_bytes
from ..errors import DataError
from ..model import RWKV


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("accuracy")
    group.add_argument(
        "--accuracy",
        type=Path,
        metavar="FILE",
        help="texts, one a line: print how near MODEL's rows stay to those in float32",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", *device.DTYPES),
        default="auto",
        help="that is compared with float32; auto: what --device takes",
    )
    group.add_argument("--device", default="auto", help="that runs it: auto, cpu, cuda, cuda:1")


def report(args: argparse.Namespace) -> Iterator[str]:
    """The table: by layer the lowest and the median cosine over the texts, mean-pooled.

    Raises
    ------
    DataError : the file has no text or cannot be read, or there is nothing to compare
    """
    choice = device.choose(args.device, args.dtype)
    if choice == device.Choice(None, "float32"):
        raise DataError(
            "--accuracy: that is float32 on the CPU, which is compared with; give --dtype, as in "
            "--dtype bfloat16"
        )
    texts = list(_texts(args.accuracy))
    exact, _ = _rows(args, "cpu", "float32", texts)
    found, layers = _rows(args, choice.device, choice.dtype, texts)
    near = (exact * found).sum(-1)
    what = f"{choice.device} {choice.dtype} against float32"
    yield f"{what}, cosine over {len(texts)} texts, mean-pooled"
    yield "layer    lowest    median"
    for i, layer in enumerate(layers):
        yield f"{layer:>5}  {near[:, i].min():.6f}  {np.median(near[:, i]):.6f}"


def _texts(path: Path) -> Iterator[str]:
    """Lines that are not blank."""
    some = False
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        text = decode_line(path, number, line).strip("\r")
        if text.strip():
            some = True
            yield text
    if not some:
        raise DataError(f"{path}: no text; give one a line")


def _rows(
    args: argparse.Namespace, where: str, dtype: str, texts: list[str]
) -> tuple[NDArray[np.float64], tuple[object, ...]]:
    """Rows of length 1, [texts, layers, C], and the layers."""
    model = RWKV.from_pretrained(args.model, device=where, dtype=dtype, file=args.file)
    rows = model.encode(texts, layers=model.layers).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths), model.layers
