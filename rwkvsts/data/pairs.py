"""Sentence pairs with a label, and the check of every cell they are made from.

Promises that every sentence has text and every label is a number in its range. Anything else is
one `DataError` that names file, line and column. Sentences are kept as they are, to the last
space, because a language model sees the spaces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .readers import Record, need


@dataclass(frozen=True)
class Pairs:
    """Labelled sentence pairs of one split.

    `label` is float64 [n]: 0 or 1 for MRPC and the bundled pairs, graded for STS and SICK, on the
    scale of the file it came from (rank correlation does not care). `source` says where the pairs
    came from.
    """

    name: str
    split: str
    sentence1: list[str]
    sentence2: list[str]
    label: NDArray[np.float64]
    source: str = ""

    def __len__(self) -> int:
        return len(self.sentence1)

    @property
    def binary(self) -> bool:
        """True when every label is 0 or 1."""
        return bool(np.isin(self.label, (0.0, 1.0)).all())


class Columns(NamedTuple):
    """Which columns of a file hold the pair, and what the label may be."""

    sentence1: str
    sentence2: str
    label: str
    low: float
    high: float
    binary: bool = False


def collect(
    name: str, split: str, files: list[tuple[Path, Iterable[Record]]], columns: Columns
) -> Pairs:
    """Pairs from the rows of files, every cell checked; how many there are is not."""
    sentence1: list[str] = []
    sentence2: list[str] = []
    label: list[float] = []
    for path, rows in files:
        for line, row in rows:
            need(path, row, columns[:3])
            sentence1.append(_text(path, line, columns.sentence1, row))
            sentence2.append(_text(path, line, columns.sentence2, row))
            label.append(_label(path, line, columns, row))
    source = ", ".join(shown(path) for path, _ in files)
    return Pairs(name, split, sentence1, sentence2, np.array(label, np.float64), source)


def shown(path: Path) -> str:
    """A place as results name it: repository and revision, or the last two parts of a path.

    Enough to know a file again, and nobody's home folder.
    """
    parts = path.parts
    if "snapshots" in parts:  # of the hub's cache: datasets--org--name/snapshots/revision/file
        i = parts.index("snapshots")
        _, _, repository = parts[i - 1].partition("--")
        return f"{repository.replace('--', '/')}@{parts[i + 1]}: {'/'.join(parts[i + 2 :])}"
    return "/".join(parts[-2:]) if path.is_absolute() else str(path)


def _text(path: Path, line: int, column: str, row: dict[str, Any]) -> str:
    text = row[column]
    if isinstance(text, str) and text.strip():
        return text
    raise DataError(
        f"{path}, line {line}, column {column!r}: expected a sentence, found {text!r}; "
        "mend it there, or get the file again"
    )


def _label(path: Path, line: int, columns: Columns, row: dict[str, Any]) -> float:
    cell = row[columns.label]
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    # A NaN fails every comparison, so it is refused here as well.
    within = columns.low <= value <= columns.high and math.isfinite(value)
    if within and (value in (0, 1) or not columns.binary):
        return value
    wanted = f"a number from {columns.low:g} to {columns.high:g}"
    if columns.binary:
        wanted = "0 or 1"
    elif math.isinf(columns.high):
        wanted = "a finite number"
    raise DataError(
        f"{path}, line {line}, column {columns.label!r}: expected {wanted}, found {cell!r}; "
        "mend it there, or get the file again"
    )
