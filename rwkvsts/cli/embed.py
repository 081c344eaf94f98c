"""`rwkvsts embed`: texts in, embeddings out; a folder of shards, or one .npy file.

Promises that every input is read and checked before the model is loaded, and says on standard
error what runs, how far it is and what became of the rows.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import corpus
from ..errors import DataError
from ..model import RWKV
from ..progress import say
from .options import (
    add_file_options,
    add_model_options,
    add_reading_options,
    add_text_options,
    add_threads,
    check_writable,
    load_model,
    load_projection,
    output,
)
from .spread import spread

# Names that promise a format which is not written here.
FOREIGN = (
    *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".feather", ".npz"),
    *(".pt", ".pth", ".pkl", ".h5", ".hdf5", ".safetensors", ".gz", ".zst", ".zip"),
    *(".bin", ".dat", ".html", ".xml", ".xlsx", ".avro", ".orc", ".db", ".sqlite", ".mat"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Texts from files, folders, globs or standard input; one row a text out. --out NAME.npy "
        "makes one array, float32 [rows, layers, C], or [rows, C] for a single layer, as by "
        "default: that half-way up. Any other --out is a folder of Parquet shards with a manifest; "
        "started again after a crash, the same command goes on where it was."
    )
    inputs = add_text_options(parser)
    parser.add_argument("--out", required=True, type=output, help="folder, or .npy file, to write")
    add_model_options(parser)
    add_file_options(parser)
    add_reading_options(parser)
    parser.add_argument(
        "--projection", type=Path, metavar="FILE", help="to fewer numbers, made by rwkvsts fit"
    )
    parser.add_argument(
        "--dim", type=int, help="numbers of a projected row; default: what it was fitted for"
    )
    parser.add_argument("--normalize", action="store_true", help="scale every row to length 1")
    _add_row_options(inputs)
    _add_output_options(parser)
    parser.add_argument("--batch-tokens", type=int, help="tokens of a pass: memory against speed")
    add_threads(parser)
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on a Ray cluster: at this address, at RAY_ADDRESS, or a new one of this machine",
    )
    parser.set_defaults(run=run_embed)


def _add_row_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--id-column", help="that names a row in the output; default: its number")
    group.add_argument(
        "--keep", action="append", default=[], metavar="COLUMN", help="to copy; may be repeated"
    )
    group.add_argument(
        "--on-empty",
        choices=corpus.ON_EMPTY,
        default="error",
        help="a row without a text: error stops before anything is computed, skip leaves it out, "
        "null puts null in its place (NaN in .npy)",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--dtype-out", choices=("float32", "float16"), default="float32", help="of what is written"
    )
    group.add_argument(
        "--format",
        choices=("parquet", "npy"),
        default="parquet",
        help="of a folder's shards; npy puts the ids and kept columns in Parquet beside it",
    )
    group.add_argument("--shard-rows", type=int, help="rows of a shard; default: 256 MiB or 16384")


def run_embed(args: argparse.Namespace) -> None:
    """`rwkvsts embed`."""
    single = _is_file(args)
    out = Path(args.out)
    if not single:
        corpus.job_in(out)
    check_writable(out if out.is_dir() else out.resolve().parent)
    sources = corpus.find(args.inputs, args.input_format)
    _check_apart(out, sources, args.inputs)
    columns = corpus.Columns(args.column, args.id_column, tuple(args.keep))
    projection = load_projection(args.projection, args.dim)
    if args.ray is not None:
        spread(args, sources, columns, projection)
        return
    found = corpus.survey(sources, columns, args.on_empty)
    model = load_model(args)
    layers = args.layers or (model.default_layer,)
    options = corpus.Options(
        layers=layers,
        pooling=args.pooling,
        prompt=args.prompt,
        max_length=args.max_length,
        normalize=args.normalize,
        dtype=args.dtype_out,
        on_empty=args.on_empty,
        format=args.format,
        shard_rows=args.shard_rows,
        projection=projection and projection.narrow(layers),
    )
    _say_what_runs(model, options)
    embed = corpus.to_npy if single else corpus.to_folder
    counts = embed(model, found, out, options, args.batch_tokens)
    say(_summary(counts, options, out))


def _is_file(args: argparse.Namespace) -> bool:
    """Whether --out names one .npy file; a folder otherwise. Refuses what is neither."""
    name = Path(args.out)
    # A folder that is there already promises nothing: an earlier job may have been begun in it.
    if args.out == "-" or (name.suffix.lower() in FOREIGN and not name.is_dir()):
        raise DataError(
            f"--out: {args.out!r} is neither a .npy file nor a folder, which alone are written; "
            "name one of them"
        )
    if name.suffix.lower() != ".npy":
        if name.exists() and not name.is_dir():
            raise DataError(f"--out: {name} is a file; name a folder, or a .npy file")
        return False
    if name.exists() and not name.is_file():  # it would be replaced, even a device
        what = "a folder" if name.is_dir() else "no plain file"
        raise DataError(f"--out: {name} is {what}; give the name of a .npy file")
    if name.exists() and not os.access(name, os.W_OK):
        raise DataError(f"--out: {name} may not be written; give another name")
    for option, given in (
        ("--id-column", args.id_column),
        ("--keep", args.keep),
        ("--shard-rows", args.shard_rows),
        ("--format", args.format != "parquet"),
    ):
        if given:
            raise DataError(f"{option}: a .npy file holds embeddings alone; name a folder by --out")
    return True


def _check_apart(out: Path, sources: list[corpus.Source], inputs: list[str]) -> None:
    """Refuse an output that would replace an input, or become one when the job is started again."""
    for source in sources:
        name = "/dev/stdin" if source.name == "-" else source.name
        if out.is_file() and os.path.exists(name) and out.samefile(name):
            raise DataError(f"--out: {out} is the file of texts; give another name")
    for name in inputs if out.suffix.lower() != ".npy" else ():
        if os.path.isdir(name) and Path(name).resolve() in [out.resolve(), *out.resolve().parents]:
            raise DataError(
                f"--out: {out} lies in the folder of texts {name}; choose another place"
            )


def _say_what_runs(model: RWKV, options: corpus.Options) -> None:
    layers = ",".join(map(str, options.layers))
    say(
        f"rwkvsts: model {model.source} ({model.n_blocks} of {model.config.n_layer} blocks, "
        f"{model.width} wide), {model.device}, {model.dtype}; layers {layers}, "
        f"{options.pooling} pooling"
    )


def _summary(counts: corpus.Counts, options: corpus.Options, out: Path) -> str:
    parts = [f"rwkvsts: {out}: {counts.rows - counts.empty} texts, {counts.tokens} tokens"]
    if counts.empty:
        became = "left out" if options.on_empty == "skip" else "null"
        parts.append(f"{counts.empty} empty rows {became}")
    if counts.cut:
        parts.append(f"{counts.cut} texts cut at {options.max_length} tokens")
    return ", ".join(parts)
