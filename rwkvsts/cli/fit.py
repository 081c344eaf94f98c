"""`rwkvsts fit`: a projection to fewer numbers, learned from a sample of texts, into a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from .. import corpus
from ..corpus.blocks import cut
from ..errors import DataError
from ..progress import say
from .options import (
    add_file_options,
    add_model_options,
    add_reading_options,
    add_text_options,
    add_threads,
    check_writable,
    load_model,
    output_path,
)

ROWS = 4096  # read at a time


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Learn from a sample of texts how their embeddings are projected to fewer numbers: a "
        "whitening, cut to the directions of greatest variance. rwkvsts embed --projection and "
        "rwkvsts serve --projection apply it, for the same model, layers, pooling and prompt."
    )
    add_text_options(parser)
    parser.add_argument("--out", required=True, type=output_path, help=".npz file to write")
    parser.add_argument("--dim", required=True, type=int, help="numbers of a projected row")
    parser.add_argument(
        "--texts", type=int, default=10_000, help="at most so many, drawn from all by chance"
    )
    add_model_options(parser)
    add_file_options(parser)
    add_reading_options(parser)
    add_threads(parser)
    parser.set_defaults(run=run_fit)


def run_fit(args: argparse.Namespace) -> None:
    """`rwkvsts fit`."""
    if args.out.suffix != ".npz" or args.out.is_dir():
        raise DataError(f"--out: {args.out}: expected the name of a .npz file")
    if not 1 <= args.dim < args.texts:
        raise DataError(
            f"--dim {args.dim} of at most {args.texts} texts (--texts): expected one number or "
            "more, and more texts than numbers"
        )
    check_writable(args.out.parent)
    columns = corpus.Columns(args.column)
    found = corpus.survey(corpus.find(args.inputs, args.input_format), columns, "skip")
    texts = list(_sample(found, args.texts))
    if len(texts) <= args.dim:
        raise DataError(f"--dim {args.dim}: {len(texts)} texts were found; it takes more of them")
    model = load_model(args)
    if args.dim > model.width:
        raise DataError(f"--dim {args.dim}: expected 1 .. {model.width}, which this model gives")
    try:
        fitted = corpus.fit(
            model, texts, args.dim, args.layers, args.pooling, args.prompt, args.max_length
        )
    except ValueError as error:
        raise DataError(f"fit: {error}") from None
    fitted.save(args.out)
    layers = ",".join(map(str, fitted.layers))
    say(
        f"rwkvsts: {args.out}: {model.width} numbers to {fitted.width}, of layers {layers} of "
        f"{model.source}, learned from {len(texts)} texts"
    )


def _sample(found: corpus.Survey, count: int) -> Iterator[str]:
    """So many texts, or all that are there, the same in every call."""
    there = sum(found.rows) - found.empty
    chosen = np.zeros(there, bool)
    chosen[np.random.default_rng(0).permutation(there)[:count]] = True
    wanted = iter(chosen)
    for table in cut(found, 0, ROWS, max(sum(found.rows), 1)):
        for text in table.column(found.columns.text).to_pylist():
            if text and next(wanted):
                yield text
