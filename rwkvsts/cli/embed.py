"""`rwkvsts embed`: the lines of a file in, a .npy file of their embeddings out."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..data.readers import decode_line
from ..errors import DataError
from ..files.writing import replacing
from ..model import RWKV
from ..progress import bar
from ..tokenizer import KINDS
from .options import add_model_options, check_writable

CHUNK = 4096  # texts held in memory, and between two steps of the bar, in `embed`


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "One text a line in, one row of a .npy file out: float32 [lines, layers, "
    parser.description += "C], or [lines, C] for a single layer, as by default: that half-way up."
    parser.add_argument("file", metavar="FILE", help="UTF-8, one text a line; - for standard input")
    parser.add_argument("--out", type=Path, required=True, help=".npy file to write")
    add_model_options(parser, [*KINDS])
    parser.add_argument("--batch-tokens", type=int, help="tokens of a pass: memory against speed")
    parser.set_defaults(run=run_embed, layers=None)


def run_embed(args: argparse.Namespace) -> None:
    """`rwkvsts embed`: two passes over the file, so that no more than a chunk is held at a time."""
    if args.out.exists() and not args.out.is_file():  # it would be replaced, even /dev/null
        what = "a folder" if args.out.is_dir() else "no plain file"
        raise DataError(f"--out: {args.out} is {what}; give the name of a .npy file")
    check_writable(args.out.parent)
    with _opened(args.file) as file:
        name = "/dev/stdin" if args.file == "-" else args.file
        if args.out.exists() and args.out.samefile(name):
            raise DataError(f"--out: {args.out} is the file of texts; give another name")
        count = sum(1 for _ in _texts(file, args.file))
        if count == 0:
            raise DataError(f"{args.file}: there is no text; give one text a line")
        # None, the layer half-way up, lies in a depth that is not known yet.
        some = args.layers is not None and "final" not in args.layers
        model = RWKV.from_pretrained(
            args.model,
            revision=args.revision,
            device=args.device,
            dtype=args.dtype,
            tokenizer=args.tokenizer,
            max_layer=max(args.layers) if some else None,
        )
        with replacing(args.out) as part:
            _embed(model, _texts(file, args.file), count, part, args)


def _embed(
    model: RWKV, texts: Iterator[str], count: int, path: Path, args: argparse.Namespace
) -> None:
    """Write the embeddings of `count` texts to a .npy file, a chunk at a time."""
    layers = None if args.layers is None else list(args.layers)
    if layers is not None and len(layers) == 1:
        layers = layers[0]
    shape = (count, *([len(layers)] if isinstance(layers, list) else []), model.width)
    # A full disk under a memory map ends the process instead of raising.
    free, wanted = shutil.disk_usage(path.parent).free, 4 * int(np.prod(shape))
    if wanted > free:
        raise OSError(f"{args.out}: {wanted} bytes wanted, {free} free on its disk")
    rows: NDArray[np.float32] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with bar(total=count, unit=" texts") as done:
        start = 0
        while chunk := list(islice(texts, CHUNK)):
            model.encode(
                chunk,
                layers=layers,
                pooling=args.pooling,
                batch_tokens=args.batch_tokens,
                show_progress=False,
                out=rows[start : start + len(chunk)],
            )
            start += len(chunk)
            done.update(len(chunk))


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """The file of texts, at its start; a pipe is copied to disk first, because it is read twice."""
    if name == "-" and sys.stdin is None:
        raise DataError("-: standard input is closed; give a file or pipe texts in")
    try:
        source = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}); check the name") from None
    with ExitStack() as stack:
        if name != "-":
            stack.enter_context(source)
            if source.seekable():
                yield source
                return
        spool = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(source, spool)
        yield spool


def _texts(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a file, from its start, without their ends; each must hold text."""
    file.seek(0)
    for line, raw in enumerate(file, 1):
        text = decode_line(name, line, raw)
        if not text:
            raise DataError(f"{name}, line {line}: expected a text, found none; remove the line")
        yield text
