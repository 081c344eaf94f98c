"""People's own pairs: one TSV, CSV, JSON Lines or Parquet file with named columns.

Promises the pairs of each split, in file order, every cell checked. A column named "split" with
train, validation and test lets a study choose on the earlier splits; without one all pairs are
"all".
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import DataError
from .pairs import Columns, Pairs, collect
from .readers import (
    QUOTED_AS_CSV,
    Record,
    check_header,
    decode_line,
    foreign_text,
    quoted_as_csv,
    read_bytes,
    read_jsonl,
    read_parquet,
    read_tsv,
)

ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet")
SPLITS = ("train", "validation", "test")


def load_file(
    path: str | Path, columns: tuple[str, str, str] = ("sentence1", "sentence2", "label")
) -> list[Pairs]:
    """Pairs of a file, a `Pairs` for each split; the file's name without its ending is the task's.

    Parameters
    ----------
    path
        Its ending tells the format. In .tsv a quote is a character like any other, in .csv it
        encloses a cell.
    columns
        Names of the two sentences' and the label's columns; a label is any finite number.

    Raises
    ------
    DataError
        The file cannot be read, lacks a column, or has a cell that is not what it should be.
    """
    path = Path(path)
    found = Columns(*columns, float("-inf"), float("inf"))
    rows = list(_rows(path, columns))
    splits: dict[str, list[Record]] = {}
    for line, row in rows:
        splits.setdefault(_split(path, line, row.get("split")), []).append((line, row))
    if len(rows) < 2:
        raise DataError(f"{path}: expected at least two pairs, found {len(rows)}")
    order = [split for split in (*SPLITS, "all") if split in splits]
    return [collect(path.stem, split, [(path, splits[split])], found) for split in order]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterable[Record]:
    ending = path.suffix.lower()
    if ending == ".tsv":
        return _read_tsv(path, columns)
    if ending == ".csv":
        return _read_csv(path)
    if ending == ".jsonl":
        return read_jsonl(path)
    if ending == ".parquet":
        return read_parquet(path, columns, optional=("split",))
    raise DataError(f"{path}: expected a file that ends in {', '.join(ENDINGS)}")


def _split(path: Path, line: int, value: object) -> str:
    if value is None:
        return "all"
    if value not in SPLITS:
        raise DataError(
            f"{path}, line {line}, column 'split': expected {', '.join(SPLITS)}, found {value!r}"
        )
    return str(value)


def _read_tsv(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """Rows of a TSV file; a cell that was quoted as in CSV would keep its quotes without a word."""
    for line, row in read_tsv(path):
        for name in columns:
            if quoted_as_csv(row.get(name, "")):
                raise DataError(f"{path}, line {line}, column {name!r}: {QUOTED_AS_CSV}")
        yield line, row


def _read_csv(path: Path) -> Iterator[Record]:
    """Rows of a CSV file as (line number, cell by column name); a cell may hold line ends."""
    content = read_bytes(path)
    if what := foreign_text(content[:100]):
        raise DataError(f"{path} is {what}")
    lines = (
        decode_line(path, i, raw) + "\n"
        for i, raw in enumerate(content.splitlines(keepends=True), 1)
    )
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        check_header(path, header)
        for cells in reader:
            if not cells:
                continue  # a blank line is no row
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(header)} cells, found "
                    f"{len(cells)}; a comma within a text needs the text in quotes"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable as CSV ({error})") from None
