"""`rwkvsts embed --ray`: the same command over the machines of a Ray cluster.

Ray reads, schedules, restarts and writes; what an option means is as without it. An option that Ray
has no part for is refused.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from .. import corpus
from ..corpus.readers import check_quotes, read
from ..errors import DataError

READ = ("jsonl", "csv", "parquet")


def spread(
    args: argparse.Namespace,
    sources: list[corpus.Source],
    columns: corpus.Columns,
    projection: corpus.Projection | None,
) -> None:
    """Embed the sources into the folder args.out."""
    form = _check(args, sources, columns)
    try:
        import ray

        from ..integrations.ray import to_folder
    except ImportError as error:
        raise DataError(f"--ray: {error}; pip install 'rwkvsts[ray]'") from None
    ray.init(address=args.ray or None, ignore_reinit_error=True)
    options = corpus.Options(
        layers=args.layers,
        pooling=args.pooling,
        prompt=args.prompt,
        max_length=args.max_length,
        normalize=args.normalize,
        dtype=args.dtype_out,
        on_empty=args.on_empty,
        projection=projection and projection.narrow(args.layers),
    )
    cuda = args.device.startswith("cuda")
    if args.device == "auto":
        cuda = ray.cluster_resources().get("GPU", 0) > 0
    to_folder(
        _dataset(form, [os.path.abspath(source.name) for source in sources], columns),
        args.out,
        _anywhere(args.model),
        columns,
        options,
        gpus=1 if cuda else 0,
        threads=args.threads or 1,
        device="cuda" if cuda else "cpu",
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        revision=args.revision,
        file=args.file,
        vocabulary=args.vocabulary,
    )


def _check(args: argparse.Namespace, sources: list[corpus.Source], columns: corpus.Columns) -> str:
    """The one format of the inputs; refuses what Ray has no part for or would tell by traces."""
    for option, given in (
        ("--format npy", args.format != "parquet"),
        ("--shard-rows", args.shard_rows),
        ("--batch-tokens", args.batch_tokens),
        (f"--device {args.device}", args.device.startswith("cuda:")),
        ("--out with a .npy file", args.out.lower().endswith(".npy")),
    ):
        if given:
            raise DataError(f"--ray: {option} is not known there; leave it out")
    if args.layers is None:
        raise DataError("--ray: name the layers by --layers; only the actors open the model")
    if args.id_column is None:
        raise DataError("--ray: rows that are done are skipped by their ids; name --id-column")
    forms = sorted({source.format for source in sources})
    if len(forms) != 1 or forms[0] not in READ or any(source.spool for source in sources):
        raise DataError(
            f"--ray: inputs of {', '.join(forms)}; expected files of one of {', '.join(READ)}"
        )
    for source in sources:
        next(read(source, columns), None)  # its columns and their types
        if source.format == "csv":
            check_quotes(source)  # Ray would take all that follows for one cell
    return forms[0]


def _anywhere(model: str) -> str:
    """The model's name as actors understand it, which run in another folder."""
    here = model != "demo" and os.path.exists(model)
    return os.path.abspath(model) if here else model


def _dataset(form: str, paths: list[str], columns: corpus.Columns) -> Any:
    """Ray's reading of the wanted columns; a CSV file's values stay strings, as without Ray."""
    import pyarrow
    import pyarrow.csv
    import ray

    if form == "parquet":
        return ray.data.read_parquet(paths, columns=columns.all)
    if form == "jsonl":
        return ray.data.read_json(paths).select_columns(columns.all)
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns.all,
        column_types={name: pyarrow.string() for name in columns.all},
        strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return ray.data.read_csv(paths, convert_options=convert, parse_options=parse)
