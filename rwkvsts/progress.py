"""What a person is told while work goes on: lines on standard error, and tqdm's bars.

A bar is shown where somebody watches, on a terminal or in a notebook. Promises never to fail
because standard error is closed or full.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# A call's show_progress: whether, or None to decide here, or who is told of texts and tokens done.
Show = bool | Callable[[int, int], object] | None


def say(text: str) -> None:
    """A line on standard error, if anybody can be told."""
    if sys.stderr is None:  # closed before the process began
        return
    with suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    r"""One line that a terminal shows as it is: names of files and tensors may hold anything.

    >>> print(printable("a\x1b[2Jb\nc"))
    a\x1b[2Jb\nc
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def watched() -> bool:
    """Whether standard error leads to somebody who watches."""
    if "ipykernel" in sys.modules:
        return True
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed since
        return False


def bar(*args: Any, show: bool | None = None, **options: Any) -> Any:
    """A tqdm bar; `show` None shows it on a terminal and in a notebook.

    tqdm's own test, isatty, takes a notebook for a file.
    """
    from tqdm.auto import tqdm  # here: it brings asyncio along, which `import rwkvsts` can spare

    shown = watched() if show is None else show and sys.stderr is not None
    return tqdm(*args, disable=not shown, **options)
