"""Progress bars: tqdm's, where somebody watches, on a terminal or in a notebook, else silence."""

from __future__ import annotations

import sys
from typing import Any


def bar(*args: Any, show: bool | None = None, **options: Any) -> Any:
    """A tqdm bar; `show` None shows it on a terminal and in a notebook.

    tqdm's own test, isatty, takes a notebook for a file.
    """
    from tqdm.auto import tqdm  # here: it brings asyncio along, which `import rwkvsts` can spare

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(*args, disable=not (watched if show is None else show), **options)
