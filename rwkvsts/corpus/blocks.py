"""Sources become blocks of rows: checked and counted first, then cut, tokenised and handed on.

Assumes what `read` promises of its tables. Promises that where a block ends depends on the input
and the options alone, never on timing, so that an interrupted job cuts as an undisturbed one; and
that no block holds more than a stated number of rows and bytes of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..batch import Batch, Prepare
from ..errors import DataError
from .inputs import Source
from .readers import Columns, Table, check_quotes, read, unit

OnEmpty = Literal["error", "skip", "null"]
ON_EMPTY: tuple[OnEmpty, ...] = ("error", "skip", "null")
ROW = "row"  # the column of row numbers, where no id column is named
MOST_TEXT = 32 << 20  # bytes of text in a block, unless one text alone is longer


@dataclass(frozen=True)
class Counts:
    """Rows of the input by what became of them, and the tokens that were read of them.

    rows : of the input; `empty` of them held no text, `cut` were longer than max_length
    """

    rows: int = 0
    empty: int = 0
    cut: int = 0
    tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(self.as_tuple(), other.as_tuple(), strict=True)
        return Counts(*(a + b for a, b in pairs))

    def as_tuple(self) -> tuple[int, int, int, int]:
        return self.rows, self.empty, self.cut, self.tokens


@dataclass(frozen=True)
class Survey:
    """What reading every input once has shown.

    rows, digests : of each source; the digest is the file's SHA-256
    empty : rows without a text, over all sources
    carried : pyarrow schema of the columns that are carried along
    """

    sources: list[Source]
    columns: Columns
    rows: list[int]
    digests: list[str]
    empty: int
    text_bytes: int
    carried: Any


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the input, on their way to the model.

    read : the texts in tokens, as the model reads them
    carried : the columns that are carried along, a row for each row of the output
    empty : [rows of carried], True where a row has no text and its embedding is null
    tokens : [texts], tokens of each, cut at max_length, without a prompt's
    bytes : [texts], of each text
    """

    read: Batch
    carried: Table
    empty: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]
    counts: Counts


def survey(sources: Sequence[Source], columns: Columns, on_empty: OnEmpty) -> Survey:
    """Read every input once, before anything is computed.

    Raises
    ------
    DataError : an input cannot be read, holds no text, lacks a column; or a row has no text and
        on_empty is "error"; or the inputs' carried columns differ in type
    """
    rows: list[int] = []
    digests: list[str] = []
    empty, text_bytes, carried = 0, 0, None
    for source in sources:
        count = 0
        for table in read(source, columns):
            size = lengths(table, columns)
            if on_empty == "error" and not size.all():
                at = count + 1 + int(np.flatnonzero(size == 0)[0])
                raise DataError(
                    f"{source.name}, {unit(source)} {at}: expected a text, found none; remove the "
                    f"{unit(source)}, or choose --on-empty skip or null"
                )
            carried = _agree(source, table.select(columns.carried).schema, carried)
            count, empty = count + len(table), empty + int((size == 0).sum())
            text_bytes += int(size.sum())
        rows.append(count)
        if source.format == "csv":
            check_quotes(source)
        digests.append(source.digest())
        source.check()
    if sum(rows) == empty:
        names = ", ".join(source.name for source in sources[:5])
        raise DataError(f"{names}: there is no text; give one text a line or row")
    return Survey(list(sources), columns, rows, digests, empty, text_bytes, carried)


def _agree(source: Source, found: Any, before: Any) -> Any:
    """The schema of the carried columns, which must be one for all inputs."""
    found = found.remove_metadata()
    if before is not None and not before.equals(found):
        shown = ["{" + ", ".join(f"{f.name}: {f.type}" for f in s) + "}" for s in (found, before)]
        raise DataError(
            f"{source.name}: its carried columns are {shown[0]}, those of the inputs before it "
            f"{shown[1]}; make them of one type"
        )
    return found


def cut(found: Survey, start: int, block_rows: int, shard_rows: int) -> Iterator[Table]:
    """Tables of block_rows rows or fewer, from row `start` on, which begins a shard.

    A table ends early where a shard ends or where its texts are long. With the columns read comes
    ROW, the number of each row, where no id column was named.
    """
    held, row = _Held(found.columns), 0
    for source, expected in zip(found.sources, found.rows, strict=True):
        before = row
        for table in read(source, found.columns):
            row += len(table)
            held.add(table.slice(len(table) - min(len(table), max(row - start, 0))))
            while (size := held.fits(room(start, block_rows, shard_rows))) < held.rows:
                yield held.take(size, start)
                start += size
        if row - before != expected:
            raise DataError(
                f"{source.name} had {expected} rows when it was checked and has {row - before} now;"
                " start again when nobody writes to it"
            )
    while held.rows:
        size = held.fits(room(start, block_rows, shard_rows))
        yield held.take(size, start)
        start += size


def room(start: int, block_rows: int, shard_rows: int) -> int:
    """Rows that a block which begins at this row may hold."""
    return min(block_rows, shard_rows - start % shard_rows)


class _Held:
    """Rows read and not yet handed on."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._tables: list[Table] = []
        self._ends = np.zeros(1, np.int64)  # [rows + 1], bytes of text before each row
        self.rows = 0

    def add(self, table: Table) -> None:
        ends = self._ends[-1] + np.cumsum(lengths(table, self._columns))
        self._tables.append(table)
        self._ends = np.concatenate([self._ends, ends])
        self.rows += len(table)

    def fits(self, rows: int) -> int:
        """How many of the rows held make the next block of at most `rows`: at least one."""
        within = int(np.searchsorted(self._ends, self._ends[0] + MOST_TEXT, "right")) - 1
        return max(min(rows, within), 1)

    def take(self, rows: int, start: int) -> Table:
        """The first rows, whose first has the number `start`, as one contiguous table."""
        import pyarrow

        whole = pyarrow.concat_tables(self._tables)
        taken, left = whole.slice(0, rows).combine_chunks(), whole.slice(rows)
        self._tables, self._ends = ([left] if len(left) else []), self._ends[len(taken) :]
        self.rows -= len(taken)
        if self._columns.id is None:
            numbers = np.arange(start, start + len(taken), dtype=np.int64)
            taken = taken.append_column(ROW, pyarrow.array(numbers))
        return taken


def prepare(
    table: Table, columns: Columns, tokenize: Prepare, max_length: int | None, on_empty: OnEmpty
) -> Block:
    """A block of these rows: its texts in tokens, its empty rows left out or marked.

    tokenize : of the model's `Reader`
    """
    size = lengths(table, columns)
    empty = size == 0
    texts = [text for text in table.column(columns.text).to_pylist() if text]
    read = tokenize(texts, 0) if texts else Batch.none()
    whole = np.diff(read.start) if read.lengths is None else read.lengths
    tokens = whole if max_length is None else np.minimum(whole, max_length)
    counts = Counts(
        rows=len(table),
        empty=int(empty.sum()),
        cut=int((whole > tokens).sum()),
        tokens=int(tokens.sum()),
    )
    carried = table.select([columns.id or ROW, *columns.keep])
    if on_empty == "null":
        rows_empty = empty
    else:  # they are left out
        carried, rows_empty = carried.filter(~empty), np.zeros(len(texts), bool)
    return Block(read, carried, rows_empty, tokens, size[~empty], counts)


def lengths(table: Table, columns: Columns) -> NDArray[np.int64]:
    """Bytes of each text; 0 for an empty one and for null."""
    import pyarrow.compute

    found = pyarrow.compute.binary_length(table.column(columns.text))
    return np.asarray(pyarrow.compute.fill_null(found, 0).to_numpy(), np.int64)
