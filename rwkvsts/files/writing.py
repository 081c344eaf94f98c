"""Files that are whole under their final name.

Promises that a reader never meets a half-written file: what is written stands under another name
until it is complete, and vanishes on an error or Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` on success and vanishes on an error or Ctrl-C."""
    # Beside the target, because a rename is atomic only within one file system.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
