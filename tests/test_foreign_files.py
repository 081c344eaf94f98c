"""Files of another kind than they are taken for: each is named, with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from rwkvsts import DataError, corpus
from rwkvsts.cli import main
from rwkvsts.data import own, readers
from rwkvsts.study import baselines


def feather() -> bytes:
    out = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.table({"text": ["a"]}), out)
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


TEXT = b"one line\nanother line\n" * 20
KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "UTF-16 without a mark": (lambda: TEXT.decode().encode("utf-16-le"), "in UTF-16, without a"),
    "its other order": (lambda: TEXT.decode().encode("utf-16-be"), "in UTF-16, without a"),
    "bzip2": (lambda: bz2.compress(TEXT), "compressed by bzip2: unpack"),
    "xz": (lambda: lzma.compress(TEXT), "compressed by xz: unpack"),
    "Feather": (feather, r"an Arrow file \(Feather\): save it as Parquet"),
    "a NumPy array": (npy, "a NumPy array: save"),
    "a pickle": (lambda: pickle.dumps(["a"]), "a Python pickle: save"),
    "an old pickle": (lambda: pickle.dumps(["a"], 2), "a Python pickle: save"),
    "a PDF": (lambda: b"%PDF-1.7\n" + TEXT, "a PDF: save its text"),
    "a Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl", "parquet", "txt.gz"])
def test_inputs_of_a_corpus_job(tmp_path: Path, kind: str, ending: str) -> None:
    make, words = KINDS[kind]
    path = tmp_path / f"x.{ending}"
    path.write_bytes(gzip.compress(make()) if ending.endswith("gz") else make())
    with pytest.raises(DataError, match=rf"x\.{ending} is .*{words}"):
        corpus.survey(corpus.find([str(path)]), corpus.Columns(), "error")


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_and_word_vectors(tmp_path: Path, kind: str) -> None:
    make, words = KINDS[kind]
    for ending in ("tsv", "csv", "parquet"):
        path = tmp_path / f"x.{ending}"
        path.write_bytes(make())
        with pytest.raises(DataError, match=rf"x\.{ending} is .*{words}"):
            own.load_file(path)
    with pytest.raises(DataError, match=words):
        baselines.load_vectors(path, ["a"])


def test_texts_that_only_begin_alike(tmp_path: Path) -> None:
    for text in ("a\0b\n", "<html> is a tag\n", "PDF\n", "BZh\n", "\u00e9\0\u00e8\n"):
        (tmp_path / "x.txt").write_text(text, "utf-8")
        found = corpus.survey(corpus.find([str(tmp_path / "x.txt")]), corpus.Columns(), "error")
        assert found.rows == [1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text;n\na;1\n", "columns are separated by ';'; save it as .csv with commas"),
        ("a.csv", "sep=;\ntext;n\na;1\n", "columns are separated by ';'"),
        ("a.csv", "text\tn\na\t1\n", r"columns are separated by '\\t'"),
        ("a.tsv", "text,n\na,1\n", "columns are separated by ','"),
        ("a.csv", "hello there,1\nb,2\n", "no column 'text'.*the first line must name the columns"),
    ],
)
def test_tables_that_are_separated_otherwise(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        corpus.survey(corpus.find([str(tmp_path / name)]), corpus.Columns(), "error")


def test_a_column_whose_name_holds_a_semicolon_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;n\na;1\n")
    found = corpus.survey(corpus.find([str(tmp_path / "a.csv")]), corpus.Columns("text;n"), "error")
    assert found.rows == [1]


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,n\ncaf\u00e9,1\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.csv: not UTF-8 .*save the file as UTF-8"):
        corpus.survey(corpus.find([str(tmp_path / "a.csv")]), corpus.Columns(), "error")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('id,text\n1,"a\n2,b\n', "line 2: a quotation mark opens a cell"),
        ("id;text\n1;a\n", "columns are separated by ';'"),
        ("id,body\n1,a\n", "no column 'text'; found 'id', 'body'"),
    ],
)
def test_a_job_on_ray_is_refused_alike(
    tmp_path: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before Ray is asked for, which need not be installed, and would tell it by traces."""
    (tmp_path / "a.csv").write_text(content)
    options: list[Any] = ["--ray", "--layers", "0", "--id-column", "id", "--out", tmp_path / "out"]
    assert main(["embed", str(tmp_path / "a.csv"), *map(str, options)]) == 1
    assert words in capsys.readouterr().err


def test_word_vectors_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("the 1 2\ncat 1 1e39\n")
    with pytest.raises(DataError, match="line 2: expected finite numbers, found 1e39"):
        baselines.load_vectors(path, ["the cat"])
    path.write_bytes(b"1 3\nthe " + np.array([1, 2, 3], np.float32).tobytes() + b"\n")
    with pytest.raises(DataError, match=r"line 2: expected text, found bytes; save binary vectors"):
        baselines.load_vectors(path, ["the cat"])


def test_only_a_table_of_parquet_is_read_as_one(tmp_path: Path) -> None:
    table = pyarrow.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1.0, 2.0]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert len(list(readers.read_parquet(tmp_path / "x.parquet", ("label",)))) == 2


def test_a_folder_that_may_not_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its texts would be missing without a word. Root may read all: the system is played."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "closed" / "b.txt").write_text("b\n")
    assert len(corpus.find([str(tmp_path)])) == 2
    scan = os.scandir

    def scandir(path: Any = ".") -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\); ask its"):
        corpus.find([str(tmp_path)])


def test_linked_folders_are_looked_into_once(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in (folder / "a.txt", folder / "more" / "b.txt", tmp_path / "elsewhere" / "c.txt"):
        path.write_text("a\n")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)  # which would never end
    found = [Path(source.name).name for source in corpus.find([str(folder)])]
    assert found == ["a.txt", "c.txt", "b.txt"]
    (folder / "lost.txt").symlink_to("nowhere.txt")
    with pytest.raises(DataError, match="lost.txt cannot be read .No such file"):
        corpus.find([str(folder)])


def test_a_file_that_may_not_be_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text("a\n")
    (tmp_path / "x.npy").write_text("dear")
    (tmp_path / "x.npy").chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).stat().st_mode & 0o222 != 0)
    assert main(["embed", str(tmp_path / "t.txt"), "--out", str(tmp_path / "x.npy")]) == 1
    assert "x.npy may not be written; give another name" in capsys.readouterr().err
    assert (tmp_path / "x.npy").read_text() == "dear"


@pytest.mark.parametrize("out", ["run:1", "s3:x", "x.bin"])
def test_a_folder_of_shards_may_be_called_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """pyarrow takes a name with a colon for an address, an input's too."""
    monkeypatch.chdir(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "in:1.parquet")
    Path(out).mkdir()  # without it x.bin would promise another format
    argv = ["embed", "in:1.parquet", "--out", out, "--layers", "0", "--device", "cpu"]
    assert main(argv) == 0
    assert main(argv) == 0  # it is found whole
    assert pyarrow.parquet.read_metadata(tmp_path / out / "part-00000.parquet").num_rows == 2
    table = pyarrow.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1.0, 2.0]})
    pyarrow.parquet.write_table(table, tmp_path / "mine:1.parquet")
    assert len(own.load_file("mine:1.parquet")[0].label) == 2


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ('"he said ""yes"" twice"', True),
        ('"""all of it"""', True),
        ('"he said', False),  # as MRPC has it
        ('"a whole sentence"', False),
        ('""a""', False),
        ('5"" disk', False),
    ],
)
def test_a_table_of_tabs_that_was_quoted_as_csv(tmp_path: Path, text: str, quoted: bool) -> None:
    """As pandas writes one; its texts would keep their quotes, doubled, without a word."""
    (tmp_path / "x.tsv").write_text(f"text\tn\na\t1\n{text}\t2\n")
    (tmp_path / "y.TSV").write_text(f"sentence1\tsentence2\tlabel\na\tb\t1\nc\t{text}\t2\n")

    def both() -> None:
        own.load_file(tmp_path / "y.TSV")
        corpus.survey(corpus.find([str(tmp_path / "x.tsv")]), corpus.Columns(), "error")

    if not quoted:
        both()
        return
    with pytest.raises(DataError, match="line 3, column 'sentence2': it is quoted as in CSV"):
        own.load_file(tmp_path / "y.TSV")
    with pytest.raises(DataError, match=r"x.tsv, row 2: it is quoted as in CSV.*save it as \.csv"):
        corpus.survey(corpus.find([str(tmp_path / "x.tsv")]), corpus.Columns(), "error")
