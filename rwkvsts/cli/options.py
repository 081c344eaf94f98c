"""Options that several commands have, and checks before anything is computed."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from .. import corpus, device
from ..embedder import NAMED_LAYERS, POOLING, Layer
from ..errors import DataError
from ..model import RWKV
from ..opening import highest
from ..tokenizer import KINDS


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, which of its layers, pooled how, and on what it runs."""
    parser.add_argument("--model", default="demo", help="file, folder, repository or demo")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument(
        "--tokenizer",
        choices=[*KINDS],
        default="world",
        help="of the texts: the model's own, the paper's, or an id a byte",
    )
    parser.add_argument(
        "--layers",
        type=layer_list,
        help="e.g. 1,3,5 or final; retr, sts or cls of an embedder; default: the model's own",
    )
    parser.add_argument("--pooling", choices=POOLING, default="mean", help="over a text's tokens")
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """What a model runs on, and the type of its weights and products."""
    parser.add_argument(
        "--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:1"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", *device.DTYPES),
        default="auto",
        help="of weights and products; auto: bfloat16 where the hardware multiplies it",
    )


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Which files of --model make the model, where it holds several."""
    parser.add_argument("--file", help="weight file in a folder or repository of several")
    parser.add_argument(
        "--vocabulary", help="of the tokenizer world; default: the file beside the weights"
    )


def add_text_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The texts and how they lie in their files; returns the group of such options."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="text (one a line), .jsonl, .csv, .tsv or .parquet, also .gz and .zst of them; "
        "- for standard input",
    )
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--input-format", choices=corpus.FORMATS, help="of all inputs; default: by their names"
    )
    group.add_argument("--column", default="text", help="that holds the texts; default: text")
    return group


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """How each text is read."""
    parser.add_argument("--prompt", help="put before each text, or around it where it holds {text}")
    parser.add_argument("--max-length", type=int, help="tokens after which a text is cut")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """How many threads a model uses."""
    parser.add_argument("--threads", type=int, help="of the CPU; default: all that may be used")


def load_model(args: argparse.Namespace) -> RWKV:
    """The model that the options above name, with no more blocks than its layers need."""
    return RWKV.from_pretrained(
        args.model,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        max_layer=highest(args.layers),
        file=args.file,
        vocabulary=args.vocabulary,
        threads=args.threads,
    )


def load_projection(path: Path | None, dim: int | None = None) -> corpus.Projection | None:
    """What --projection and --dim asked for, before anything is computed."""
    if path is None:
        if dim is not None:
            raise DataError(
                "--dim: fewer numbers are made by a projection; make one by rwkvsts fit and name "
                "it by --projection"
            )
        return None
    return corpus.Projection.load(path).narrow(width=dim)


def device_name(text: str) -> str:
    """The type of --device: a name that means something, whether or not there is such a device."""
    try:
        device.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def layer_list(text: str) -> tuple[Layer, ...]:
    """The type of --layers: numbers and names with commas between."""
    parts = [part.strip() for part in text.split(",")]
    named = {str(layer): layer for layer in NAMED_LAYERS}
    for part in parts:
        if part not in named and not part.isdecimal():
            raise argparse.ArgumentTypeError(
                f"{part!r} in {text!r}: expected layer numbers from 0, or final, as in 1,3,final"
            )
    return tuple(named[part] if part in named else int(part) for part in parts)


def output(text: str) -> str:
    """The type of --out: a name on this disk, ~ being the home folder."""
    if not text:  # as of a shell variable that is not set
        raise argparse.ArgumentTypeError("the name is empty; name a file or a folder")
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is an address; name a file or a folder on this machine, and copy it there"
        )
    return os.path.expanduser(text)


def output_path(text: str) -> Path:
    """The type of --out of those commands that write into one kind of place alone."""
    return Path(output(text))


def check_writable(folder: Path) -> None:
    """Make the folder if need be and try a file in it, before hours of work depend on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise DataError(
            f"--out: cannot write into {folder} ({why}); choose another folder"
        ) from None
