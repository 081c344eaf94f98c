"""Files that are whole under their final name.

Promises that a reader never meets a half-written file: what is written stands in a hidden folder
of its own until it is complete, and vanishes on an error or a signal that Python hears. A process
that is killed leaves the folder behind, and the next that writes the same file removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_NAME = 200  # of 255, so that the hidden folder's name fits


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` on success and vanishes on an error or Ctrl-C."""
    remove_left(path.parent, path.name)
    # Beside the target, because a rename is atomic only within one file system.
    place, held = _hidden_folder(path)
    try:
        part = place / path.name
        yield part
        os.replace(part, path)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(held)


def remove_left(folder: Path, name: str = "") -> None:
    """Remove the hidden folders of processes that were killed while they wrote.

    name : of the file that they wrote, empty for every file
    """
    start = f".{name[:LONGEST_NAME]}." if name else "."
    with suppress(OSError):  # what cannot be looked at is not ours
        for place in folder.iterdir():
            if place.name.startswith(start) and place.name.endswith(".part") and place.is_dir():
                with suppress(OSError):
                    _remove_if_let_go(place)


def _hidden_folder(path: Path) -> tuple[Path, int]:
    """A new folder for one file, and the descriptor that says until it is closed: still in use.

    The name is made up by the system, so that two processes never share it; process ids do repeat,
    in two containers on one volume.
    """
    while True:
        prefix = f".{path.name[:LONGEST_NAME]}."
        place = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
        held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # a file system without locks: nobody will take it for left
            fcntl.flock(held, fcntl.LOCK_EX)
        if place.exists():
            return place, held
        os.close(held)  # another process took it for left before it was locked


def _remove_if_let_go(place: Path) -> None:
    """Remove a hidden folder that no living process holds."""
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(held)
