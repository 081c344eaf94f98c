"""`rwkvsts serve`: an endpoint that speaks OpenAI's /v1/embeddings.

Promises that SIGTERM ends it cleanly: no new connection is taken, every request that was is
answered, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from ..errors import DataError
from ..progress import say
from .options import (
    add_file_options,
    add_model_options,
    add_threads,
    load_model,
    load_projection,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve embeddings of one layer over HTTP, as OpenAI's /v1/embeddings does, with /health "
        "and /metrics. Nobody is asked for a key. Needs the extra: pip install 'rwkvsts[serve]'."
    )
    add_model_options(parser)
    add_file_options(parser)
    add_threads(parser)
    parser.add_argument("--prompt", help="put before each text, or around it where it holds {text}")
    parser.add_argument(
        "--projection", type=Path, metavar="FILE", help="to fewer numbers, made by rwkvsts fit"
    )
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="scale every vector to length 1, as OpenAI's are",
    )
    parser.add_argument("--name", help="of the model in requests; default: its own")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at: this machine alone, or 0.0.0.0 for all",
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    parser.add_argument(
        "--most-waiting", type=int, default=128, help="requests that may wait; beyond: 429"
    )
    parser.add_argument(
        "--most-bytes", type=int, default=4 << 20, help="of a request's body; beyond: 413"
    )
    parser.set_defaults(run=run_serve, layers=None)


def run_serve(args: argparse.Namespace) -> None:
    """`rwkvsts serve`."""
    try:
        import uvicorn

        from ..integrations.openai import application
    except ImportError as error:
        if "rwkvsts[serve]" in str(error):
            raise DataError(f"serve: {error}") from None
        raise DataError(f"serve: {error}; pip install 'rwkvsts[serve]'") from None
    if args.layers is not None and len(args.layers) != 1:
        raise DataError("--layers: one layer is served; name one")
    projection = load_projection(args.projection)
    model = load_model(args)
    app = application(
        model,
        None if args.layers is None else args.layers[0],
        args.pooling,
        args.prompt,
        args.normalize,
        projection=projection,
        name=args.name,
        most_waiting=args.most_waiting,
        most_bytes=args.most_bytes,
    )
    config = uvicorn.Config(app, host=args.host, port=args.port, access_log=False)
    name = args.name or model.name
    say(f"rwkvsts: model {model.source}, {model.device}, {model.dtype}, served as {name}")
    # uvicorn drains and then raises the signal again, for whoever it was before: nobody.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    uvicorn.Server(config).run()
