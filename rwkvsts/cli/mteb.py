"""`rwkvsts mteb`: MTEB tasks on layers of a model, its results folder and a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import DataError
from .options import (
    add_file_options,
    add_model_options,
    add_threads,
    check_writable,
    load_model,
    output_path,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run MTEB tasks on each layer. The results folder is MTEB's own: a result that is there "
        "already is not computed again. Needs the extra: pip install 'rwkvsts[mteb]'."
    )
    add_model_options(parser)
    add_file_options(parser)
    add_threads(parser)
    parser.add_argument(
        "--task", action="append", required=True, help="MTEB's name, as STSBenchmark; may repeat"
    )
    parser.add_argument("--max-length", type=int, help="tokens after which a text is cut")
    parser.add_argument(
        "--out", type=output_path, default=Path("mteb-results"), help="results folder"
    )
    parser.set_defaults(run=run_mteb, layers=None)


def run_mteb(args: argparse.Namespace) -> None:
    """`rwkvsts mteb`."""
    try:
        from ..integrations.mteb import Embedder  # says what to install

        import mteb  # isort: skip
    except ImportError as error:
        raise DataError(f"mteb: {error}") from None
    check_writable(args.out)
    try:
        tasks = [mteb.get_task(name) for name in args.task]
    except KeyError as error:
        raise DataError(f"--task: {error.args[0]}") from None
    model = load_model(args)
    layers = args.layers or (model.default_layer,)
    print(f"{'task':30} {'layer':>6} {'main score':>10}")
    for layer in layers:
        embedder = Embedder(model, layer, args.pooling, args.max_length)
        for task in tasks:
            result = mteb.evaluate(embedder, task, cache=mteb.ResultCache(args.out))
            score = result.task_results[0].get_score()
            print(f"{task.metadata.name:30} {layer!s:>6} {score:10.4f}", flush=True)
    print(f"Written: {args.out}")
