"""`rwkvsts study`: the experiment, its table on standard output and its files in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import study
from ..data import datasets
from ..errors import DataError
from ..study import report
from ..tokenizer import KINDS
from .options import add_model_options, check_writable

BOTH = ("gpt2", "world")  # first the one that may fail: the vocabulary comes with the weights


REAL = (
    "rwkvsts study --model RWKV/v6-Finch-1B6-HF --tokenizer both --task mrpc "
    "--glove glove.6B.50d.txt --out results"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Spearman by layer against word overlap and GloVe. Without options: the "
    parser.description += "bundled model, pairs and word vectors."
    add_model_options(parser, [*KINDS, "both"])
    parser.add_argument("--task", choices=[*datasets.DATA_SETS], default="demo")
    parser.add_argument(
        "--split", action="append", help="e.g. 'train[:1000]'; may be repeated; default: the usual"
    )
    parser.add_argument("--data", type=Path, help="folder of data sets; default: from the hub")
    parser.add_argument("--glove", type=Path, help="GloVe text file, .gz too; default: bundled")
    parser.add_argument("--out", type=Path, help="folder to write table and plot into")
    parser.set_defaults(run=run_study)


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
        check_writable(args.out)
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
