"""`rwkvsts study`: the experiment, its table on standard output and its files in a folder.

`rwkvsts report` lays finished runs side by side. Promises that a finished table is printed
whatever becomes of the files, and that what could not be written is named.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from .. import study
from ..data.catalogue import DATA_SETS, find
from ..embedder import Layer
from ..errors import DataError
from ..study import folder, report
from ..study.settings import BASELINES, POOLINGS, POSTS, PROMPTS, RECIPES, AllLayers
from ..tokenizer import KINDS
from .options import add_device_options, add_file_options, check_writable, layer_list, output_path

BOTH = ("gpt2", "world")  # first the one that may fail: the vocabulary comes with the weights


REAL = (
    "rwkvsts study --model RWKV/v6-Finch-1B6-HF --tokenizer both --task mrpc "
    "--glove glove.6B.50d.txt --out results"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Spearman by layer against word overlap and GloVe. Without options: the bundled model, "
        "pairs and word vectors. An option with several values takes them with commas."
    )
    add = parser.add_argument
    add(
        "--model",
        action="append",
        help="demo; a file, folder or repository of RWKV, transformers or sentence-transformers, "
        "org/name or org/name@revision; may be repeated",
    )
    add("--revision", help="branch, tag or commit of the repositories that name none")
    add_file_options(parser)
    add("--task", type=_tasks, help=f"of {', '.join(DATA_SETS)}; or org/name, laid out as mteb's")
    add("--pairs", type=Path, action="append", help="your own: .tsv, .csv, .jsonl, .parquet")
    add("--columns", type=_columns, help="their columns; default: sentence1,sentence2,label")
    add("--split", action="append", help="e.g. 'train[:1000]'; may be repeated; default: the usual")
    add("--data", type=Path, help="folder of data sets; default: from the hub")
    add("--glove", type=Path, help="GloVe text file, .gz too; default: bundled")
    add("--baseline", type=_words, default=(), help=f"of word vectors: {', '.join(BASELINES)}")
    add(
        "--out",
        type=output_path,
        help="folder for table, scores and plots; a study resumes from it",
    )
    ladder = parser.add_argument_group("how a text is read; every combination is run")
    add = ladder.add_argument
    add("--recipe", type=_words, help=f"steps that belong together: {', '.join(RECIPES)}")
    add("--tokenizer", choices=[*KINDS, "both"], default="world", help="gpt2 is the paper's")
    add("--lead", action="store_true", help="start from token 0, as training documents do")
    add("--layers", type=_layers, help="e.g. 1,3,final, or all; default: the paper's")
    add("--pooling", type=_words, default=("mean",), help=f"of {', '.join(POOLINGS)}")
    add("--skip-first", choices=("no", "yes", "both"), default="no", help="leave out token 1")
    add("--post", type=_words, default=("none",), help=f"post-processing, of {', '.join(POSTS)}")
    add(
        "--prompt",
        action="append",
        help=f"{', '.join(PROMPTS)}, or a template with {{text}}; '{{text}}| in short:| in one "
        "word:' reads each ending from the text's own state and averages what their last tokens "
        "give, '|-' subtracts it; may be repeated",
    )
    add_device_options(parser)
    add = parser.add_argument_group("what is measured").add_argument
    add("--timed-pairs", type=int, default=20, help="pairs run one by one for the time; 0: none")
    add("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.set_defaults(run=run_study)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "One table of several runs that rwkvsts study --out has written."
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out", type=output_path, help="folder for the merged table, scores and plots"
    )
    parser.set_defaults(run=run_report)


def run_study(args: argparse.Namespace) -> None:
    """`rwkvsts study`."""
    tasks = args.task or (() if args.pairs else ("demo",))
    models = tuple(args.model or ("demo",))
    bundled = (models, tasks, args.pairs) == (("demo",), ("demo",), None)
    if args.data is not None and tasks == ("demo",):
        raise DataError("--data: the pairs of task demo are bundled; name a task, as --task mrpc")
    if args.data is not None and not args.data.is_dir():
        raise DataError(f"--data: no folder {args.data}; give the folder that holds the data sets")
    if args.timed_pairs < 0 or args.resamples < 2:
        raise DataError("--timed-pairs: expected 0 or more; --resamples: expected 2 or more")
    config = study.StudyConfig(
        models=models,
        tasks=tasks,
        pairs=tuple(args.pairs or ()),
        columns=args.columns or study.StudyConfig.columns,
        tokenizers=BOTH if args.tokenizer == "both" else (args.tokenizer,),
        lead=args.lead,
        layers=args.layers or study.StudyConfig.layers,
        poolings=args.pooling,
        skip_first={"no": (False,), "yes": (True,), "both": (False, True)}[args.skip_first],
        prompts=tuple(map(_prompt, args.prompt)) if args.prompt else (None,),
        posts=args.post,
        baselines=args.baseline,
        recipe=args.recipe or (),
        splits=tuple(args.split) if args.split else None,
        data=args.data,
        glove=args.glove,
        revision=args.revision,
        file=args.file,
        vocabulary=args.vocabulary,
        device=args.device,
        dtype=args.dtype,
        resamples=args.resamples,
        timed_pairs=args.timed_pairs,
        norms=args.out is not None,
    )
    _announce(config, bundled)
    if args.out is not None:
        check_writable(args.out)
    keep = None if args.out is None else args.out / folder.PASSES
    with nullcontext() if args.out is None else folder.held(args.out):
        _publish(study.run(config, keep), args.out)
    if bundled:
        print(f"The real one: {REAL}")


def _announce(config: study.StudyConfig, bundled: bool) -> None:
    if bundled:
        print(
            "Bundled demonstration: a small RWKV-6 and sentence pairs that come with rwkvsts. The "
            "figures are real,\nthe model is not the paper's, and the pairs were written so that "
            "counting shared words does not help.",
            flush=True,
        )
    else:
        names = [*config.tasks, *(Path(path).name for path in config.pairs)]
        print(f"{', '.join(map(str, config.models))} on {', '.join(names)}", flush=True)


def run_report(args: argparse.Namespace) -> None:
    """`rwkvsts report`."""
    if args.out is not None:
        check_writable(args.out)
    merged = study.merge(args.runs)
    with nullcontext() if args.out is None else folder.held(args.out):
        _publish(merged, args.out)


def _publish(result: study.Study, out: Path | None) -> None:
    """Write what can be written, print the table in any case, then say what went wrong."""
    # Written first: standard output may be a pipe that has closed by now.
    written, failures = ([], []) if out is None else study.write(result, out)
    print(report.text(result))
    if written:
        print(f"Written into {out}: {', '.join(path.name for path in written)}")
    failures = [*result.failures, *failures]
    if failures:
        told = "; ".join(_by_reason(failures))
        raise OSError(f"the table is complete, but not all was written: {told}")


def _by_reason(failures: list[str]) -> list[str]:
    """What failed alike in one sentence.

    >>> _by_reason(["a.pdf: disk full", "b.pdf: disk full", "c: denied"])
    ['a.pdf, b.pdf: disk full', 'c: denied']
    """
    names: dict[str, list[str]] = {}
    for failure in failures:
        name, _, reason = failure.partition(": ")
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(listed)}: {reason}" for reason, listed in names.items()]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _tasks(text: str) -> tuple[str, ...]:
    names = _words(text)
    try:
        for name in names:
            find(name)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def _columns(text: str) -> tuple[str, ...]:
    names = _words(text)
    if len(names) != 3:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected three names with commas, as sentence1,sentence2,label"
        )
    if len(set(names)) < 3:
        raise argparse.ArgumentTypeError(f"{text!r}: expected three columns, each named once")
    return names


def _layers(text: str) -> tuple[Layer, ...] | AllLayers:
    return "all" if text == "all" else layer_list(text)


def _prompt(text: str) -> str | None:
    if text in PROMPTS:
        return PROMPTS[text]
    if text.isidentifier():  # a slip in a name, which would be put before every text
        raise DataError(
            f"--prompt: no prompt {text!r}; choose of {', '.join(PROMPTS)}, or give a text that "
            "holds {text}"
        )
    return text
