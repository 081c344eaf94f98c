"""Controls: word overlap and averaged GloVe vectors, against hand-computed and published values."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rwkvsts.data import datasets
from rwkvsts.errors import DataError
from rwkvsts.study import baselines, statistics

ROWS = ["the 1 0 2", "cat 0 3 1", ". 4 0 0", "sat 0 0 5", "dog 7 7 7"]


def write(path: Path, rows: list[str], end: str = "\n") -> Path:
    data = (end.join(rows) + end).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_word_overlap_by_hand() -> None:
    scores = baselines.word_overlap(["The cat sat .", "a b", " "], ["the cat .", "c d", ""])
    assert scores.tolist() == [3 / 4, 0, 0]


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
@pytest.mark.parametrize("header", [[], ["5 3"]])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
def test_both_ways_of_averaging(tmp_path: Path, name: str, header: list[str], end: str) -> None:
    texts = ["The cat. the", "zebra", "cat zebra"]
    vectors = baselines.load_vectors(write(tmp_path / name, header + ROWS, end), texts)
    assert vectors.file_rows == 5
    assert set(vectors.row) == {"the", "cat", "."}
    # "cat." is unknown and counts in the mean; split, it is two known words.
    paper = vectors.average(texts)
    np.testing.assert_allclose(paper, [[2 / 3, 0, 4 / 3], [0, 0, 0], [0, 1.5, 0.5]], rtol=1e-15)
    split = vectors.average(texts, baselines.split_words)
    np.testing.assert_allclose(split, [[1.5, 0.75, 1.25], [0, 0, 0], [0, 3, 1]], rtol=1e-15)


def test_split_words() -> None:
    found = baselines.split_words("It's 5.2% -- Ärger!")
    assert found == ["it", "'", "s", "5", ".", "2", "%", "-", "-", "ä", "rger", "!"]


def test_words_with_unicode_spaces_do_not_break_rows(tmp_path: Path) -> None:
    rows = [*ROWS, "a\xa0b 1 1 1", "c\u2028d 2 2 2", "e\x85f 3 3 3"]
    assert baselines.load_vectors(write(tmp_path / "v.txt", rows), ["the"]).file_rows == 8


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, "owl 1 2"], "line 6: expected a word and 3 numbers, found 2"),
        ([*ROWS, "the 9 9 9"], "line 6: the word 'the' is there twice"),
        (["the 1 nan 2"], "line 1: expected finite numbers"),
        (["the 1 inf 2"], "line 1: expected finite numbers"),
        (["cat 1 1 1", "the 1 x 2"], "line 2: expected numbers"),
        (["cat 1 1 1", f"the 1 {'9x' * 4000} 2"], "line 2: expected numbers"),
        (["9" * 5000 + " 3", "the 1 2 3"], "line 2: "),
        ([*ROWS, "the cat sat"], "line 6: expected a word and 3 numbers, found 2"),
        ([*ROWS, "on the old mat"], "line 6: expected numbers, found b'the old mat'"),
        ([*ROWS, "owl 1 2 3 4"], "line 6: expected a word and 3 numbers, found 4"),
        (["dog 1 2 3", "the 1  2"], "line 2: expected 3 numbers, found 2"),
        ([*ROWS, "", "owl 1 2 3"], "line 6: .* an empty line"),
        (["a text of words", "and of more words"], "line 1: .* found b'a text of words'"),
        (["owl 1 2 3", "own 4 5 6"], "expected vectors of the texts' 2 words, found none"),
        (["6 3", *ROWS], "expected 6 rows of word vectors, found 5"),
        (["a word"], "line 1: .* a header 'rows dimensions'"),
        (["word"], "line 1: expected a word and its numbers"),
        (["5 4", *ROWS], "line 2: expected a word and 4 numbers, found 3"),
    ],
)
def test_damaged_vectors_are_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        baselines.load_vectors(write(tmp_path / "v.txt", rows), ["the cat"])
    assert len(str(caught.value)) < 500


def test_empty_cut_short_or_absent(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"")
    with pytest.raises(DataError, match="expected some rows of word vectors, found 0"):
        baselines.load_vectors(tmp_path / "v.txt", ["the"])
    path = write(tmp_path / "v.gz", ROWS * 1000)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read"):
        baselines.load_vectors(path, ["bird"])
    with pytest.raises(DataError, match="No such file"):
        baselines.load_vectors(tmp_path / "absent.txt", ["the"])


def test_the_content_tells_what_is_compressed(tmp_path: Path) -> None:
    write(tmp_path / "v.txt", ROWS).rename(tmp_path / "plain.gz")
    write(tmp_path / "v.gz", ROWS).rename(tmp_path / "packed.txt")
    for name in ("plain.gz", "packed.txt"):
        assert baselines.load_vectors(tmp_path / name, ["the"]).table.tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("header", [[], ["5 3"]])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\n\n", ""])
@pytest.mark.parametrize("between", [" ", "\t", "  "])
def test_marks_blanks_and_tabs_lose_no_word(
    tmp_path: Path, header: list[str], bom: str, end: str, between: str
) -> None:
    rows = [row.replace(" ", between) for row in ROWS]
    (tmp_path / "v.txt").write_bytes((bom + "\n".join(header + rows) + end).encode())
    vectors = baselines.load_vectors(tmp_path / "v.txt", ["the dog owl"])
    assert vectors.table.tolist() == [[1, 0, 2], [7, 7, 7]]
    assert list(vectors.row) == ["the", "dog"]
    assert (vectors.file_rows, vectors.asked, vectors.share) == (5, 3, 2 / 3)


def test_words_with_blanks_as_in_glove_840b(tmp_path: Path) -> None:
    """The last cells are the vector; what is before them is the word, even a blank or a tab."""
    odd = [". . . 1 1 1", "at name@domain.com 2 2 2", "  3 3 3", "\t 4 4 4", "\x85 5 5 5"]
    vectors = baselines.load_vectors(write(tmp_path / "v.txt", ROWS + odd), ["the . at"])
    assert vectors.row == {"the": 0, ".": 1} and vectors.file_rows == 10
    assert vectors.table.tolist() == [[1, 0, 2], [4, 0, 0]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\3\4\0\0glove.6B.50d.txt", "a zip: unpack it"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        ("the 1 2\n".encode("utf-16"), "in UTF-16: save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"x" * (1 << 21), "line 1: longer than 1048576 bytes"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        baselines.load_vectors(tmp_path / "v.txt", ["the"])


def test_a_line_that_never_ends_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "v.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b"the 1 2\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 2: longer than 1048576 bytes"):
            baselines.load_vectors(path, ["the"])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


MEASURED = [
    # data set, split, word overlap, GloVe by the paper, GloVe with words split
    ("mrpc", "train[:1000]", 0.4031, 0.3564, 0.3193),
    ("mrpc", "validation", 0.4165, 0.4189, 0.4063),
    ("stsb", "validation", 0.6017, 0.4294, 0.5205),
    ("stsb", "test", 0.5041, 0.2864, 0.3744),
    ("sick", "test", 0.5662, 0.5297, 0.5342),
    ("sick-2014", "test", 0.5648, 0.5285, 0.5330),
]


@pytest.mark.parametrize(("name", "split", "overlap", "paper", "split_way"), MEASURED)
def test_controls_on_real_data(
    shared: Path, name: str, split: str, overlap: float, paper: float, split_way: float
) -> None:
    """To 4 digits. The one exception is explained by ties, and the explanation is tested.

    Texts with the same words in another order have cosine 1 exactly, so they tie, and so they do
    here. The recorded 0.2864 (STS-B) and 0.5285 (SICK) come from a small number added to the
    denominator, which orders such pairs by length instead.
    """
    pairs = datasets.load(name, split, shared)
    texts = pairs.sentence1 + pairs.sentence2
    vectors = baselines.load_vectors(shared / "glove" / "glove.6B.50d.part.txt", texts)
    assert vectors.file_rows == 14139

    def rho(scores: np.ndarray) -> float:
        return statistics.spearman(scores, pairs.label, resamples=1).value

    assert round(rho(baselines.word_overlap(pairs.sentence1, pairs.sentence2)), 4) == overlap
    a, b = (vectors.average(s, baselines.split_words) for s in (pairs.sentence1, pairs.sentence2))
    assert round(rho(statistics.cosine(a, b)), 4) == split_way
    a, b = vectors.average(pairs.sentence1), vectors.average(pairs.sentence2)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    assert round(rho((a * b).sum(axis=1) / (norms + 1e-9)), 4) == paper
    ties = {("stsb", "test"): 0.2866, ("sick-2014", "test"): 0.5286}
    assert round(rho(statistics.cosine(a, b)), 4) == ties.get((name, split), paper)
