"""Text, JSON Lines, CSV and Parquet as tables of the wanted columns, a piece at a time.

Assumes a source whose bytes may be anything. Promises tables whose text column is a valid UTF-8
string column; memory for one piece, whatever the file's size; the same column types in every piece
of a file; and a DataError that names the file and the row for what cannot be read.

pyarrow does the parsing. A value carried along keeps its type where the file states one: Parquet's
types, JSON's numbers, strings and objects (never a date guessed from a string). A CSV file states
none, so its values stay strings: "007" is not 7.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..data.readers import OLD_MAC, QUOTED_AS_CSV, check_separator, decode_line
from ..errors import DataError
from .inputs import Source

PIECE = 4 << 20  # bytes parsed at a time
LINES = 1 << 20  # likewise, of lines: a job computes nothing before its first piece is parsed
LONGEST = 256 << 20  # bytes of one line or row
SAMPLE = 1000  # rows that decide the types of a JSON Lines file's columns
ROWS = 4096  # of a Parquet file at a time

Table = Any  # pyarrow.Table; pyarrow has no types


@dataclass(frozen=True)
class Columns:
    """Which columns of an input are wanted.

    text : what is embedded
    id : names a row in the output; None for its number in the input, from 0, in a column "row"
    keep : further columns to copy beside the embeddings
    """

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):  # its letters would be taken
            raise TypeError(f"keep={self.keep!r}: expected names of columns in a tuple")

    @property
    def carried(self) -> list[str]:
        """The input's columns that the output has too."""
        return [*([] if self.id is None else [self.id]), *self.keep]

    @property
    def all(self) -> list[str]:
        """The columns to read, each once, the text first."""
        return list(dict.fromkeys([self.text, *self.carried]))


def unit(source: Source) -> str:
    """What a row of the source is called in a message."""
    return "line" if source.format == "text" else "row"


def read(source: Source, columns: Columns) -> Iterator[Table]:
    """Tables of the wanted columns, the text column first and of type string.

    Raises
    ------
    DataError : the file cannot be read, or is not what its name says
    """
    import pyarrow

    readers: dict[str, Callable[[Source, Any, Columns], Iterator[Table]]] = {
        "text": _text,
        "jsonl": _jsonl,
        "csv": _csv,
        "tsv": _csv,
        "parquet": _parquet,
    }
    done = 0
    try:
        with source.unpacked() as stream:
            for table in readers[source.format](source, stream, columns):
                yield _as_strings(source, columns, table, done)
                done += len(table)
    except (pyarrow.ArrowException, OSError, EOFError, UnicodeError) as error:
        what = " ".join(str(error).split())[:300]
        if "invalid UTF8" in what:
            raise DataError(f"{source.name}: not UTF-8 ({what}); save the file as UTF-8") from None
        raise DataError(
            f"{source.name}: not readable as {source.format} after {unit(source)} {done} ({what}); "
            "repair the file, or get it again"
        ) from None


def _as_strings(source: Source, columns: Columns, table: Table, done: int) -> Table:
    """The table with its text column as checked strings. A null text stays null."""
    import pyarrow

    texts = table.column(columns.text)
    kind = texts.type.value_type if pyarrow.types.is_dictionary(texts.type) else texts.type
    known = ("string", "large_string", "string_view", "null")
    if str(kind) not in known:
        raise DataError(
            f"{source.name}: column {columns.text!r} is {kind}; name a column of texts by --column"
        )
    texts = texts.cast(pyarrow.large_string())
    try:
        texts.validate(full=True)
    except pyarrow.ArrowInvalid:
        raw = texts.cast(pyarrow.large_binary()).to_pylist()
        bad = next(i for i, text in enumerate(raw, 1) if text and not _is_utf8(text))
        raise DataError(
            f"{source.name}, row {done + bad}: column {columns.text!r} is not UTF-8; write the "
            "file again with UTF-8 texts"
        ) from None
    return table.set_column(0, columns.text, texts)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text(source: Source, stream: Any, columns: Columns) -> Iterator[Table]:
    import pyarrow

    _no_columns(source, columns)
    for first, block in _lines(source, stream):
        if first == 1:
            block = block.removeprefix(b"\xef\xbb\xbf")
            if b"\n" not in block and b"\r" in block.removesuffix(b"\r"):
                raise DataError(f"{source.name}: {OLD_MAC}")
        try:
            lines = block.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            for line, raw in enumerate(block.split(b"\n"), first):
                decode_line(source.name, line, raw)  # raises for the line that is wrong
            raise
        if "\r" in block.decode():
            lines = [line.removesuffix("\r") for line in lines]
        yield pyarrow.table({columns.text: pyarrow.array(lines, pyarrow.large_string())})


def _no_columns(source: Source, columns: Columns) -> None:
    if columns.carried:
        raise DataError(
            f"{source.name}: a text file has no column {columns.carried[0]!r}; leave out the "
            "columns, or give JSON Lines, CSV or Parquet"
        )


NO_OBJECT = re.compile(rb"^[ \t\r]*[^{\s]", re.MULTILINE)


def _jsonl(source: Source, stream: Any, columns: Columns) -> Iterator[Table]:
    import pyarrow
    import pyarrow.json

    schema = None
    for first, block in _lines(source, stream):
        if first == 1:
            block = block.removeprefix(b"\xef\xbb\xbf")
        if not block.strip():
            continue
        if schema is None:
            schema = _json_schema(source, columns, block)
        # pyarrow crashes on a block whose first row is null, and makes a row of nulls of any other.
        if NO_OBJECT.search(block):
            raise _json_error(source, first, block, schema, "a line that is no JSON object")
        try:
            table = pyarrow.json.read_json(
                pyarrow.BufferReader(block),
                read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore"
                ),
            )
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise _json_error(source, first, block, schema, str(error)) from None
        yield table.select(columns.all)


def _json_schema(source: Source, columns: Columns, block: bytes) -> Any:
    """Types of the wanted columns, by the first rows of the file."""
    import pyarrow

    rows = []
    for line, raw in enumerate(block.split(b"\n")[:SAMPLE], 1):
        if raw.strip():
            rows.append(_json_row(source, line, raw))
    found = {key: None for row in rows for key in row}
    _need(source, columns, list(found))
    fields = [pyarrow.field(columns.text, pyarrow.string())]
    for name in columns.all[1:]:
        try:
            kind = pyarrow.array([row.get(name) for row in rows]).type
        except pyarrow.ArrowException as error:
            raise DataError(
                f"{source.name}: column {name!r} has values of several types ({error}); make it "
                "one type, or leave the column out"
            ) from None
        fields.append(pyarrow.field(name, pyarrow.string() if str(kind) == "null" else kind))
    return pyarrow.schema(fields)


def _json_row(source: Source, line: int, raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        what = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise DataError(
            f"{source.name}, line {line}: no JSON ({what[:200]}); repair the line, or remove it"
        ) from None
    if not isinstance(row, dict):
        raise DataError(
            f"{source.name}, line {line}: expected a JSON object a line, found "
            f"{type(row).__name__}; write one object a line"
        )
    return row


def _json_error(source: Source, first: int, block: bytes, schema: Any, what: str) -> DataError:
    """Find the line that pyarrow refused: it counts rows of a block, people count lines."""
    import pyarrow

    for line, raw in enumerate(block.split(b"\n"), first):
        if not raw.strip():
            continue
        try:
            row = _json_row(source, line, raw)
        except DataError as error:
            return error
        for field in schema:
            try:
                pyarrow.array([row.get(field.name)], field.type)
            except (pyarrow.ArrowException, UnicodeError, OverflowError) as error:
                why = f"is no {field.type}, as in the first lines"
                if isinstance(error, UnicodeError):
                    why = "holds half a surrogate pair: it is no text"
                return DataError(
                    f"{source.name}, line {line}: {field.name!r} {why}; mend it there, or leave "
                    "the line out"
                )
    return DataError(f"{source.name}, after line {first - 1}: {what}; repair it, or remove it")


def _csv(source: Source, stream: Any, columns: Columns) -> Iterator[Table]:
    import pyarrow
    import pyarrow.csv

    # In a table separated by tabs a quotation mark is a character like others.
    shape = {"quote_char": '"'} if source.format == "csv" else {"quote_char": False}
    try:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=PIECE),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="," if source.format == "csv" else "\t",
                newlines_in_values=source.format == "csv",
                **shape,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns.all,
                column_types={name: pyarrow.string() for name in columns.all},
                strings_can_be_null=False,
            ),
        )
    except pyarrow.ArrowKeyError:
        raise _missing_in_csv(source, columns) from None
    _once(source, columns, _header(source))
    done = 0
    for batch in reader:
        if source.format == "tsv":
            _unquoted(source, columns, batch, done)
        done += len(batch)
        yield pyarrow.Table.from_batches([batch])


def _unquoted(source: Source, columns: Columns, batch: Any, done: int) -> None:
    """Refuse a text of a TSV file that was quoted as in CSV: it would keep its quotes."""
    import pyarrow.compute

    quoted = pyarrow.compute.match_substring_regex(  # as quoted_as_csv, by RE2 in linear time
        batch.column(columns.text), r'^"(?:[^"]|"")*""(?:[^"]|"")*"$'
    )
    at = pyarrow.compute.index(quoted, True).as_py()
    if at >= 0:
        raise DataError(f"{source.name}, row {done + at + 1}: {QUOTED_AS_CSV}")


def check_quotes(source: Source) -> None:
    """Refuse a quotation mark that is never closed: pyarrow takes all that follows for one cell.

    Between commas quotation marks come in pairs. Where they do not, which one inside a text can do
    too, the rows are read once more.
    """
    with source.unpacked() as stream:
        marks = 0
        while piece := stream.read(PIECE):
            marks += piece.count(b'"')
    if marks % 2 == 0:
        return
    limit = csv.field_size_limit(2 * LONGEST)  # of the whole process
    try:
        with source.unpacked() as stream:
            lines = io.TextIOWrapper(stream, "utf-8", "replace", newline="")
            reader, begins = csv.reader(lines, strict=True), 1
            for _ in reader:
                begins = reader.line_num + 1
    except csv.Error as error:
        if "end of data" in str(error):
            raise DataError(
                f"{source.name}, line {begins}: a quotation mark opens a cell that nothing ends; "
                "close it, or double it where it belongs to the text"
            ) from None
    finally:
        csv.field_size_limit(limit)


def _header(source: Source) -> list[str]:
    """Names in the first line of a CSV or TSV file, as well as that line tells."""
    with source.unpacked() as stream:
        raw: bytes = stream.read(1 << 16)
    header = re.split(rb"[\r\n]", raw, maxsplit=1)[0].decode(errors="replace").strip()
    if source.format == "csv":
        with suppress(csv.Error):  # of some versions, for NUL
            return next(csv.reader([header]), [])
    return header.split("," if source.format == "csv" else "\t")


def _missing_in_csv(source: Source, columns: Columns) -> DataError:
    names = _header(source)
    try:
        check_separator(source.name, names)
        _need(source, columns, names)
    except DataError as error:
        return error
    return DataError(f"{source.name}: its header {str(names)[:200]} cannot be read; repair it")


def _parquet(source: Source, stream: Any, columns: Columns) -> Iterator[Table]:
    import pyarrow
    import pyarrow.parquet

    # Not read ahead, and a page at a time: a row group may hold the whole file.
    file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=PIECE)
    _need(source, columns, file.schema_arrow.names)
    for batch in file.iter_batches(ROWS, columns=columns.all, use_threads=False):
        yield pyarrow.Table.from_batches([batch]).select(columns.all)


def _once(source: Source, columns: Columns, found: list[str]) -> None:
    for name in columns.all:
        if found.count(name) > 1:
            raise DataError(f"{source.name}: two columns are called {name!r}; rename one of them")


def _need(source: Source, columns: Columns, found: list[str]) -> None:
    _once(source, columns, found)
    for name in columns.all:
        if name not in found:
            option = "--column" if name == columns.text else "--id-column or --keep"
            listed = ", ".join(repr(one[:40]) for one in found[:20]) + (
                ", ..." if len(found) > 20 else ""
            )
            first = "; the first line must name the columns" if "sv" in source.format else ""
            raise DataError(
                f"{source.name}: there is no column {name!r}; found {listed}: name one by "
                f"{option}{first}"
            )


def _lines(source: Source, stream: Any) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with the number of its first line, from 1.

    Only a line feed ends a line: texts may hold what `splitlines` would cut at.
    """
    first = 1
    held: list[bytes] = []  # of the line under way, joined once: it may come in hundreds of pieces
    while piece := stream.read(LINES):
        end = piece.rfind(b"\n") + 1
        if not end:
            held.append(piece)
            if sum(map(len, held)) > LONGEST:
                raise DataError(
                    f"{source.name}, line {first}: longer than {LONGEST >> 20} MiB; give one text "
                    "a line"
                )
            continue
        block, held = b"".join((*held, piece[:end])), [piece[end:]]
        yield first, block
        first += block.count(b"\n")
    if any(held):
        yield first, b"".join(held)
