"""The controls: averaged GloVe vectors and word overlap.

A similarity score means little without them: on MRPC, word overlap alone is level with GloVe.
Assumes word vectors in GloVe's text format, plain or gzip-compressed. Promises that every row of
the file has been checked for its width, and every row used for finite numbers and for repetition.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.readers import BOM, foreign_text, open_plain_or_gzip
from ..errors import DataError

LONGEST_LINE = 1 << 20  # bytes: a word and 300 numbers take 3000; a bomb in a .gz takes all memory
LAST_OF_A_NUMBER = b"0123456789.nfNF"
_WORD_OR_MARK = re.compile(r"[a-z0-9]+|[^a-z0-9\s]")


def space_words(text: str) -> list[str]:
    """Words as the paper takes them: lower case, cut at white space, punctuation attached."""
    return text.lower().split()


def split_words(text: str) -> list[str]:
    """Words and punctuation apart, as GloVe's vocabulary has them: `[a-z0-9]+` or one mark."""
    return _WORD_OR_MARK.findall(text.lower())


def word_overlap(sentence1: Iterable[str], sentence2: Iterable[str]) -> NDArray[np.float64]:
    """Jaccard index of the two sentences' sets of words (`space_words`), float64 [n].

    Two sentences without a word share nothing: 0.
    """
    scores = []
    for first, second in zip(sentence1, sentence2, strict=True):
        words1, words2 = set(space_words(first)), set(space_words(second))
        scores.append(len(words1 & words2) / max(1, len(words1 | words2)))
    return np.array(scores, np.float64)


@dataclass(frozen=True)
class WordVectors:
    """Word vectors for the words asked for.

    `table` is float32 [words, D]; `row` gives a word's row. `file_rows` counts the rows of the
    whole file, wanted or not; `asked` the different words that were looked for.
    """

    row: dict[str, int]
    table: NDArray[np.float32]
    file_rows: int
    asked: int
    source: str

    @property
    def share(self) -> float:
        """Share of the words asked for that the file holds, 0 .. 1."""
        return len(self.row) / max(1, self.asked)

    def average(
        self, texts: Iterable[str], words: Callable[[str], list[str]] = space_words
    ) -> NDArray[np.float64]:
        """Mean word vector of each text, float64 [S, D].

        With `space_words`, the paper's way, an unknown word counts as a zero vector; with
        `split_words` unknown words are left out. A text without a known word is the zero vector.
        """
        means = []
        for text in texts:
            found = words(text)
            known = [self.row[word] for word in found if word in self.row]
            count = len(found) if words is space_words else len(known)
            means.append(self.table[known].sum(axis=0, dtype=np.float64) / max(1, count))
        return np.array(means, np.float64).reshape(-1, self.table.shape[1])


def load_vectors(path: str | Path, texts: Iterable[str]) -> WordVectors:
    """Read the vectors of all words in `texts`, cut in either way, from a GloVe file.

    The first line may be a header, "rows dimensions", as in gensim's releases; the number of rows
    is then checked against it. A word may hold blanks, as some of glove.840B do: the last cells of
    a row are the vector.

    Raises
    ------
    DataError
        A row of another width, a number that is none, a word twice, a damaged .gz; a file of
        another kind; a file that holds none of the words.
    """
    path = Path(path)
    wanted = {word for text in texts for cut in (space_words, split_words) for word in cut(text)}
    wanted_bytes = {word.encode() for word in wanted}
    row: dict[str, int] = {}
    vectors: list[NDArray[np.float32]] = []
    line = rows = dims = 0
    promised: int | None = None
    for line, raw in _lines(path):
        if line == 1:
            promised, dims = _first_line(path, raw)
            if promised is not None:
                continue
        rows += 1
        word, numbers = _row(path, line, raw, dims)
        if word in wanted_bytes:
            name = word.decode()
            if name in row:
                raise DataError(f"{path}, line {line}: the word {name!r} is there twice")
            row[name] = len(vectors)
            vectors.append(_vector(path, line, numbers, dims))
    if rows == 0 or rows != (promised if promised is not None else rows):
        raise DataError(
            f"{path}: expected {promised or 'some'} rows of word vectors, found {rows}; the file "
            "is cut short: get it again"
        )
    if wanted and not row:
        raise DataError(
            f"{path}: expected vectors of the texts' {len(wanted)} words, found none of them in "
            f"{rows} rows; give word vectors in GloVe's text format and of the texts' language"
        )
    table = np.array(vectors, np.float32).reshape(-1, dims)
    return WordVectors(row, table, rows, len(wanted), str(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines without their end and the file's byte order mark; empty lines at the end are none.

    As bytes, because words hold what Unicode takes for line ends.
    """
    line, empty = 0, 0
    try:
        with open_plain_or_gzip(path) as file:
            while raw := file.readline(LONGEST_LINE):
                line += 1
                if len(raw) == LONGEST_LINE:
                    raise DataError(
                        f"{path}, line {line}: longer than {LONGEST_LINE} bytes; give word vectors "
                        "in GloVe's text format"
                    )
                raw = raw.removeprefix(BOM) if line == 1 else raw
                if not raw.strip():
                    empty = empty or line
                    continue
                if empty:
                    raise DataError(
                        f"{path}, line {empty}: expected a word and its numbers, found "
                        "an empty line; the file is damaged: get it again"
                    )
                yield line, raw.rstrip()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        where = f"{path}, after line {line}" if line else str(path)
        raise DataError(f"{where}: cannot be read ({reason})") from None


def _first_line(path: Path, raw: bytes) -> tuple[int | None, int]:
    """The number of rows that a header promises, None where there is none; numbers in a row."""
    if what := foreign_text(raw):
        raise DataError(f"{path} is {what}")
    cells = raw.split()
    header = len(cells) == 2 and all(c.isdigit() and len(c) < 20 for c in cells)
    if header and int(cells[0]) and 0 < int(cells[1]) <= LONGEST_LINE:
        return int(cells[0]), int(cells[1])
    numbers = 0
    while numbers < len(cells) - 1 and _is_number(cells[-1 - numbers]):
        numbers += 1
    if raw[:1].isspace() and numbers == len(cells) - 1 and _is_number(cells[0]):
        numbers += 1  # the word is a blank
    if not numbers:
        raise DataError(
            f"{path}, line 1: expected a word and its numbers, or a header 'rows dimensions', "
            f"found {raw[:40]!r}; give word vectors in GloVe's text format"
        )
    return None, numbers


def _row(path: Path, line: int, raw: bytes, dims: int) -> tuple[bytes, bytes]:
    """Word and numbers of a row: the last `dims` cells are numbers, the rest is the word."""
    word, _, numbers = raw.partition(b" ")
    if numbers.count(b" ") == dims - 1 and b"\t" not in raw and word:
        if numbers[-1:] not in LAST_OF_A_NUMBER:
            raise DataError(f"{path}, line {line}: expected numbers, found {numbers[-20:]!r}")
        return word, numbers
    cells = raw.rsplit(None, dims)
    blank = len(cells) == dims and raw[:1].isspace()  # glove.twitter has a word of one blank
    word = b"" if blank else cells[0]
    # One number too many is no word with a blank in it, but damage.
    damaged = b" " in word and _is_number(word.rpartition(b" ")[2])
    if damaged or len(cells) != dims + (not blank):
        found = len(raw.split()) - 1
        if b"\0" in raw:
            raise DataError(
                f"{path}, line {line}: expected text, found bytes; save binary vectors of word2vec "
                "as text, as by gensim's save_word2vec_format(path, binary=False)"
            )
        raise DataError(
            f"{path}, line {line}: expected a word and {dims} numbers, found {found} numbers; the "
            "file is damaged or not in GloVe's text format"
        )
    return word, b" ".join(cells[-dims:])


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _vector(path: Path, line: int, numbers: bytes, dims: int) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # a number beyond float32 is refused below
            vector = np.array(numbers.split(), np.float32)
    except ValueError as error:
        found = str(error)[:100]  # it holds the cell, which may be long
        raise DataError(f"{path}, line {line}: expected numbers, found {found}") from None
    if len(vector) != dims:
        raise DataError(f"{path}, line {line}: expected {dims} numbers, found {len(vector)}")
    if not np.isfinite(vector).all():
        found = numbers.split()[int(np.argmin(np.isfinite(vector)))].decode()
        raise DataError(f"{path}, line {line}: expected finite numbers, found {found[:40]}")
    return vector
