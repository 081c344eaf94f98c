"""The command line: `rwkvsts study | embed | info`.

Promises that inputs and the output folder are checked before anything is computed; that an error
is one line on stderr, with status 2 for a wrong command line and 1 for all else (130 for Ctrl-C);
that a reader who closes the pipe ends it quietly, with status 141 as from SIGPIPE; and that no
half-written file is left under its final name.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import __version__, datasets, device, report, study
from ._core import cpu_features
from .errors import DataError, DeviceError
from .model import PAPER_LAYERS, POOLING, RWKV6, Layer
from .progress import bar
from .tokenizer import KINDS

BOTH = ("gpt2", "world")  # first the one that may fail: the vocabulary comes with the weights
CHUNK = 4096  # texts held in memory, and between two steps of the bar, in `embed`
REAL = (
    "rwkvsts study --model RWKV/v6-Finch-1B6-HF --tokenizer both --task mrpc "
    "--glove glove.6B.50d.txt --out results"
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()  # here, where what goes wrong can still be told
    except KeyboardInterrupt:
        print("rwkvsts: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 141
    except Exception as error:
        if args.debug:
            raise
        print(f"rwkvsts: {_one_line(error)}", file=sys.stderr)
        _drop_stdout()
        return 1
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _drop_stdout() -> None:
    """Flush standard output, or send what it cannot take nowhere: the exit would complain again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rwkvsts", description="RWKV-6 sentence embeddings and their study.")
    parser.add_argument("--version", action="version", version=f"rwkvsts {__version__}")
    commands = parser.add_subparsers(required=True, metavar="study | embed | info")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    _add_study(commands.add_parser("study", parents=[common], help="run the paper's experiment"))
    _add_embed(commands.add_parser("embed", parents=[common], help="embed the lines of a file"))
    info = commands.add_parser("info", parents=[common], help="versions, devices, a model's sizes")
    info.add_argument("model", nargs="?", metavar="MODEL", help="file, folder, repository or demo")
    info.set_defaults(run=run_info)
    return parser


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.description = "Spearman by layer against word overlap and GloVe. Without options: the "
    parser.description += "bundled model, pairs and word vectors."
    _add_model_options(parser, [*KINDS, "both"])
    parser.add_argument("--task", choices=[*datasets.DATA_SETS], default="demo")
    parser.add_argument(
        "--split", action="append", help="e.g. 'train[:1000]'; may be repeated; default: the usual"
    )
    parser.add_argument("--data", type=Path, help="folder of data sets; default: from the hub")
    parser.add_argument("--glove", type=Path, help="GloVe text file, .gz too; default: bundled")
    parser.add_argument("--out", type=Path, help="folder to write table and plot into")
    parser.set_defaults(run=run_study)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    parser.description = "One text a line in, one row of a .npy file out: float32 [lines, layers, "
    parser.description += "C], or [lines, C] for a single layer."
    parser.add_argument("file", metavar="FILE", help="UTF-8, one text a line; - for standard input")
    parser.add_argument("--out", type=Path, required=True, help=".npy file to write")
    _add_model_options(parser, [*KINDS])
    parser.add_argument("--batch-tokens", type=int, help="tokens of a pass: memory against speed")
    parser.set_defaults(run=run_embed)


def _add_model_options(parser: argparse.ArgumentParser, tokenizers: list[str]) -> None:
    parser.add_argument("--model", default="demo", help="file, folder, repository or demo")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--tokenizer", choices=tokenizers, default="world")
    parser.add_argument("--layers", type=_layers, default=PAPER_LAYERS, help="e.g. 1,3,5 or final")
    parser.add_argument("--pooling", choices=POOLING, default="mean")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", *device.DTYPES), default="auto")


def _layers(text: str) -> tuple[Layer, ...]:
    parts = [part.strip() for part in text.split(",")]
    layers: list[Layer] = []
    for part in parts:
        if part == "final":
            layers.append("final")
        elif part.isdecimal():
            layers.append(int(part))
        else:
            raise argparse.ArgumentTypeError(
                f"{part!r} in {text!r}: expected layer numbers from 0, or final, as in 1,3,final"
            )
    return tuple(layers)


def run_study(args: argparse.Namespace) -> None:
    """`rwkvsts study`."""
    bundled = (args.model, args.task) == ("demo", "demo")
    if args.data is not None and args.task == "demo":
        raise DataError("--data: the pairs of task demo are bundled; name a task, as --task mrpc")
    if bundled:
        print(
            "Bundled demonstration: a small RWKV-6 and sentence pairs that come with rwkvsts. The "
            "figures are real,\nthe model is not the paper's, and the pairs were written so that "
            "counting shared words does not help.",
            flush=True,
        )
    else:
        print(f"{args.model} on {args.task}", flush=True)
    if args.out is not None:
        _check_writable(args.out)
    if args.data is not None and not args.data.is_dir():
        raise DataError(f"--data: no folder {args.data}; give the folder that holds the data sets")
    config = study.StudyConfig(
        model=args.model,
        task=args.task,
        tokenizers=BOTH if args.tokenizer == "both" else (args.tokenizer,),
        layers=args.layers,
        splits=tuple(args.split) if args.split else None,
        pooling=args.pooling,
        data=args.data,
        glove=args.glove,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
    )
    result = study.run(config)
    # Written first: standard output may be a pipe that has closed by now.
    written = [] if args.out is None else report.write(result, args.out)
    print(report.text(result))
    if written:
        print("Written:", ", ".join(map(str, written)))
    if bundled:
        print(f"The real one: {REAL}")


def run_embed(args: argparse.Namespace) -> None:
    """`rwkvsts embed`: two passes over the file, so that no more than a chunk is held at a time."""
    if args.out.exists() and not args.out.is_file():  # it would be replaced, even /dev/null
        what = "a folder" if args.out.is_dir() else "no plain file"
        raise DataError(f"--out: {args.out} is {what}; give the name of a .npy file")
    _check_writable(args.out.parent)
    with _opened(args.file) as file:
        name = "/dev/stdin" if args.file == "-" else args.file
        if args.out.exists() and args.out.samefile(name):
            raise DataError(f"--out: {args.out} is the file of texts; give another name")
        count = sum(1 for _ in _texts(file, args.file))
        if count == 0:
            raise DataError(f"{args.file}: there is no text; give one text a line")
        numbers = [layer for layer in args.layers if layer != "final"]
        model = RWKV6.from_pretrained(
            args.model,
            revision=args.revision,
            device=args.device,
            dtype=args.dtype,
            tokenizer=args.tokenizer,
            max_layer=max(numbers) if len(numbers) == len(args.layers) else None,
        )
        with report.replacing(args.out) as part:
            _embed(model, _texts(file, args.file), count, part, args)


def _embed(
    model: RWKV6, texts: Iterator[str], count: int, path: Path, args: argparse.Namespace
) -> None:
    """Write the embeddings of `count` texts to a .npy file, a chunk at a time."""
    one = len(args.layers) == 1
    layers = args.layers[0] if one else list(args.layers)
    shape = (count, *(() if one else (len(args.layers),)), model.config.n_embd)
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
        text = datasets.decode_line(name, line, raw)
        if not text:
            raise DataError(f"{name}, line {line}: expected a text, found none; remove the line")
        yield text


def _check_writable(folder: Path) -> None:
    """Make the folder if need be and try a file in it, before hours of work depend on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"--out: cannot write into {folder} ({error.strerror}); choose another folder"
        ) from None


def run_info(args: argparse.Namespace) -> None:
    """`rwkvsts info`: versions, what the processor and the GPU offer, and a model's sizes."""
    facts: dict[str, object] = {**study.machine_facts()}
    for package in ("huggingface_hub", "tokenizers", "pyarrow", "matplotlib"):
        facts[package] = study.version(package)
    features = [name for name, there in cpu_features().items() if there]
    facts["instruction sets"] = ", ".join(features) or "portable"
    try:
        gpu = device.query_cuda()
        facts["cuda"] = (
            f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}, "
            f"{gpu.free >> 20} of {gpu.total >> 20} MiB free"
        )
    except DeviceError as error:
        facts["cuda"] = str(error)
    facts["auto"] = " ".join(device.choose("auto", "auto"))
    if args.model is not None:
        # One block tells the sizes of all.
        model = RWKV6.from_pretrained(args.model, device="cpu", tokenizer=None, max_layer=0)
        facts |= {"model": model.source, "revision": model.revision, **asdict(model.config)}
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {'-' if value is None else value}")
