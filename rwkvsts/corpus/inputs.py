"""What the arguments of `embed` mean: files, folders, globs and standard input become sources.

Assumes nothing about the names. Promises that a source can be opened any number of times, because
every input is read twice (checked first, embedded then): what cannot be read twice, as a pipe, is
copied to a temporary file; and that a file which changes between two readings is noticed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..data.readers import foreign_text
from ..errors import DataError

FORMATS = ("text", "jsonl", "csv", "tsv", "parquet")
ENDINGS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
PACKED = (".gz", ".zst")
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # told by content: names may lie
PIECE = 1 << 20
MAY_NOT = "ask its owner to let you read it, or leave it out"


class Stamp(NamedTuple):
    """What tells a file from others, and from itself after a change."""

    size: int
    changed_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino)


@dataclass(frozen=True)
class Source:
    """One input.

    name : as the user gave it
    format : one of FORMATS
    spool : a copy of what cannot be read twice; None for a plain file
    stamp : of the file when it was found
    """

    name: str
    format: str
    spool: BinaryIO | None
    stamp: Stamp

    @property
    def bytes(self) -> int:
        return self.stamp.size

    def open(self) -> BinaryIO:
        """The bytes as they lie on the disk, from the first; the caller closes it."""
        if self.spool is None:
            return _open(self.name)
        # A duplicate of the descriptor would move with every other reader.
        return open(f"/proc/self/fd/{self.spool.fileno()}", "rb")

    @contextmanager
    def unpacked(self) -> Iterator[Any]:
        """A pyarrow stream of the content, decompressed.

        Raises DataError in the end if the file is no longer what it was when it was found, which
        also explains whatever went wrong while it was read.
        """
        import pyarrow

        try:
            packing = self._packing()
            with self.open() as file:
                yield pyarrow.input_stream(file, compression=packing) if packing else file
        except Exception:
            self.check()
            raise
        self.check()

    def _packing(self) -> str | None:
        """How the content is compressed; DataError if it is of another kind than the name says."""
        import pyarrow

        with self.open() as file:
            start = file.read(100)
            packing = next((MAGIC[m] for m in MAGIC if start.startswith(m)), None)
            if packing and self.format == "parquet":
                raise DataError(f"{self.name}: Parquet is compressed inside; decompress the file")
            if packing:
                file.seek(0)
                start = pyarrow.input_stream(file, compression=packing).read(100)
        _check_kind(self, start)
        return packing

    def check(self) -> None:
        """Raise DataError if the file is no longer what it was when it was found."""
        if self.spool is None and Stamp.of(os.stat(self.name)) != self.stamp:
            raise DataError(
                f"{self.name} changed while it was read; wait until nobody writes to it, then "
                "start again"
            )

    def digest(self) -> str:
        """SHA-256 of the bytes as they lie on the disk."""
        found = hashlib.sha256()
        with self.open() as file:
            while piece := file.read(PIECE):
                found.update(piece)
        return found.hexdigest()


def _check_kind(source: Source, start: bytes) -> None:
    """Refuse what is of another kind than its name says, by the first bytes of its content."""
    what = foreign_text(start)
    right = source.format == "parquet" and start.startswith(b"PAR1")
    # A text may begin as a web page does.
    right = right or (source.format == "text" and start.lstrip().startswith(b"<"))
    if what and not right:
        raise DataError(f"{source.name} is {what}")


def find(names: Sequence[str | os.PathLike[str]], form: str | None = None) -> list[Source]:
    """The sources that the names stand for, in the order given; a folder's and a glob's by name.

    form : one of FORMATS for all of them; default: by the ending of each name, text for others

    Raises
    ------
    DataError : nothing is found, or a file is named twice
    TypeError : one name in place of a list
    """
    if isinstance(names, str | os.PathLike):  # its letters would be taken
        raise TypeError(f"names is {type(names).__name__}: expected a list of names")
    sources: list[Source] = []
    seen: dict[tuple[int, int], str] = {}
    for name in names:
        for path in _expand(os.fspath(name)):
            source = _source(path, form)
            place = source.stamp.device, source.stamp.inode
            if place in seen:
                raise DataError(f"{path} is named twice, as {seen[place]} too; name it once")
            seen[place] = path
            sources.append(source)
    return sources


def format_of(name: str) -> str | None:
    """Format by the ending of a name, or None: "a.jsonl.gz" is JSON Lines."""
    path = Path(name.lower())
    if path.suffix in PACKED:
        path = path.with_suffix("")
    return ENDINGS.get(path.suffix)


def _expand(name: str) -> list[str]:
    if name == "-":
        return [name]
    if os.path.isdir(name):
        below = sorted(_below(Path(name)))
        if not below:
            known = ", ".join(ENDINGS)
            raise DataError(f"{name}: no file in it ends in {known}, or one of them with .gz, .zst")
        return below
    if not os.path.lexists(name) and glob.has_magic(name):
        found = sorted(glob.glob(name, recursive=True))
        files = [path for path in found if not os.path.isdir(path)]
        if not files:
            raise DataError(f"{name}: no file has such a name")
        return files
    return [name]


def _below(folder: Path) -> Iterator[str]:
    """The files that a folder stands for; names with . and _ are other programs' notes.

    Links are followed, each folder is looked into once; one that may not be is an error, since its
    texts would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); {MAY_NOT}")

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        found = os.stat(place)
        new = (found.st_dev, found.st_ino) not in seen
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(f for f in folders if new and not f.startswith((".", "_")))
        for file in files if new else ():
            path = Path(place, file)
            known = not file.startswith((".", "_")) and format_of(file) is not None
            # A link to nothing is no file, but is told when it is opened, not passed over.
            if known and (path.is_file() or not path.exists()):
                yield str(path)


def _source(name: str, form: str | None) -> Source:
    form = form or format_of(name) or "text"
    if name == "-":
        if sys.stdin is None:
            raise DataError("-: standard input is closed; give a file or pipe texts in")
        file: BinaryIO = sys.stdin.buffer
        return _spooled(name, form, file)
    with _open(name) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode):
            return Source(name, form, None, Stamp.of(found))
        if stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
            return _spooled(name, form, file)
    raise DataError(f"{name} is neither a file, a folder nor a pipe; give one of them")


def _spooled(name: str, form: str, file: BinaryIO) -> Source:
    spool: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # closed with its last user
    shutil.copyfileobj(file, spool)
    spool.flush()
    return Source(name, form, spool, Stamp.of(os.fstat(spool.fileno())))


def _open(name: str) -> BinaryIO:
    try:
        return open(name, "rb")
    except OSError as error:
        remedy = MAY_NOT if isinstance(error, PermissionError) else "check the name"
        raise DataError(f"{name} cannot be read ({error.strerror}); {remedy}") from None
