"""The commands: what `rwkvsts study | report | embed | info` have in common.

Promises that inputs and the output folder are checked before anything is computed; that an error
is one line on stderr, with status 2 for a wrong command line and 1 for all else (130 for Ctrl-C);
that a reader who closes the pipe ends it quietly, with status 141 as from SIGPIPE; and that no
half-written file is left under its final name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from . import embed, info, study


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
    commands = parser.add_subparsers(required=True, metavar="study | report | embed | info")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    study.add_options(commands.add_parser("study", parents=[common], help="run the experiment"))
    merging = commands.add_parser("report", parents=[common], help="one table of several runs")
    study.add_report_options(merging)
    embed.add_options(commands.add_parser("embed", parents=[common], help="embed a file's lines"))
    info.add_options(commands.add_parser("info", parents=[common], help="versions, devices, sizes"))
    return parser
