"""Data sets: GLUE's split rule, published counts, and one clear error for each thing wrong.

The files are made here at their full size, because a data set of another size is refused.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hubserver import Repo, serve
from huggingface_hub import constants

from rwkvsts.data import datasets
from rwkvsts.errors import DataError, HubError

MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


def mrpc_lines() -> list[str]:
    """4076 rows; row i says so in its sentences. Every tenth, up to 408, belongs to validation."""
    return [f"{i % 3 > 0:d}\t{i}\t{10_000 + i}\tFirst {i} .\tSecond {i} ." for i in range(4076)]


def write_mrpc(folder: Path, lines: list[str], end: str = "\n", bom: str = "\ufeff") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = bom + end.join([MRPC_HEADER, *lines]) + end
    (folder / "msr_paraphrase_train.txt").write_bytes(text.encode())
    ids = "".join(f"{i}\t{10_000 + i}\n" for i in reversed(range(0, 4076, 10)))
    (folder / "mrpc_dev_ids.tsv").write_text(ids)
    return folder


@pytest.fixture
def mrpc(tmp_path: Path) -> Path:
    return write_mrpc(tmp_path / "data" / "mrpc", mrpc_lines())


def test_mrpc_follows_glue_split_rule_in_file_order(mrpc: Path) -> None:
    train = datasets.load("mrpc", "train", mrpc)
    validation = datasets.load("mrpc", "validation", mrpc)
    dev = list(range(0, 4076, 10))
    rest = [i for i in range(4076) if i % 10]
    assert validation.sentence1 == [f"First {i} ." for i in dev]
    assert train.sentence1 == [f"First {i} ." for i in rest]
    assert train.sentence2 == [f"Second {i} ." for i in rest]
    assert train.label.tolist() == [float(i % 3 > 0) for i in rest]
    assert train.label.dtype == np.float64 and train.binary


def test_slice_takes_the_first_rows(mrpc: Path) -> None:
    whole = datasets.load("mrpc", "train", mrpc)
    part = datasets.load("mrpc", "train[:1000]", mrpc)
    assert (len(part), part.split) == (1000, "train[:1000]")
    assert part.sentence2 == whole.sentence2[:1000]
    assert np.array_equal(part.label, whole.label[:1000])
    tail = datasets.load("mrpc", "train[3000:]", mrpc)
    assert tail.sentence1 == whole.sentence1[3000:]


def test_root_and_own_folder_are_the_same(mrpc: Path) -> None:
    inside, outside = (datasets.load("mrpc", "validation", p) for p in (mrpc, mrpc.parent))
    assert inside.sentence1 == outside.sentence1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_quotes_line_ends_and_byte_order_mark(tmp_path: Path, end: str, bom: str) -> None:
    lines = mrpc_lines()
    # An unbalanced quote, a space at the end, and a character that splitlines() cuts at.
    lines[0] = '1\t0\t10000\t"Open quote\x85 and  spaces \t He said " no'
    pairs = datasets.load("mrpc", "validation", write_mrpc(tmp_path, lines, end, bom))
    assert pairs.sentence1[0] == '"Open quote\x85 and  spaces '
    assert pairs.sentence2[0] == ' He said " no'
    assert len(pairs) == 408


def _replace(line: int, text: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [*lines[: line - 2], text, *lines[line - 1 :]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_replace(7, "2\t5\t10005\ta\tb"), r"line 7, column 'Quality': expected 0 or 1, found '2'"),
        (_replace(7, "0.5\t5\t10005\ta\tb"), r"line 7, column 'Quality'.*found '0.5'"),
        (_replace(7, "nan\t5\t10005\ta\tb"), r"line 7, column 'Quality'.*found 'nan'"),
        (_replace(7, "1\t5\t10005\ta"), r"line 7: expected 5 tab separated columns, found 4"),
        (_replace(7, "1\t5\t10005\ta\tb\tc"), r"line 7: expected 5 tab .* found 6"),
        (_replace(7, "1\t5\t10005\t \tb"), r"line 7, column '#1 String': expected a sentence"),
        (lambda lines: lines[:-1], r"expected 3668 pairs in mrpc train, found 3667"),
        (lambda lines: [], r"expected 3668 pairs in mrpc train, found 0"),
    ],
)
def test_damaged_mrpc_is_refused(
    tmp_path: Path, spoil: Callable[[list[str]], list[str]], message: str
) -> None:
    write_mrpc(tmp_path, spoil(mrpc_lines()))
    with pytest.raises(DataError, match=message):
        datasets.load("mrpc", "train", tmp_path)


def test_missing_column_not_utf8_and_wrong_ids(mrpc: Path) -> None:
    file = mrpc / "msr_paraphrase_train.txt"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"Quality", b"Label", 1))
    with pytest.raises(DataError, match="column 'Quality' is missing; found 'Label', '#1 ID'"):
        datasets.load("mrpc", "train", mrpc)
    file.write_bytes(good.replace(b"First 41 ", b"First \xff41 ", 1))
    with pytest.raises(DataError, match="line 43: not UTF-8"):
        datasets.load("mrpc", "train", mrpc)
    file.write_bytes(good)
    (mrpc / "mrpc_dev_ids.tsv").write_text("0\t10000\n" * 408)
    with pytest.raises(DataError, match="expected 408 distinct id pairs, found 1"):
        datasets.load("mrpc", "validation", mrpc)


def test_unknown_names_and_absent_files(mrpc: Path) -> None:
    with pytest.raises(DataError, match="no data set 'glue'; choose one of mrpc"):
        datasets.load("glue", "train", mrpc)
    for split in ("dev", "train[1000]", "train[:9999]", "train[5:5]"):
        with pytest.raises(DataError, match="slice"):
            datasets.load("mrpc", split, mrpc)
    with pytest.raises(DataError, match=r"sts-test\.csv is neither in .* give the folder"):
        datasets.load("stsb", "test", mrpc.parent)


def test_stsb_has_no_header_and_may_have_more_columns(tmp_path: Path) -> None:
    lines = [f"news\tf\t2012\t{i}\t{i % 6}\tOne {i}\tTwo {i}" for i in range(1500)]
    lines[3] += "\tsource a\tsource b"
    file = tmp_path / "sts-dev.csv"
    file.write_text("\n".join(lines) + "\n")
    pairs = datasets.load("stsb", "validation", tmp_path)
    assert pairs.sentence1[3] == "One 3" and pairs.sentence2[3] == "Two 3"
    assert pairs.label[:7].tolist() == [0, 1, 2, 3, 4, 5, 0] and not pairs.binary
    lines[8] = lines[8].replace("\t2\t", "\t5.1\t")
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 9, column 'score': expected a number from 0 to 5"):
        datasets.load("stsb", "validation", tmp_path)


def write_sick(folder: Path) -> None:
    names = ["TRAIN"] * 4439 + ["TRIAL"] * 495 + ["TEST"] * 4906
    rows = [f"A {i}\tB {i}\t{1 + i % 5}\t{name}" for i, name in enumerate(names[::-1])]
    header = "sentence_A\tsentence_B\trelatedness_score\tSemEval_set"
    (folder / "SICK.txt").write_bytes("\r\n".join([header, *rows, ""]).encode())
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    for file, count in (("train", 4500), ("trial", 500), ("test_annotated", 4927)):
        rows = [f"{i}\t{file} A {i}\tB {i}\t{1 + i % 5}\tNEUTRAL" for i in range(count)]
        (folder / f"SICK_{file}.txt").write_text("\n".join([header, *rows, ""]))


def test_both_editions_of_sick(tmp_path: Path) -> None:
    write_sick(tmp_path)
    test = datasets.load("sick", "test", tmp_path)
    assert (len(test), test.sentence1[0], test.sentence2[-1]) == (4906, "A 0", "B 4905")
    assert len(datasets.load("sick", "validation", tmp_path)) == 495
    whole = datasets.load("sick-2014", "all", tmp_path)
    assert len(whole) == 9927
    assert [whole.sentence1[i] for i in (0, 4500, 5000)] == [
        "train A 0",
        "trial A 0",
        "test_annotated A 0",
    ]
    file = tmp_path / "SICK.txt"
    file.write_bytes(file.read_bytes().replace(b"TRIAL", b"DEV", 1))
    with pytest.raises(DataError, match="column 'SemEval_set': expected TRAIN, TRIAL or TEST"):
        datasets.load("sick", "test", tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Stands in for the hub: repository/file to a local path; unreachable while empty."""
    files: dict[str, Path] = {}

    def download(repo: str, file: str, repo_type: str, **_: object) -> str:
        assert repo_type == "dataset"
        return str(files[f"{repo}/{file}"])

    def ask(*_: object, **__: object) -> None:
        if not files:
            raise OSError("connection refused")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return files


def test_mrpc_from_the_hub(tmp_path: Path, hub: dict[str, Path]) -> None:
    columns = {
        "sentence1": [f'One " {i}' for i in range(408)],
        "sentence2": [f"Two {i}" for i in range(408)],
        "label": [i % 2 for i in range(408)],
        "idx": list(range(408)),
    }
    path = tmp_path / "validation.parquet"
    hub["nyu-mll/glue/mrpc/validation-00000-of-00001.parquet"] = path
    pa.parquet.write_table(pa.table(columns), path)
    pairs = datasets.load("mrpc")
    assert pairs.split == "validation"
    assert pairs.sentence1 == columns["sentence1"] and pairs.sentence2 == columns["sentence2"]
    assert pairs.label.tolist() == columns["label"]

    pa.parquet.write_table(pa.table(columns).slice(1), path)
    with pytest.raises(DataError, match="expected 408 pairs in mrpc validation, found 407"):
        datasets.load("mrpc")
    pa.parquet.write_table(pa.table(columns).drop_columns("label"), path)
    with pytest.raises(DataError, match="column 'label' is missing; found 'sentence1'"):
        datasets.load("mrpc")
    columns["sentence2"][4] = None  # type: ignore[call-overload]
    pa.parquet.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match="line 5, column 'sentence2': expected a sentence"):
        datasets.load("mrpc")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        datasets.load("mrpc")


def test_sick_from_the_hub_is_one_split_of_jsonl(tmp_path: Path, hub: dict[str, Path]) -> None:
    rows = [
        {"sentence1": f"One {i}", "sentence2": f"Two {i}", "score": 1 + i % 5} for i in range(9927)
    ]
    path = tmp_path / "test.jsonl.gz"
    hub["mteb/sickr-sts/test.jsonl.gz"] = path
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pairs = datasets.load("sick-2014", "all[2:4]")
    assert pairs.sentence1 == ["One 2", "One 3"] and pairs.label.tolist() == [3, 4]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="not readable as JSON Lines"):
        datasets.load("sick-2014", "all")
    path.write_bytes(gzip.compress(b'{"sentence1": "a"}\nnull\n'))
    with pytest.raises(DataError, match="column 'sentence2' is missing"):
        datasets.load("sick-2014", "all")
    with pytest.raises(DataError, match="hub copy of sick-2014 offers all, not 'test'"):
        datasets.load("sick-2014", "test")
    with pytest.raises(DataError, match=r"sick is not on the hub, only 'sick-2014' is.*SICK\.txt"):
        datasets.load("sick", "test")


def test_real_client_caches_pins_and_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parquet(word: str) -> bytes:
        columns = {f"sentence{k}": [f"{word} {k} {i}" for i in range(1379)] for k in (1, 2)}
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table({**columns, "score": [0.5] * 1379}), sink)
        return sink.getvalue().to_pybytes()

    old, new = "a" * 40, "b" * 40
    file = "data/test-00000-of-00001.parquet"
    repo = Repo({old: {file: parquet("Old")}, new: {file: parquet("New")}}, {"main": new})
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    place = {"cache_dir": tmp_path / "cache"}
    with serve({"sentence-transformers/stsb": repo}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert datasets.load("stsb", "test", **place).sentence1[7] == "New 1 7"
        assert datasets.load("stsb", "test", revision=old, **place).sentence2[7] == "Old 2 7"
        with pytest.raises(HubError, match=r"no revision .*Or give a local folder"):
            datasets.load("stsb", "test", revision="c" * 40, **place)
        with pytest.raises(HubError, match=r"nyu-mll/glue/mrpc/.*: no such repository"):
            datasets.load("mrpc", "test", **place)
    # The hub is gone: what was downloaded serves, what was not says so.
    assert datasets.load("stsb", "test", **place).sentence1[0] == "New 1 0"
    assert len(datasets.load("stsb", "test", local_files_only=True, **place)) == 1379
    with pytest.raises(HubError, match=r"not in the cache.*Or give a local folder"):
        datasets.load("stsb", "train", local_files_only=True, **place)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("retries for half a minute"))
    with pytest.raises(HubError, match=r"not in the cache, and the hub cannot be reached"):
        datasets.load("stsb", "train", **place)


def test_no_network_is_a_hub_error(hub: dict[str, Path]) -> None:
    with pytest.raises(HubError, match=r"nyu-mll/glue/.*cannot be reached .*connection refused"):
        datasets.load("mrpc", "train")


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("mrpc", "train", 3668),
        ("mrpc", "validation", 408),
        ("mrpc", "test", 1725),
        ("stsb", "train", 5749),
        ("stsb", "validation", 1500),
        ("stsb", "test", 1379),
        ("sick", "test", 4906),
        ("sick-2014", "test", 4927),
        ("sick-2014", "all", 9927),
    ],
)
def test_real_data_is_complete(shared: Path, name: str, split: str, count: int) -> None:
    assert len(datasets.load(name, split, shared)) == count


def test_real_mrpc_share_of_paraphrases(shared: Path) -> None:
    shares = [datasets.load("mrpc", s, shared).label.mean() for s in ("train", "validation")]
    assert shares == pytest.approx([2474 / 3668, 279 / 408])


def test_older_scripts_find_data_sets_and_baselines_where_they_were() -> None:
    import rwkvsts.baselines
    import rwkvsts.datasets
    from rwkvsts.study import baselines

    assert rwkvsts.datasets.load is datasets.load
    assert rwkvsts.baselines.load_vectors is baselines.load_vectors
