"""The corpus job: what it reads, writes, counts and refuses.

That it survives being killed is in test_corpus_survives.py. A row's right value is always what
`encode` gives for its text alone.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from makecheckpoint import write_safetensors
from tinymodel import random_weights

from rwkvsts import RWKV6, DataError, cli, corpus
from rwkvsts.corpus import blocks, job, meter, options, output, overlap, readers

TEXTS = [f"text {i}: {'long ' * (i % 7)}end \u2028 {'ünï'[: i % 4]}" for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RWKV6:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_safetensors(path, random_weights(5, L=3, V=256))
    return RWKV6.from_pretrained(
        path, device="cpu", dtype="float32", tokenizer="bytes", instruction_set="portable"
    )


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(texts: list[Any] = TEXTS) -> list[dict[str, Any]]:
    return [{"id": f"{i:03}", "text": text, "n": i, "z": [i]} for i, text in enumerate(texts)]


def survey(*names: object, columns: corpus.Columns | None = None, **how: Any) -> corpus.Survey:
    form = how.pop("form", None)
    found = corpus.find([str(name) for name in names], form)
    return corpus.survey(found, columns or corpus.Columns(), how.pop("on_empty", "error"))


def texts_of(found: corpus.Survey) -> list[str | None]:
    tables = [t for s in found.sources for t in readers.read(s, found.columns)]
    return [text for table in tables for text in table.column(found.columns.text).to_pylist()]


def vectors(table: pyarrow.Table, layer: object) -> np.ndarray:
    column = table.column(f"layer_{layer}").combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


class TestInputs:
    def test_every_format_and_packing_gives_the_same_texts(self, tmp_path: Path) -> None:
        table = pyarrow.Table.from_pylist(records())
        pyarrow.parquet.write_table(table, "a.parquet", row_group_size=7)
        write_jsonl(Path("a.jsonl"), records())
        quoted = [f'{i:03},"{text}",{i}\n' for i, text in enumerate(TEXTS)]
        Path("a.csv").write_text("id,text,n\n" + "".join(quoted))
        tabbed = [f"{i:03}\t{text}\n" for i, text in enumerate(TEXTS)]
        Path("a.tsv").write_text("id\ttext\n" + "".join(tabbed))
        Path("a.txt").write_text("\ufeff" + "".join(text + "\r\n" for text in TEXTS))
        for name in ("a.jsonl", "a.csv", "a.tsv", "a.txt"):
            content = Path(name).read_bytes()
            Path(name + ".gz").write_bytes(
                gzip.compress(content[:50]) + gzip.compress(content[50:])
            )
            Path(name + ".zst").write_bytes(pyarrow.compress(content, "zstd", asbytes=True))
        files = sorted(path.name for path in tmp_path.iterdir())
        assert len(files) == 13
        for name in files:
            assert texts_of(survey(name)) == TEXTS, name
        assert texts_of(survey(*files)) == TEXTS * len(files)
        assert texts_of(survey(tmp_path)) == TEXTS * len(files)
        assert texts_of(survey("a.*.gz")) == TEXTS * 4

    def test_pieces_smaller_than_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readers, "LINES", 64)
        write_jsonl(Path("a.jsonl"), records())
        Path("a.txt").write_text("\n".join(TEXTS))
        assert texts_of(survey("a.jsonl")) == TEXTS and texts_of(survey("a.txt")) == TEXTS

    def test_a_folder_stands_for_its_known_files_below(self, tmp_path: Path) -> None:
        for name in ("b/x.txt", "a.txt", ".hidden/y.txt", "_notes.txt", "readme.md"):
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name + "\n")
        assert texts_of(survey("set")) == ["a.txt", "b/x.txt"]
        Path("empty").mkdir()
        with pytest.raises(DataError, match=r"empty: no file in it ends in \.txt"):
            survey("empty")

    def test_standard_input_and_pipes_are_read_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readers, "PIECE", 1 << 12)
        texts = [hashlib.sha512(b"%d" % i).hexdigest() for i in range(5000)]  # beyond all buffers
        lines = "".join(text + "\n" for text in texts).encode()
        os.mkfifo("pipe")
        for form, content in (("text", gzip.compress(lines)), ("csv", b"text\n" + lines)):
            with ThreadPoolExecutor(1) as writer:
                writer.submit(Path("pipe").write_bytes, content)
                stdin = open("pipe", "rb")  # noqa: SIM115  # find closes it
                monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stdin))
                found = survey("-", form=form)
            assert found.rows == [5000] and texts_of(found) == texts

    def test_what_is_no_input(self, tmp_path: Path) -> None:
        Path("a.txt").write_text("a\n")
        Path("b.txt").symlink_to("a.txt")
        for names, message in [
            (["nowhere"], "nowhere cannot be read (No such file"),
            (["x*.txt"], "no file has such a name"),
            (["a.txt", "b.txt"], "b.txt is named twice, as a.txt too"),
            (["/dev/zero"], "neither a file, a folder nor a pipe"),
        ]:
            with pytest.raises(DataError) as caught:
                corpus.find(names)
            assert message in str(caught.value)


class TestRows:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", b"one\ntw\xffo\n", "line 2: not UTF-8 at byte 2"),
            ("a.txt", "one\n".encode("utf-16"), "a.txt is in UTF-16: save it as UTF-8"),
            ("a.txt", b"PAR1....", "is a Parquet file"),
            ("a.csv", b"PK\3\4....", "a.csv is a zip: unpack it"),
            ("a.jsonl", b"<!DOCTYPE html>\n", "is a web page"),
            ("a.txt.gz", gzip.compress(b"one\n" * 99)[:-9], "not readable as text after line 0"),
            ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "line 3: no JSON"),
            ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2: expected a JSON object a line"),
            ("a.jsonl", b'{"text": "a"}\nnull', "line 2: expected a JSON object a line"),
            ("a.jsonl", b'{"text": "a"}\n' * 2000 + b"null\n", "line 2001: expected a JSON object"),
            ("a.jsonl", b'{"body": "a"}\n', "no column 'text'; found 'body': name one by --column"),
            (
                "a.jsonl",
                b'{"text": "a"}\n' * 2000 + b'{"text": 3}\n',
                "line 2001: 'text' is no",
            ),
            (
                "a.jsonl",
                b'{"text": "a"}\n' * 2000 + b'{"text": "\xff"}',
                "row 2001: column 'text' is not UTF-8",
            ),
            ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: 'text' holds half a surrogate pair"),
            ("a.jsonl", b'{"text": [1]}\n', "line 1: 'text' is no string"),
            ("a.txt", b"one\rtwo\r", "its lines end in carriage returns alone"),
            ("a.csv", b"id,body\r1,a\r", "no column 'text'; found 'id', 'body'"),
            ("a.csv", b"text,text\na,b\n", "two columns are called 'text'"),
            ("a.tsv", b"text\ttext\na\tb\n", "two columns are called 'text'"),
            ("a.csv", b'id,text\n1,"a\nb"\n2,"c\n3,d\n', "line 4: a quotation mark opens a cell"),
            ("a.csv", b'text,n\na,1\nb,"2\nc,3\n', "line 3: a quotation mark opens a cell"),
            ("a.jsonl", b'{"text": ' + b"[" * 300_000, "line 1: no JSON (too deeply nested)"),
            ("a.csv", b"id,text\n1,a\n2,b,c\n", "Row #3: Expected 2 columns, got 3"),
            ("a.csv", b"id,text\n1,a\n2,\xff\n", "Row #3"),
            ("a.csv", b"x" * 5000 + b",body\n1,a\n", "no column 'text'; found 'xxx"),
            ("a.csv", b"id,body\n1,a\n", "no column 'text'; found 'id', 'body'"),
            ("a.csv", b"", "Empty CSV file"),
            ("a.parquet", b"PAR1 not", "not readable as parquet"),
            ("a.parquet.gz", gzip.compress(b"PAR1"), "Parquet is compressed inside; decompress"),
            ("a.txt", b"", "there is no text"),
            ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', "row 2: expected a text, found none"),
            ("a.csv", b'id,text\n1,a\n2,""\n', "row 2: expected a text, found none"),
        ],
    )
    def test_an_unreadable_row_is_named(self, name: str, content: bytes, message: str) -> None:
        Path(name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            survey(name)
        assert message in str(caught.value) and name in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_marks_that_belong_to_the_text(self) -> None:
        Path("a.csv").write_bytes(b'text,n\n5" disk,1\n"a ""b"" \nc",2\n')
        assert texts_of(survey("a.csv"))[:2] == ['5" disk', 'a "b" \nc']
        Path("a.txt").write_bytes(b"one\rtwo\nthree\r\n")
        assert texts_of(survey("a.txt")) == ["one\rtwo", "three"]
        limit = csv.field_size_limit()
        Path("a.csv").write_bytes(b'text\n5" disk\n' + b"x" * 2 * limit + b"\n")
        assert len(texts_of(survey("a.csv"))[1] or "") == 2 * limit
        assert csv.field_size_limit() == limit

    def test_a_parquet_column_must_hold_texts(self) -> None:
        doubled = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
        pyarrow.parquet.write_table(doubled, "d.parquet")
        with pytest.raises(DataError, match=r"d\.parquet: two columns are called 'text'"):
            survey("d.parquet")
        pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), "a.parquet")
        with pytest.raises(DataError, match="'text' is int64; name a column of texts"):
            survey("a.parquet")
        ends = pyarrow.py_buffer(np.array([0, 1, 2], np.int32))
        bad = pyarrow.Array.from_buffers(
            pyarrow.string(), 2, [None, ends, pyarrow.py_buffer(b"a\xff")]
        )
        pyarrow.parquet.write_table(pyarrow.table({"text": bad}), "b.parquet")
        with pytest.raises(DataError, match="row 2: column 'text' is not UTF-8"):
            survey("b.parquet")
        words = pyarrow.array(["a", None, "b"]).dictionary_encode()
        pyarrow.parquet.write_table(pyarrow.table({"text": words}), "c.parquet")
        assert texts_of(survey("c.parquet", on_empty="skip")) == ["a", None, "b"]

    def test_a_line_without_end_is_not_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readers, "LINES", 1 << 10)
        monkeypatch.setattr(readers, "LONGEST", 1 << 14)
        Path("a.txt.gz").write_bytes(gzip.compress(b"x" * (1 << 20)))
        with pytest.raises(DataError, match="line 1: longer than"):
            survey("a.txt.gz")

    def test_carried_columns_keep_their_types(self) -> None:
        rows = [
            {"text": "a", "id": "007", "when": "2024-01-01", "n": i, "o": {"b": 1.5}} for i in "12"
        ]
        write_jsonl(Path("a.jsonl"), rows)
        columns = corpus.Columns("text", "id", ("when", "n", "o", "text"))
        found = survey("a.jsonl", columns=columns)
        kinds = {field.name: str(field.type) for field in found.carried}
        assert kinds == {
            "id": "string",
            "when": "string",
            "n": "string",
            "o": "struct<b: double>",
            "text": "large_string",
        }
        Path("b.csv").write_text("id,text\n007,a\n")
        (table,) = readers.read(corpus.find(["b.csv"])[0], corpus.Columns("text", "id"))
        assert table.to_pylist() == [{"text": "a", "id": "007"}]
        write_jsonl(Path("c.jsonl"), [{"text": "a", "id": 7}])
        with pytest.raises(DataError, match=r"carried columns are \{id: int64\}"):
            survey("a.jsonl", "c.jsonl", columns=corpus.Columns("text", "id"))
        with pytest.raises(DataError, match="a text file has no column 'id'"):
            survey("a.jsonl", columns=corpus.Columns("text", "id"), form="text")
        write_jsonl(Path("d.jsonl"), [{"text": "a", "id": 7}, {"text": "b", "id": "8"}])
        with pytest.raises(DataError, match=r"d\.jsonl: column 'id' has values of several types"):
            survey("d.jsonl", columns=corpus.Columns("text", "id"))

    def test_blocks_are_cut_by_rows_bytes_and_shards_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blocks, "MOST_TEXT", 200)
        Path("a.txt").write_text("\n".join([*TEXTS, "x" * 500, "y"]))
        whole = None
        for piece in (37, 64, 4096):
            monkeypatch.setattr(readers, "LINES", piece)
            found = survey("a.txt")
            cuts = [table.to_pydict() for table in blocks.cut(found, 0, 8, 10)]
            assert [row for c in cuts for row in c["row"]] == list(range(42))
            assert all(len(c["row"]) <= 8 for c in cuts)
            assert all(c["row"][0] // 10 == c["row"][-1] // 10 for c in cuts)
            assert all(sum(map(len, c["text"])) <= 200 for c in cuts if len(c["text"]) > 1)
            whole = whole or cuts
            assert cuts == whole
            resumed = [table.to_pydict() for table in blocks.cut(found, 20, 8, 10)]
            assert resumed == [c for c in cuts if c["row"][0] >= 20]


class TestOutput:
    def test_a_folder_of_shards_holds_what_encode_gives(self, model: RWKV6, tmp_path: Path) -> None:
        write_jsonl(Path("a.jsonl"), records())
        Path("b.txt").write_text("")
        how = corpus.Options(layers=(2, 0, "final"), pooling="max", shard_rows=15)
        found = survey("a.jsonl", columns=corpus.Columns("text", "id", ("n",)))
        counts = corpus.to_folder(model, found, tmp_path / "out", how)
        assert counts == corpus.Counts(40, 0, 0, sum(len(text.encode()) for text in TEXTS))
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["_manifest.json", *(f"part-0000{i}.parquet" for i in range(3))]
        table = pyarrow.parquet.read_table("out")  # the folder as a whole, manifest and all
        assert table.column_names == ["id", "n", "layer_2", "layer_0", "layer_final"]
        assert table.column("id").to_pylist() == [f"{i:03}" for i in range(40)]
        expected = model.encode(TEXTS, layers=[2, 0, "final"], pooling="max")
        for at, layer in enumerate((2, 0, "final")):
            assert np.array_equal(vectors(table, layer), expected[:, at])  # to the bit
        about = json.loads(table.schema.metadata[b"rwkvsts"])
        assert about["embedding"]["layers"] == [2, 0, "final"] and about["model"]["width"] == 64
        manifest = json.loads(Path("out/_manifest.json").read_text())
        assert manifest["counts"]["rows"] == manifest["counts"]["written"] == 40
        assert [s["first_row"] for s in manifest["shards"]] == [0, 15, 30]
        assert manifest["job"]["inputs"][0]["rows"] == 40
        assert str(tmp_path) not in Path("out/_manifest.json").read_text()

    def test_npy_shards_with_their_columns_beside_them(self, model: RWKV6) -> None:
        write_jsonl(Path("a.jsonl"), records([*TEXTS[:5], None, *TEXTS[5:9]]))
        found = survey("a.jsonl", columns=corpus.Columns("text", "id"), on_empty="null")
        how = corpus.Options((1,), format="npy", shard_rows=4, on_empty="null", dtype="float16")
        corpus.to_folder(model, found, Path("out"), how)
        shards = [np.load(f"out/part-0000{i}.npy") for i in range(3)]
        assert [s.shape for s in shards] == [(4, 64), (4, 64), (2, 64)]
        rows = np.concatenate(shards)
        expected = model.encode(TEXTS[:9], layers=1).astype(np.float16)
        assert np.array_equal(np.delete(rows, 5, axis=0), expected) and np.isnan(rows[5]).all()
        beside = [pyarrow.parquet.read_table(f"out/part-0000{i}.rows.parquet") for i in range(3)]
        ids = pyarrow.concat_tables(beside).column("id").to_pylist()
        assert ids == [f"{i:03}" for i in range(10)]

    @pytest.mark.parametrize("at", range(7))
    def test_ended_between_two_names(
        self, model: RWKV6, monkeypatch: pytest.MonkeyPatch, at: int
    ) -> None:
        """Of a shard's two files one has its name: the job does it again, or nothing is missing."""
        write_jsonl(Path("a.jsonl"), records(TEXTS[:10]))
        how = corpus.Options((1,), format="npy", shard_rows=4)
        names, replace = [], os.replace

        def ended(part: Path, path: Path) -> None:
            names.append(path)
            if len(names) > at:
                raise KeyboardInterrupt
            replace(part, path)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", ended)
            corpus.to_folder(model, survey("a.jsonl"), Path("out"), how)
            raise KeyboardInterrupt  # all had their names
        corpus.to_folder(model, survey("a.jsonl"), Path("out"), how)
        rows = np.concatenate([np.load(f"out/part-0000{i}.npy") for i in range(3)])
        assert np.array_equal(rows, model.encode(TEXTS[:10], layers=1))

    @pytest.mark.parametrize("policy", ["skip", "null"])
    def test_empty_rows_by_policy(self, model: RWKV6, policy: Any) -> None:
        texts = ["", "a", None, "b", "", "c", ""]
        write_jsonl(Path("a.jsonl"), records(texts))
        found = survey("a.jsonl", on_empty=policy)
        how = corpus.Options(layers=(1,), on_empty=policy, shard_rows=3)
        counts = corpus.to_folder(model, found, Path("out"), how)
        assert (counts.rows, counts.empty, counts.tokens) == (7, 4, 3)
        table = pyarrow.parquet.read_table("out")
        column = table.column("layer_1")
        # No pyarrow before 26 reads a null in a list of fixed size.
        assert pyarrow.types.is_fixed_size_list(column.type) == (policy == "skip")
        full = [row is not None for row in column.to_pylist()]
        if policy == "skip":
            assert table.column("row").to_pylist() == [1, 3, 5] and all(full)
        else:
            assert table.column("row").to_pylist() == list(range(7))
            assert full == [bool(text) for text in texts]
        kept = np.array([row for row in column.to_pylist() if row is not None], np.float32)
        assert np.array_equal(kept, model.encode(["a", "b", "c"], layers=1))
        corpus.to_npy(model, found, Path("x.npy"), how)
        rows = np.load("x.npy")
        assert rows.shape == ((3, 64) if policy == "skip" else (7, 64))
        assert np.array_equal(rows[~np.isnan(rows[:, 0])], kept)

    def test_max_length_prompt_and_normalize_are_encodes(self, model: RWKV6) -> None:
        Path("a.txt").write_text("\n".join(TEXTS))
        how = corpus.Options((2, 1), "last", 'say "{text}" now', 9, normalize=True)
        counts = corpus.to_npy(model, survey("a.txt"), Path("x.npy"), how)
        assert (counts.cut, counts.tokens) == (40, 360)
        expected = model.encode(TEXTS, [2, 1], "last", how.prompt, 9, normalize=True)
        assert np.array_equal(np.load("x.npy"), expected)

    def test_float16_refuses_what_does_not_fit(self) -> None:
        rows = np.array([[[1.0, 7e4]]], np.float32)
        with pytest.raises(DataError, match="holds 70000, float16 ends at 65504"):
            output.narrow(rows, "float16")

    def test_a_column_of_the_input_must_not_hide_a_layer(self, model: RWKV6) -> None:
        write_jsonl(Path("a.jsonl"), [{"text": "a", "layer_1": 3}])
        found = survey("a.jsonl", columns=corpus.Columns(keep=("layer_1",)))
        with pytest.raises(DataError, match="would be called 'layer_1'"):
            corpus.to_folder(model, found, Path("out"), corpus.Options(layers=(1,)))

    def test_a_file_that_changes_under_way_is_refused(self, model: RWKV6) -> None:
        for name, change in [("grows", b"more\n"), ("shrinks", None)]:
            path = Path(f"{name}.txt")
            path.write_text("\n".join(TEXTS))
            found = survey(path)
            if change is None:
                os.truncate(path, 100)
            else:
                path.write_bytes(path.read_bytes() + change)
            with pytest.raises(DataError, match=f"{name}.txt changed while it was read"):
                corpus.to_npy(model, found, Path("x.npy"), corpus.Options(layers=(1,)))
            assert not Path("x.npy").exists()


class Counting:
    """A core that notes the passes of each run, of so many tokens at most."""

    def __init__(self, core: Any) -> None:
        self._core, self.passes = core, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def run(self, ids: Any, start: Any, *how: Any) -> Any:
        found = self._core.run(ids, start, *how)
        self.passes += -(-int(start[found[0]]) // how[5])
        return found


class TestPasses:
    """Passes of 512 tokens and blocks of 30 texts, some 345 tokens."""

    texts = tuple("x" * (4 + 7 * i % 16) for i in range(600))
    most = -(-sum(map(len, texts)) // (512 - 19)) + 1  # a text may be left out of a pass; the last

    @pytest.fixture
    def core(self, model: RWKV6, monkeypatch: pytest.MonkeyPatch) -> Counting:
        counting = Counting(model._core)
        monkeypatch.setattr(model, "_core", counting)
        return counting

    def test_a_job_fills_them_across_blocks_and_shards(
        self, model: RWKV6, core: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(options, "BLOCK_ROWS", 30)
        Path("a.txt").write_text("\n".join(self.texts))
        how = corpus.Options(layers=(1,), shard_rows=100)
        reader, found = job.reader_of(model, how, 512), survey("a.txt")
        tables = list(blocks.cut(found, 0, 30, 100))
        parts = [
            blocks.prepare(table, found.columns, reader.prepare, None, "error") for table in tables
        ]
        done = list(job.embedded(parts, reader, meter.Meter(1, 0)))
        assert [block for block, _ in done] == parts and len(parts) == 24
        assert core.passes <= self.most < len(parts) * 0.7
        rows = np.concatenate([piece for _, pieces in done for piece in pieces])
        expected = model.encode(list(self.texts), layers=1, batch_tokens=7)
        assert np.array_equal(rows[:, 0], expected)

    def test_so_does_one_call_across_its_slices(
        self, model: RWKV6, core: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rwkvsts.batch.SLICE", 30)
        found = model.encode(list(self.texts), layers=1, batch_tokens=512)
        assert core.passes <= self.most
        assert np.array_equal(found, model.encode(list(self.texts), layers=1, batch_tokens=7))

    def test_blocks_without_texts_and_of_one_text_keep_their_order(self, model: RWKV6) -> None:
        Path("a.jsonl").write_text("".join('{"text": "%s"}\n' % ("y" * (i % 3)) for i in range(9)))
        found = survey("a.jsonl", on_empty="null")
        reader = job.reader_of(model, corpus.Options((1,)))
        tables = blocks.cut(found, 0, 1, 100)
        parts = [
            blocks.prepare(table, found.columns, reader.prepare, None, "null") for table in tables
        ]
        done = list(job.embedded(parts, reader, meter.Meter(1, 0)))
        assert [sum(map(len, pieces)) for _, pieces in done] == [0, 1, 1] * 3
        assert [block for block, _ in done] == parts


class TestRefusals:
    def test_another_job_in_the_folder_is_told_apart(self, model: RWKV6) -> None:
        Path("a.txt").write_text("\n".join(TEXTS))
        found, out = survey("a.txt"), Path("out")
        first = corpus.Options(layers=(1,), shard_rows=15)
        corpus.to_folder(model, found, out, first)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert corpus.to_folder(model, found, out, first).rows == 40  # complete: nothing to do
        Path("a.txt").write_text("\n".join([*TEXTS[:-1], "another"]))
        for what, message in [
            ((found, corpus.Options((1,), "last", shard_rows=15)), "embedding.pooling was 'mean'"),
            ((found, corpus.Options((2,), shard_rows=15)), "embedding.layers was [1] and is [2]"),
            ((survey("a.txt"), first), "inputs[1].bytes was"),
        ]:
            with pytest.raises(DataError) as caught:
                corpus.to_folder(model, what[0], out, what[1])
            assert "holds a job that differs" in str(caught.value)
            assert message in str(caught.value)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    def test_other_weights_of_the_same_name_are_another_model(self, model: RWKV6) -> None:
        Path("a.txt").write_text("a\n")
        corpus.to_folder(model, survey("a.txt"), Path("out"), corpus.Options(layers=(1,)))
        write_safetensors(Path("model.safetensors"), random_weights(6, L=3, V=256))
        other = RWKV6.from_pretrained(
            "model.safetensors", device="cpu", dtype="float32", tokenizer="bytes"
        )
        other.source = model.source
        with pytest.raises(DataError, match="model.fingerprint was"):
            corpus.to_folder(other, survey("a.txt"), Path("out"), corpus.Options(layers=(1,)))

    def test_a_folder_of_other_things_is_left_alone(self, model: RWKV6) -> None:
        Path("out").mkdir()
        Path("out/thesis.tex").write_text("x")
        Path("a.txt").write_text("a\n")
        with pytest.raises(DataError, match="holds 'thesis.tex' and no job"):
            corpus.to_folder(model, survey("a.txt"), Path("out"), corpus.Options(layers=(1,)))

    def test_two_processes_do_not_share_a_folder(self, model: RWKV6) -> None:
        Path("a.txt").write_text("a\n")
        found, how = survey("a.txt"), corpus.Options(layers=(1,))
        about = options.identity(model, found, how)
        with (
            job.Folder(Path("out"), about, found, how),
            pytest.raises(DataError, match="another process writes to out"),
        ):
            corpus.to_folder(model, found, Path("out"), how)
        assert corpus.to_folder(model, found, Path("out"), how).rows == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["--shard-rows", "-3"], "shard_rows=-3: expected 1 .. "),
        (["--shard-rows", "0"], "shard_rows=0: expected 1 .. "),
        (["--max-length", "0"], "max_length=0: expected 1 .. "),
        (["--layers", "3,1,3"], "layers names 3 twice"),
    ],
)
def test_a_wrong_option_begins_no_job(
    how: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.txt").write_text("a\n")
    assert cli.main(["embed", "a.txt", "--out", "out", "--device", "cpu", *how]) == 1
    assert message in capsys.readouterr().err and not Path("out").exists()


class TestMeter:
    def test_a_line_of_json_where_there_is_no_terminal(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with meter.Meter(1000, 200, every=0) as progress:
            progress.update(4, 40, 400)
        line = json.loads(capsys.readouterr().err)
        assert (line["texts"], line["tokens"], line["share_done"]) == (4, 40, 0.6)
        assert line["tokens_per_second"] > 0 and line["seconds_left"] >= 0

    def test_it_moves_within_a_text(
        self, model: RWKV6, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def every(self: meter.Meter, *how: Any) -> None:
            time.sleep(0.06)  # the core asks at most every 50 ms
            within(self, *how)

        within = meter.Meter.within
        monkeypatch.setattr(meter.Meter, "within", every)
        monkeypatch.setattr(meter.Meter.__init__, "__defaults__", (0,))
        Path("a.txt").write_text("short\n" + "long " * 600 + "\n")
        corpus.to_npy(model, survey("a.txt"), Path("x.npy"), corpus.Options((1,)), 1001)
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        tokens = [line["tokens"] for line in lines]
        assert tokens == sorted(tokens) and len(set(tokens)) > 6 and tokens[-1] == 3005
        assert [line["texts"] for line in lines if line["tokens"] == 1501] == [1]
        assert lines[-1]["texts"] == 2 and lines[-1]["share_done"] == 1

    def test_a_closed_standard_error_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        meter.say("nobody hears")
        with meter.Meter(10, 0, every=0) as progress:
            progress.update(1, 1, 1)


class TestOverlap:
    def test_items_errors_and_an_early_end(self) -> None:
        def failing() -> Any:
            yield 1
            raise DataError("row 2")

        assert list(overlap.ahead(range(100), 2)) == list(range(100))
        items = overlap.ahead(failing(), 2)
        assert next(items) == 1
        with pytest.raises(DataError, match="row 2"):
            next(items)
        made: list[int] = []
        endless = overlap.ahead((made.append(i) or i for i in range(10**9)), 2)
        assert next(endless) == 0
        endless.close()
        count = len(made)
        assert count <= 5 and len(made) == count


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layers", "1"], "name --id-column"),
        (["--id-column", "id"], "name the layers by --layers"),
        (["--id-column", "id", "--layers", "1", "--shard-rows", "9"], "--shard-rows is not known"),
        (["--id-column", "id", "--layers", "1", "--input-format", "text"], "inputs of text"),
        (["--id-column", "id", "--layers", "1", "--device", "cuda:1"], "--device cuda:1 is not"),
    ],
)
def test_ray_refuses_what_it_has_no_part_for(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(Path("a.jsonl"), records())
    assert cli.main(["embed", "a.jsonl", "--out", "out", "--ray", *argv]) == 1
    assert message in capsys.readouterr().err
