"""The controls: averaged GloVe vectors and word overlap.

A similarity score means little without them: on MRPC, word overlap alone is level with GloVe.
Assumes word vectors in GloVe's text format, plain or .gz. Promises that every row of the file has
been checked for its width, and every row used for finite numbers and for repetition.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

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
    whole file, wanted or not.
    """

    row: dict[str, int]
    table: NDArray[np.float32]
    file_rows: int
    source: str

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
    is then checked against it.

    Raises
    ------
    DataError
        A row of another width, a number that is none, a word twice, a damaged .gz.
    """
    path = Path(path)
    wanted = {word for text in texts for cut in (space_words, split_words) for word in cut(text)}
    wanted_bytes = {word.encode() for word in wanted}
    row: dict[str, int] = {}
    vectors: list[NDArray[np.float32]] = []
    line = rows = dims = 0
    promised: int | None = None
    for line, raw in _lines(path):
        if line == 1 and raw.count(b" ") == 1:
            promised, dims = _header(path, raw)
            continue
        rows += 1
        dims = dims or raw.count(b" ")
        if raw.count(b" ") != dims or dims == 0:
            raise DataError(
                f"{path}, line {line}: expected a word and {dims} numbers, found "
                f"{raw.count(b' ')} numbers; the file is damaged or not in GloVe's text format"
            )
        word, _, numbers = raw.partition(b" ")
        if word in wanted_bytes:
            name = word.decode()
            if name in row:
                raise DataError(f"{path}, line {line}: the word {name!r} is there twice")
            row[name] = len(vectors)
            vectors.append(_vector(path, line, numbers))
    if rows == 0 or rows != (promised if promised is not None else rows):
        raise DataError(
            f"{path}: expected {promised or 'some'} rows of word vectors, found {rows}; the file "
            "is cut short: get it again"
        )
    table = np.array(vectors, np.float32).reshape(-1, dims)
    return WordVectors(row, table, rows, str(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines without their end. As bytes, because words hold what Unicode takes for line ends."""
    line = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                yield line, raw.rstrip()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        where = f"{path}, after line {line}" if line else str(path)
        raise DataError(f"{where}: cannot be read ({reason})") from None


def _header(path: Path, raw: bytes) -> tuple[int, int]:
    try:
        rows, dims = (int(number) for number in raw.split())
    except ValueError:
        rows = dims = 0
    if rows < 1 or dims < 1:
        raise DataError(
            f"{path}, line 1: expected a word and its numbers, or a header 'rows dimensions', "
            f"found {raw[:40]!r}; give word vectors in GloVe's text format"
        )
    return rows, dims


def _vector(path: Path, line: int, numbers: bytes) -> NDArray[np.float32]:
    try:
        vector = np.array(numbers.split(b" "), np.float32)
    except ValueError as error:
        raise DataError(f"{path}, line {line}: expected numbers, found {error}") from None
    if not np.isfinite(vector).all():
        raise DataError(f"{path}, line {line}: expected finite numbers, found {vector.min()}")
    return vector
