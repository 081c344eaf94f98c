"""People's own pairs: every format gives the same pairs, and what is wrong is named by its place.

With them the public data sets in other layouts: GLUE's own files, and mteb's on the hub.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from rwkvsts.data import Pairs, load, load_file
from rwkvsts.data.pairs import shown
from rwkvsts.errors import DataError

ROWS = [
    {"sentence1": "A cat, of sorts.", "sentence2": 'It said "so".', "label": 1.5},
    {"sentence1": "Zwei  Wörter", "sentence2": "three\u2028lines", "label": -2.0},
    {"sentence1": " lead", "sentence2": "trail ", "label": 0.0},
]


def as_tsv(rows: list[dict[str, Any]]) -> bytes:
    lines = ["\t".join(rows[0])] + ["\t".join(map(str, row.values())) for row in rows]
    return ("\ufeff" + "\r\n".join(lines)).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    def cell(value: Any) -> str:
        quoted = str(value).replace('"', '""')
        return f'"{quoted}"'

    lines = [",".join(rows[0])] + [",".join(map(cell, row.values())) for row in rows]
    return "\n".join(lines).encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps({"other": None, **row}) for row in rows).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


FORMATS = {"tsv": as_tsv, "csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_pairs(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine.{ending}"
    path.write_bytes(FORMATS[ending](ROWS))
    (pairs,) = load_file(path)
    assert (pairs.name, pairs.split) == ("mine", "all")
    assert pairs.sentence1 == [row["sentence1"] for row in ROWS]
    assert pairs.sentence2 == [row["sentence2"] for row in ROWS]
    assert pairs.label.tolist() == [1.5, -2.0, 0.0]


@pytest.mark.parametrize("ending", FORMATS)
def test_columns_by_name_and_splits_in_order(tmp_path: Path, ending: str) -> None:
    rows = [
        {"split": split, "b": f"b{i}", "score": i, "a": f"a{i}"}
        for i, split in enumerate(["test", "train", "test", "train"])
    ]
    path = tmp_path / f"mine.{ending}"
    path.write_bytes(FORMATS[ending](rows))
    found = load_file(path, ("a", "b", "score"))
    assert [(p.split, p.sentence1, p.label.tolist()) for p in found] == [
        ("train", ["a1", "a3"], [1, 3]),
        ("test", ["a0", "a2"], [0, 2]),
    ]
    with pytest.raises(DataError, match=r"column 'sentence1' is missing; found .*'split', 'b'"):
        load_file(path)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "high"}, "column 'label': expected a finite number, found 'high'"),
        ({"label": "inf"}, "column 'label': expected a finite number"),
        ({"label": "nan"}, "column 'label': expected a finite number"),
        ({"sentence2": "  "}, "column 'sentence2': expected a sentence"),
        ({"split": "dev"}, "column 'split': expected train, validation, test, found 'dev'"),
    ],
)
def test_a_bad_cell_is_named(
    tmp_path: Path, ending: str, change: dict[str, Any], message: str
) -> None:
    rows = [{**row, "label": str(row["label"]), "split": "test"} for row in ROWS]
    rows[1] = {**rows[1], **change}
    path = tmp_path / f"mine.{ending}"
    path.write_bytes(FORMATS[ending](rows))
    line = {"tsv": 3, "csv": 3, "jsonl": 2, "parquet": 2}[ending]
    with pytest.raises(DataError, match=rf"mine\.{ending}, line {line}, {message}"):
        load_file(path)


def test_csv_cells_hold_line_ends_and_rows_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('sentence1,sentence2,label\n"two\nlines",b,1\nc,d,2\n')
    (pairs,) = load_file(path)
    assert pairs.sentence1 == ["two\nlines", "c"]
    path.write_text("sentence1,sentence2,label\na,b,1\nc, and more,d,2\n")
    with pytest.raises(DataError, match="line 3: expected 3 cells, found 4; a comma within"):
        load_file(path)


HEADER = "sentence1,sentence2,label\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", HEADER.replace(",", ";") + "a;b;3,5\n", "columns are separated by ';'; save it"),
        ("a.csv", HEADER.replace(",", "\t") + "a\tb\t3\n", r"columns are separated by '\\t'"),
        ("a.tsv", HEADER + "a,b,3\n", "columns are separated by ','"),
        ("a.csv", "label," + HEADER + "1,a,b,2\n", "two columns are called 'label'"),
        ("a.tsv", "label\tlabel\n", "two columns are called 'label'"),
        ("a.tsv", "sentence1\tsentence2\tlabel\ra\tb\t1\r", "carriage returns alone"),
        ("a.csv", "\ufffe", "not UTF-8|is in UTF-16"),
        ("a.csv", "PK\3\4", "is a zip"),
        ("a.jsonl", "PK\3\4", "this is a zip"),
    ],
)
def test_another_kind_of_file_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    raw = content.encode("utf-16-be" if content == "\ufffe" else "utf-8")
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        load_file(tmp_path / name)
    assert name in str(caught.value)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "a,b,1\n\nc,d,2\n\n")
    rows = [{"sentence1": "a", "sentence2": "b", "label": i} for i in range(2)]
    (tmp_path / "a.jsonl").write_text("\n \n".join(map(json.dumps, rows)) + "\n\n")
    for name in ("a.csv", "a.jsonl"):
        assert len(load_file(tmp_path / name)[0]) == 2


def test_what_is_no_file_of_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.tsv").write_bytes(as_tsv(ROWS[:1]))
    with pytest.raises(DataError, match="expected at least two pairs, found 1"):
        load_file(tmp_path / "one.tsv")
    with pytest.raises(DataError, match=r"expected a file that ends in \.tsv, \.csv, \.jsonl"):
        load_file(tmp_path / "mine.xlsx")
    for ending in FORMATS:
        with pytest.raises(DataError, match=f"absent.{ending}"):
            load_file(tmp_path / f"absent.{ending}")


def test_results_name_a_file_without_the_way_to_it() -> None:
    assert shown(Path("/home/somebody/data/mrpc/train.tsv")) == "mrpc/train.tsv"
    cached = "/home/somebody/hub/datasets--nyu-mll--glue/snapshots/abc/mrpc/test.parquet"
    assert shown(Path(cached)) == "nyu-mll/glue@abc: mrpc/test.parquet"
    assert shown(Path("data/mine.tsv")) == "data/mine.tsv"


MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


def mrpc_rows(count: int) -> list[str]:
    return [f'{i % 2}\t{2 * i}\t{2 * i + 1}\tHe said "{i}\tIt is, {i} .' for i in range(count)]


def test_glues_own_layout_of_mrpc(tmp_path: Path) -> None:
    rows = mrpc_rows(4076)
    (tmp_path / "dev.tsv").write_text("\n".join([MRPC, *rows[:408]]))
    (tmp_path / "train.tsv").write_text("\n".join([MRPC, *rows[408:]]))
    assert load("mrpc", "validation", tmp_path).sentence1[0] == 'He said "0'
    assert len(load("mrpc", "train", tmp_path)) == 3668
    (tmp_path / "train.tsv").write_text("\n".join([MRPC, *rows[409:]]))
    with pytest.raises(DataError, match=r"found 3667.*copies of GLUE's train\.tsv lack a row"):
        load("mrpc", "train", tmp_path)


def test_the_original_comes_before_glues_files_and_dev_ids_has_two_names(tmp_path: Path) -> None:
    rows = mrpc_rows(4076)
    (tmp_path / "dev.tsv").write_text("\n".join([MRPC, *rows[408:816]]))
    (tmp_path / "msr_paraphrase_train.txt").write_text("\n".join([MRPC, *rows]))
    with pytest.raises(DataError, match=r"mrpc_dev_ids\.tsv or dev_ids\.tsv is not in"):
        load("mrpc", "validation", tmp_path)
    ids = "".join(f"{2 * i}\t{2 * i + 1}\n" for i in range(408))
    (tmp_path / "dev_ids.tsv").write_text(ids)
    assert load("mrpc", "validation", tmp_path).sentence1[0] == 'He said "0'
    (tmp_path / "msr_paraphrase_train.txt").write_text("")
    with pytest.raises(DataError, match="expected 408 pairs in mrpc validation, found 0"):
        load("mrpc", "validation", tmp_path)


def test_stsb_in_glues_layout_and_with_a_header(tmp_path: Path) -> None:
    names = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    header = names.replace(" ", "\t")
    (tmp_path / "dev.tsv").write_text(f"{header}\n" + "0\tg\tf\t12\t1\tn\tn\ta\tb\t2.5\n" * 1500)
    assert load("stsb", "validation", tmp_path).label[7] == 2.5
    header = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"
    rows = "main\tMSRvid\t2012\t1\t3.5\tc\td\n" * 1500
    (tmp_path / "sts-dev.csv").write_text(header + rows)
    assert load("stsb", "validation", tmp_path).sentence1[0] == "c"
    (tmp_path / "sts-dev.csv").write_text(rows.replace("3.5", "", 1))
    with pytest.raises(DataError, match="line 1, column 'score': expected a number from 0 to 5"):
        load("stsb", "validation", tmp_path)


def sts(count: int) -> bytes:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 6} for i in range(count)]
    return gzip.compress("\n".join(map(json.dumps, rows)).encode())


@pytest.mark.parametrize(
    ("name", "count"),
    [("sts12", 3108), ("sts13", 1500), ("sts14", 3750), ("sts15", 3000), ("sts16", 1186)],
)
def test_sts_tasks_are_one_loader(tmp_path: Path, name: str, count: int) -> None:
    place = tmp_path / f"{name}-sts" / "test.jsonl.gz"
    place.parent.mkdir()
    place.write_bytes(sts(count))
    pairs = load(name, None, tmp_path)
    assert (pairs.split, len(pairs), pairs.label.max()) == ("test", count, 5)
    place.write_bytes(sts(count - 1))
    with pytest.raises(DataError, match=f"expected {count} pairs in {name} test, found"):
        load(name, None, tmp_path)


def test_any_repository_in_that_layout_is_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def fetch(repo: str, file: str, **_: Any) -> Path:
        asked.append((repo, file))
        (tmp_path / "test.jsonl.gz").write_bytes(sts(12))
        return tmp_path / "test.jsonl.gz"

    monkeypatch.setattr("rwkvsts.data.datasets.fetch", fetch)
    pairs: Pairs = load("org/another-sts", "test[:10]")
    assert len(pairs) == 10 and asked == [("org/another-sts", "test.jsonl.gz")]
    with pytest.raises(DataError, match="no data set 'anything'; choose one of mrpc"):
        load("anything")
