"""Rows of tab separated, Parquet and JSON Lines files, each with its place in the file.

Assumes UTF-8. Promises that whatever is wrong with a file becomes one `DataError` that names the
file, the line and what to do.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError

Record = tuple[int, dict[str, Any]]  # line or row number (from 1), cell by column name


def read_tsv(path: Path, header: tuple[str, ...] | None = None) -> Iterator[Record]:
    """Rows of a tab separated UTF-8 file, as (line number, cell by column name).

    `header` names the columns of a file without a header line; further columns are ignored then.
    Quotes mean nothing: MRPC holds unbalanced ones. Only a line feed ends a line, because the
    texts may hold characters that `str.splitlines` takes for line ends.
    """
    strict = header is None
    raw_lines = read_bytes(path).split(b"\n")
    if raw_lines and not raw_lines[-1]:
        raw_lines.pop()
    for line, raw in enumerate(raw_lines, 1):
        cells = decode_line(path, line, raw).split("\t")
        if header is None:
            header = tuple(cells)
            continue
        if len(cells) < len(header) or (strict and len(cells) > len(header)):
            raise DataError(
                f"{path}, line {line}: expected {len(header)} tab separated columns, "
                f"found {len(cells)}; get the file again"
            )
        yield line, dict(zip(header, cells, strict=False))


def decode_line(path: str | Path, line: int, raw: bytes) -> str:
    """Text of a line of a UTF-8 file, without its end or the file's byte order mark."""
    if line == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {line}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """Rows of a Parquet file, as (row number, cell by column name), restricted to `columns`."""
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_schema(path).names
        need(path, found, columns)
        rows = pyarrow.parquet.read_table(path, columns=list(columns)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); delete it and "
            "load again"
        ) from None
    yield from enumerate(rows, 1)


def read_jsonl_gz(path: Path) -> Iterator[Record]:
    """Objects of a gzip-compressed JSON Lines file, as (line number, object)."""
    line = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for line, text in enumerate(file, 1):
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object, found {type(row).__name__}")
                yield line, row
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{path}, after line {line}: not readable as gzip-compressed JSON Lines ({error}); "
            "delete it and load again"
        ) from None


def need(path: Path, found: Iterable[str], wanted: Iterable[str]) -> None:
    missing = [column for column in wanted if column not in found]
    if missing:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing; found {', '.join(map(repr, found))}; "
            "get the file again, or check that it is the right one"
        )
