"""Files that are whole under their final name.

Promises that a reader never meets a half-written file: what is written stands in a hidden folder
of its own until it is complete and on the disk, since a name may reach the disk before a content,
and vanishes on an error or a signal that Python hears. A process that is killed leaves the folder
behind, and the next that writes the same file removes it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_NAME = 200  # of 255, so that the hidden folder's name fits


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` on success and vanishes on an error or Ctrl-C.

    Where `path` is a link, the file that it leads to is written: the link may be there because its
    own disk is small.
    """
    if path.is_symlink():
        path = path.resolve()
    remove_left(path.parent, path.name)
    # Beside the target, because a rename is atomic only within one file system. By chance, because
    # process ids repeat, in two containers on one volume.
    place = path.with_name(f".{path.name[:LONGEST_NAME]}.{secrets.token_hex(8)}.part")
    held = None
    try:  # before there is anything, so that Ctrl-C leaves nothing whenever it comes
        while held is None:
            place.mkdir(exist_ok=True)
            held = _locked(place)
        part = place / path.name
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if held is not None:
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
                    _remove_unless_locked(place)


def _locked(place: Path) -> int | None:
    """A descriptor whose lock says, until it is closed, that the folder is in use.

    None if another process removed the folder before it was locked: it looked left behind.
    """
    try:
        held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: nobody will remove it
        fcntl.flock(held, fcntl.LOCK_EX)
    if place.exists():
        return held
    os.close(held)
    return None


def _remove_unless_locked(place: Path) -> None:
    """Remove a hidden folder that no living process holds."""
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(held)
