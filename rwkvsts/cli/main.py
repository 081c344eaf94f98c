"""The commands: what `rwkvsts study | report | embed | fit | serve | mteb | info` have in common.

Promises that inputs and the output folder are checked before anything is computed; that an error
is one line on stderr, with status 2 for a wrong command line and 1 for all else (130 for Ctrl-C,
143 for SIGTERM, 129 for SIGHUP); that a reader who closes the pipe ends it quietly, with status 141
as from SIGPIPE; and that no half-written file is left under its final name.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NoReturn

from .. import __version__
from ..progress import say
from . import embed, fit, info, mteb, serve, study


class _Stopped(KeyboardInterrupt):
    """A signal that asks the process to end, heard as Ctrl-C so that all is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Help(argparse.HelpFormatter):
    """Help that gives the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple | list) else default
        if default in (None, False, argparse.SUPPRESS) or shown == "" or "default" in text:
            return text
        return f"{text} (default: {shown})".replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args = _parser().parse_args(argv)
    if sys.stdout is None:  # closed before the process began
        if getattr(args, "out", None) is None:
            say("rwkvsts: standard output is closed: there is nowhere to print")
            return 1
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks must not end a study
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stoppable():
            args.run(args)
        sys.stdout.flush()  # here, where what goes wrong can still be told
    except _Stopped as stop:
        say(f"rwkvsts: stopped by {signal.Signals(stop.number).name}")
        return 128 + stop.number
    except KeyboardInterrupt:
        say("rwkvsts: interrupted")
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if args.debug:
            raise
        say(f"rwkvsts: {_one_line(error)}")
        return 1
    finally:
        _drop(sys.stdout)
        _drop(sys.stderr)
    return 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """Hear SIGTERM and SIGHUP as Ctrl-C, once; one that is ignored, as under nohup, stays so."""
    heard: list[signal.Signals] = []

    def stop(number: int, frame: object) -> NoReturn:
        for asking in heard:
            signal.signal(asking, signal.SIG_DFL)  # a second one need not wait for the cleaning
        raise _Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for asking in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(asking) is signal.SIG_DFL:
                signal.signal(asking, stop)
                heard.append(asking)
    try:
        yield
    finally:
        for asking in heard:
            signal.signal(asking, signal.SIG_DFL)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or ("standard output" if _stuck(sys.stdout) else None)
        return f"{where}: {error.strerror}" if where else error.strerror
    if isinstance(error, MemoryError):  # a library's may tell nothing, or but how much it wanted
        what = f" ({error})" if str(error) else ""
        return f"out of memory{what}: allow this process more, or give it less at a time"
    return " ".join(str(error).split()) or type(error).__name__


def _stuck(stream: IO[str] | None) -> bool:
    """Whether a stream holds what it cannot write."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return True
    return False


def _drop(stream: IO[str] | None) -> None:
    """Flush a stream, or send what it cannot take nowhere: the exit would complain again."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rwkvsts", description="RWKV sentence embeddings and their study.")
    parser.add_argument("--version", action="version", version=f"rwkvsts {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="study | report | embed | fit | serve | mteb | info"
    )
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    study.add_options(commands.add_parser("study", parents=[common], help="run the experiment"))
    merging = commands.add_parser("report", parents=[common], help="one table of several runs")
    study.add_report_options(merging)
    embed.add_options(commands.add_parser("embed", parents=[common], help="embed files of texts"))
    fit.add_options(commands.add_parser("fit", parents=[common], help="learn a projection"))
    serve.add_options(commands.add_parser("serve", parents=[common], help="an HTTP endpoint"))
    mteb.add_options(commands.add_parser("mteb", parents=[common], help="run MTEB tasks"))
    info.add_options(commands.add_parser("info", parents=[common], help="versions, devices, sizes"))
    return parser
