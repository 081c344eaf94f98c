"""The bundled sentence pairs keep what their data card promises.

Assumes only the file itself, so that a slip made while editing it is caught here and not in a
score. Promises checked: layout, balance, the designed word overlap, distinctness, the card's
figures, and that no sentence repeats a passage of the public sets the package evaluates on.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import spearmanr

ASSETS = Path(__file__).resolve().parents[1] / "rwkvsts" / "assets"
HEADER = ["id", "label", "sentence1", "sentence2", "kind", "note"]
LOW, HIGH = 0.25, 0.40  # Jaccard bounds that define the kinds -low and -high


class Row(NamedTuple):
    id: str
    label: int
    sentence1: str
    sentence2: str
    kind: str
    note: str

    @property
    def sentences(self) -> tuple[str, str]:
        return self.sentence1, self.sentence2


def words(sentence: str) -> frozenset[str]:
    """The overlap control's words: lower-cased, split at white space, punctuation left on."""
    return frozenset(sentence.lower().split())


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    token = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(token[i : i + n]) for i in range(len(token) - n + 1)}


@pytest.fixture(scope="module")
def text() -> str:
    return (ASSETS / "pairs.tsv").read_bytes().decode("utf-8")


@pytest.fixture(scope="module")
def rows(text: str) -> list[Row]:
    fields = (line.split("\t") for line in text.splitlines()[1:])
    return [Row(f[0], int(f[1]), *f[2:]) for f in fields]


@pytest.fixture(scope="module")
def label(rows: list[Row]) -> np.ndarray:
    return np.array([row.label for row in rows])


@pytest.fixture(scope="module")
def overlap(rows: list[Row]) -> np.ndarray:
    return np.array([jaccard(*map(words, row.sentences)) for row in rows])


def test_layout(text: str) -> None:
    lines = text.split("\n")
    assert lines[0].split("\t") == HEADER
    assert lines[-1] == "", "the last line must end"
    assert {line.count("\t") for line in lines[:-1]} == {len(HEADER) - 1}
    # Printable ASCII also rules out byte order marks, carriage returns and look-alike quotes.
    assert re.fullmatch(r"[\t\n -~]*", text)
    assert "  " not in text


def test_every_tsv_reader_sees_the_same_fields(text: str) -> None:
    """A field that opens with a quote would read differently with and without quote handling."""
    lines = text.splitlines()
    assert list(csv.reader(lines, delimiter="\t")) == [line.split("\t") for line in lines]


def test_rows_are_complete(rows: list[Row]) -> None:
    assert [row.id for row in rows] == [f"p{i:03d}" for i in range(1, len(rows) + 1)]
    for row in rows:
        assert all(field == field.strip() != "" for field in row[2:]), row.id
        for sentence in row.sentences:
            assert 8 <= len(sentence.split()) <= 35, row.id
            assert sentence[0].isupper() or sentence[0].isdigit(), row.id
            assert sentence.rstrip('"')[-1] in ".?!", row.id
            assert sentence.count('"') % 2 == 0, row.id
        assert row.sentence1 != row.sentence2, row.id


def test_kind_and_note_agree_with_the_label(rows: list[Row]) -> None:
    for row in rows:
        family, overlap_class = row.kind.split("-")[:2]
        assert row.label == {"para": 1, "non": 0}[family], row.id
        assert overlap_class in {"low", "high"}, row.id
        verdict, _, reason = row.note.partition(" ")
        assert verdict in ({"both:", "same"} if row.label else {"differs:"}), row.id
        assert len(reason.split()) >= 3, row.id
    assert len({row.note for row in rows}) == len(rows)


def test_counts_and_balance(rows: list[Row], label: np.ndarray) -> None:
    assert len(rows) >= 420
    assert label.mean() == pytest.approx(2 / 3, abs=0.02)
    low = np.array(["-low" in row.kind for row in rows])
    for value in (0, 1):
        assert low[label == value].mean() == pytest.approx(0.5, abs=0.02)


def test_overlap_is_what_the_kind_says(rows: list[Row], overlap: np.ndarray) -> None:
    for row, value in zip(rows, overlap, strict=True):
        assert (value < LOW) if "-low" in row.kind else (value >= HIGH), (row.id, value)


def test_surface_does_not_give_the_label_away(
    rows: list[Row], label: np.ndarray, overlap: np.ndarray
) -> None:
    """Neither overlap nor length ranks the labels; the 95 % interval is 0.1 wide on each side."""
    alnum = [jaccard(*(frozenset(ngrams(s, 1)) for s in row.sentences)) for row in rows]
    length = np.array([[len(s.split()) for s in row.sentences] for row in rows])
    for surface in (overlap, alnum, length.sum(1), np.abs(length[:, 0] - length[:, 1])):
        assert abs(spearmanr(surface, label).statistic) < 0.15


def test_no_two_pairs_tell_the_same(rows: list[Row]) -> None:
    bags = [[words(sentence) for sentence in row.sentences] for row in rows]
    runs = [set().union(*(ngrams(sentence, 6) for sentence in row.sentences)) for row in rows]
    for i, j in combinations(range(len(rows)), 2):
        assert not runs[i] & runs[j], (rows[i].id, rows[j].id)
        assert max(jaccard(a, b) for a in bags[i] for b in bags[j]) < 0.4, (rows[i].id, rows[j].id)


def test_no_passage_of_a_public_set(rows: list[Row], shared: Path) -> None:
    own = set().union(*(ngrams(sentence, 8) for row in rows for sentence in row.sentences))
    files = [path for name in ("mrpc", "stsb", "sick") for path in (shared / name).glob("*")]
    if not files:
        pytest.skip("shared data holds none of mrpc, stsb and sick")
    for path in files:
        theirs = ngrams(path.read_text(encoding="utf-8-sig", errors="replace"), 8)
        assert not own & theirs, path.name


def test_card_states_the_measured_figures(
    rows: list[Row], label: np.ndarray, overlap: np.ndarray
) -> None:
    card = (ASSETS / "PAIRS.md").read_text(encoding="utf-8")
    length = np.mean([len(sentence.split()) for row in rows for sentence in row.sentences])
    assert f"| pairs | {len(rows)} |" in card
    assert f"| label 1 | {label.sum()} ({100 * label.mean():.1f} %) |" in card
    assert f"| mean length | {length:.1f} words |" in card
    assert f"| {spearmanr(overlap, label).statistic:.3f} (" in card
    for kind, count in Counter(row.kind for row in rows).items():
        assert f"`{kind}` {count}" in card, kind
