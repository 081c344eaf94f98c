"""The first moments of the command `rwkvsts`: Ctrl-C ends it without a traceback even then.

Imported before all else. Does nothing where another program imports the package.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType


def _is_command(argv: list[str]) -> bool:
    """Whether the process runs `rwkvsts ...` or `python -m rwkvsts ...`."""
    if "-m" in argv[1:]:
        return argv[argv.index("-m") + 1 :][:1] == ["rwkvsts"]
    return any(os.path.basename(argument) == "rwkvsts" for argument in argv[:2])


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    elif sys.stderr is not None:
        print("rwkvsts: interrupted", file=sys.stderr)


if _is_command([*sys.orig_argv]):
    sys.excepthook = _hook
