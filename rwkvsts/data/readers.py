"""Rows of tab separated, Parquet and JSON Lines files, each with its place in the file.

Assumes UTF-8. Promises that whatever is wrong with a file becomes one `DataError` that names the
file, the line and what to do.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import DataError

BOM = b"\xef\xbb\xbf"  # UTF-8's byte order mark, which Windows writes; never a part of the text
GZIP = b"\x1f\x8b"
LONGEST_LINE = 16 << 20  # bytes, of JSON Lines
FOREIGN = {
    b"PK\3\4": "a zip: unpack it, and give the file inside",
    b"7z\xbc\xaf": "a 7z archive: unpack it, and give the file inside",
    GZIP: "compressed by gzip: unpack it, and give the file inside",
    b"\xff\xfe": "in UTF-16: save it as UTF-8",
    b"\xfe\xff": "in UTF-16: save it as UTF-8",
    b"PAR1": "a Parquet file: give the text file",
    b"ARROW1\0\0": "an Arrow file (Feather): save it as Parquet",
    b"\xfd7zXZ\0": "compressed by xz: unpack it, and give the file inside",
    b"BZh91AY&SY": "compressed by bzip2: unpack it, and give the file inside",
    b"\x93NUMPY": "a NumPy array: save it as text",
    **{bytes([0x80, protocol]): "a Python pickle: save it as text" for protocol in range(2, 6)},
    b"%PDF-": "a PDF: save its text",
    b"\xd0\xcf\x11\xe0": "an Office document: save it as text",
    b"SQLite format 3\0": "a database of SQLite: save the table as text",
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` in its folder",
}

OLD_MAC = (
    "its lines end in carriage returns alone, as an old Mac's; save it with line feeds, as by "
    r"tr '\r' '\n'"
)

QUOTED_AS_CSV = (
    "it is quoted as in CSV, but in a file separated by tabs quotation marks belong to the text; "
    "save it as .csv, or without quoting"
)

Record = tuple[int, dict[str, Any]]  # line or row number (from 1), cell by column name


def foreign_text(start: bytes) -> str | None:
    """What a file is that was given for a text, by its first bytes, and what to do; None: a text.

    >>> foreign_text(b"PK\\3\\4...")
    'a zip: unpack it, and give the file inside'
    """
    if re.match(rb"\s*<(!doctype|html|head|body|\?xml)", start, re.IGNORECASE):
        return "a web page: its address leads to a page about the file, or to an error"
    if re.match(rb"(?:[^\0]\0){3}|(?:\0[^\0]){3}", start):
        return "in UTF-16, without a mark that says so: save it as UTF-8"
    return next((what for magic, what in FOREIGN.items() if start.startswith(magic)), None)


def quoted_as_csv(cell: str) -> bool:
    """Whether a cell is in quotes and has its own ones doubled.

    >>> quoted_as_csv('"he said ""yes"" twice"'), quoted_as_csv('"a whole sentence"')
    (True, False)
    """
    inner = cell[1:-1]
    enclosed = len(cell) > 3 and cell[0] == cell[-1] == '"'
    return enclosed and '""' in inner and '"' not in inner.replace('""', "")


def open_plain_or_gzip(path: Path) -> BinaryIO:
    """A file to read, unpacked on the way if it is gzip's: the content tells, not the name."""
    file = path.open("rb")
    if file.peek(2)[:2] != GZIP:
        return file
    return cast(BinaryIO, gzip.open(file))


def read_tsv(path: Path, header: tuple[str, ...] | None = None) -> Iterator[Record]:
    """Rows of a tab separated UTF-8 file, as (line number, cell by column name).

    `header` names the columns of a file without a header line; further columns are ignored then.
    Quotes mean nothing: MRPC holds unbalanced ones. Only a line feed ends a line, because the
    texts may hold characters that `str.splitlines` takes for line ends.
    """
    strict = header is None
    content = read_bytes(path)
    if what := foreign_text(content[:100]):
        raise DataError(f"{path} is {what}")
    raw_lines = content.split(b"\n")
    while raw_lines and not raw_lines[-1].strip(b"\r"):
        raw_lines.pop()  # empty lines at the end are none
    for line, raw in enumerate(raw_lines, 1):
        cells = decode_line(path, line, raw).split("\t")
        if header is None:
            header = tuple(cells)
            check_header(path, header)
            continue
        if line == 1 and _same_names(cells, header):
            continue  # a file that names its columns although as a rule it does not
        if len(cells) < len(header) or (strict and len(cells) > len(header)):
            raise DataError(
                f"{path}, line {line}: expected {len(header)} tab separated columns, "
                f"found {len(cells)}; get the file again"
            )
        yield line, dict(zip(header, cells, strict=False))


def check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a name that two columns have, and lines and columns that other signs separate."""
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; rename one of them")
    if any("\r" in name for name in names):
        raise DataError(f"{path}: {OLD_MAC}")
    check_separator(path, names)


def check_separator(path: str | Path, names: Sequence[str]) -> None:
    """Refuse a header of one name that holds what may separate columns."""
    sign = next((s for s in ";\t,|" if s in names[0]), None) if len(names) == 1 else None
    if sign is not None:
        raise DataError(
            f"{path}: its columns are separated by {sign!r}; save it as .csv with commas, or as "
            ".tsv with tabs"
        )


def _same_names(cells: list[str], header: tuple[str, ...]) -> bool:
    """Whether these are the columns' names, `sentence1` being `sentence 1`."""
    plain = [cell.strip().lower().replace(" ", "") for cell in cells[: len(header)]]
    return plain[-3:] == [name.replace(" ", "") for name in header][-3:]


def decode_line(path: str | Path, line: int, raw: bytes) -> str:
    """Text of a line of a UTF-8 file, without its end or the file's byte order mark."""
    if line == 1:
        raw = raw.removeprefix(BOM)
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {line}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None


def read_bytes(path: Path) -> bytes:
    """A whole file; `DataError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_parquet(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[Record]:
    """Rows of a Parquet file, as (row number, cell by column name).

    Restricted to `columns`, and to what there is of the `optional` ones.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            start = file.read(100)
        if not start.startswith(b"PAR1") and (what := foreign_text(start)):
            raise DataError(f"{path} is {what}")
        whole = path.absolute()  # pyarrow takes mine:1.parquet for an address
        found = pyarrow.parquet.read_schema(whole).names
        need(path, found, columns)
        check_header(path, [name for name in found if name in (*columns, *optional)])
        wanted = [*columns, *(name for name in optional if name in found)]
        rows = pyarrow.parquet.read_table(whole, columns=wanted).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        # ValueError too: strings that are no UTF-8 come out as that.
        reason = (str(error).splitlines() or [""])[0][:200]
        raise DataError(
            f"{path}: not a readable Parquet file ({reason}); get it again, a file in a cache "
            "after deleting it"
        ) from None
    yield from enumerate(rows, 1)


def read_jsonl(path: Path) -> Iterator[Record]:
    """Objects of a JSON Lines file, plain or gzip-compressed, as (line number, object)."""
    line = 0
    try:
        with open_plain_or_gzip(path) as file:
            while raw := file.readline(LONGEST_LINE):
                line += 1
                if len(raw) == LONGEST_LINE:
                    raise ValueError(f"a line of more than {LONGEST_LINE} bytes")
                if not raw.strip():
                    continue
                if what := foreign_text(raw) if line == 1 else None:
                    raise ValueError(f"this is {what}")
                row = json.loads(raw.removeprefix(BOM).decode("utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object, found {type(row).__name__}")
                yield line, row
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {line}: not readable as JSON Lines ({str(error)[:200]}); get it again, "
            "a file in a cache after deleting it"
        ) from None


def need(path: Path, found: Iterable[str], wanted: Iterable[str]) -> None:
    """`DataError` unless a file's columns hold those that are wanted."""
    missing = [column for column in wanted if column not in found]
    if missing:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing; found {', '.join(map(repr, found))}; "
            "check that it is the right file; of pairs of your own, name the columns by --columns"
        )
