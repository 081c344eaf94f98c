"""Readers of data files: whatever is wrong with a file is one DataError, of one short line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rwkvsts.data import readers
from rwkvsts.errors import DataError


def test_marks_and_empty_lines_at_the_end_are_no_cells(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"\xef\xbb\xbfa\tb\r\n1\t2\r\n\r\n\n")
    assert list(readers.read_tsv(path)) == [(2, {"a": "1", "b": "2"})]
    path.write_bytes(b"a\tb\n\n1\t2\n")
    with pytest.raises(DataError, match="line 2: expected 2 tab separated columns, found 1"):
        list(readers.read_tsv(path))


def test_a_file_may_name_the_columns_that_are_known(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    for first in ("", "Score\tsentence1\tsentence 2\n"):
        path.write_text(first + "score\t1\t2\n5\ta\tb\n")
        rows = [row for _, row in readers.read_tsv(path, ("score", "sentence 1", "sentence 2"))]
        assert rows[0] == {"score": "score", "sentence 1": "1", "sentence 2": "2"}
        assert len(rows) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\tb\n".encode("utf-16"), "in UTF-16"),
        (b"<html>\t</html>", "a web page"),
        (b"PK\3\4", "a zip"),
        (gzip.compress(b"a\tb\n"), "compressed by gzip"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(readers.read_tsv(tmp_path / "x.tsv"))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"[1]",
        b"{",
        b'{"a": "\xff"}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_damaged_json_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' + content))
    with pytest.raises(DataError, match="line 2: not readable") as caught:
        list(readers.read_jsonl(path))
    assert len(str(caught.value)) < 600


def test_json_lines_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps({"a": "\u00e9"}).encode()))
    assert list(readers.read_jsonl(path)) == [(1, {"a": "\u00e9"})]


def test_parquet_with_a_string_that_is_no_utf8(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = pa.array([b"caf\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"a": text}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: not a readable Parquet file"):
        list(readers.read_parquet(tmp_path / "x.parquet", ("a",)))
