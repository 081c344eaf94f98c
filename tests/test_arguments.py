"""Arguments that are easy to get wrong: refused in words, or taken for what alone can be meant."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makecheckpoint import write_torch
from tinymodel import load, random_ids, random_weights

import rwkvsts
from rwkvsts import RWKV, CheckpointError, corpus
from rwkvsts.cli import main


@pytest.fixture
def tiny(tmp_path: Path) -> RWKV:
    return load(tmp_path, random_weights(V=256), tokenizer="bytes", max_layer=1)


CONTAINERS = {
    "bytes": (b"abc", "texts is bytes: decode it to str"),
    "a dict": ({"a": "b"}, "texts is dict: its keys would be taken"),
    "a set": ({"a", "b"}, "texts is set: it has no order"),
    "a frozen set": (frozenset("ab"), "texts is frozenset: it has no order"),
    "items of a dict": ({"a": "b"}.items(), r"texts\[0\] is tuple: expected str"),
    "a class": (str, "texts is type: expected a str or a list of str"),
    "a number": (3, "texts is int: expected a str or a list of str"),
    "nothing": (None, "texts is NoneType: expected a str or a list of str"),
    "an open file": (io.StringIO("a\n"), "texts is StringIO: its lines would be"),
    "an array without an axis": (np.array("a"), "texts is ndarray: expected a str or a"),
    "a list of lists": ([["a"]], r"texts\[0\] is list: expected str"),
    "a cell of bytes": (["a", b"b"], r"texts\[1\] is bytes: expected str"),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_containers_that_are_no_list_of_texts(tiny: RWKV, case: str) -> None:
    texts, message = CONTAINERS[case]
    with pytest.raises(TypeError, match=message):
        tiny.encode(texts, layers=0)  # type: ignore[arg-type]


def test_no_text_gives_no_row(tiny: RWKV) -> None:
    assert tiny.encode([], layers=0).shape == (0, 64)
    assert tiny.encode(iter(()), layers=[0, 1], normalize=True).shape == (0, 2, 64)
    assert tiny.encode_ids([], layers=[0]).shape == (0, 1, 64)
    assert tiny.branch([], ["a", "b"], layers=0).shape == (0, 2, 64)
    assert tiny.encode_states([], layers=0, width=5).shape == (0, 5)
    assert tiny.norms([], layers=0, positions=3).shape == (0, 1, 3)


def test_columns_of_pyarrow_are_taken(tiny: RWKV) -> None:
    pa = pytest.importorskip("pyarrow", reason="whose scalars are no str")
    expected = tiny.encode(["one", "two"], layers=0).tobytes()
    for column in (pa.array(["one", "two"]), pa.chunked_array([["one"], ["two"]])):
        assert tiny.encode(column, layers=0).tobytes() == expected
    with pytest.raises(TypeError, match=r"texts\[1\] is NoneType"):
        tiny.encode(pa.array(["one", None]), layers=0)


def test_tables_are_refused_and_their_columns_taken(tiny: RWKV) -> None:
    pd = pytest.importorskip("pandas", reason="whose tables are often given in place of a column")
    table = pd.DataFrame({"text": ["one", "two"]}, index=[5, 9])
    with pytest.raises(TypeError, match="texts is DataFrame: its column names would be taken"):
        tiny.encode(table, layers=0)  # type: ignore[arg-type]
    expected = tiny.encode(["one", "two"], layers=0).tobytes()
    for texts in (table["text"], table["text"].to_numpy(), iter(["one", "two"]), ("one", "two")):
        assert tiny.encode(texts, layers=0).tobytes() == expected  # type: ignore[arg-type]


class Places:
    """Has a length and items by their places, and no end of its own, as torch's data sets."""

    def __init__(self, items: list[str]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> str:
        return self.items[place % len(self.items)]


class Rows(Places):
    column_names = ("text",)


def test_what_has_items_by_place_or_in_order_is_taken(tiny: RWKV) -> None:
    expected = tiny.encode(["one", "two"], layers=0).tobytes()
    texts = ["one", "two"]
    for given in (Places(texts), dict.fromkeys(texts).keys(), np.array(texts)):
        assert tiny.encode(given, layers=0).tobytes() == expected  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="texts is Rows: its rows are no texts; give one column"):
        tiny.encode(Rows(texts), layers=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({0: [1]}, "ids is dict"),
        ({(1, 2)}, "ids is set"),
        (b"ab", "ids is bytes"),
        (7, "ids is int"),
    ],
)
def test_containers_that_are_no_lists_of_ids(tiny: RWKV, ids: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny.encode_ids(ids, layers=0)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"prompt": 3}, TypeError, "prompt is int: expected str or None"),
        ({"prompt": b"a"}, TypeError, "prompt is bytes"),
        ({"prompt": "say {sentence}"}, ValueError, r"holds \{sentence\}: .* written \{text\}"),
        ({"prompt": "{}"}, ValueError, r"holds \{\}: the place of the text"),
        ({"prompt": "{text} {0}"}, ValueError, r"holds \{0\}"),
        ({"prompt": "{{text}}"}, ValueError, r"holds \{\{text\}\}"),
        ({"prompt": "{{ text }} x"}, ValueError, r"holds \{\{ text \}\}"),
        ({"prompt": "{ text }"}, ValueError, r"holds \{ text \}"),
        ({"prompt": "{Text}"}, ValueError, r"holds \{Text\}"),
        ({"prompt": "{text!r}"}, ValueError, r"holds \{text!r\}"),
        ({"prompt": "{text:>9}"}, ValueError, r"holds \{text:>9\}"),
        ({"prompt": "say {text"}, ValueError, r"holds \{text: the place"),
        ({"prompt": "say %s"}, ValueError, "holds %s: the place"),
        ({"prompt": "say %(text)s"}, ValueError, r"holds %\(text\)s"),
        ({"prompt": "a\ud800"}, ValueError, "prompt holds half a surrogate pair at character 1"),
        ({"show_progress": "no"}, TypeError, "show_progress='no': expected True or False"),
        ({"layers": [0.0]}, ValueError, "layer 0.0: this model holds"),
        ({"layers": [True]}, ValueError, "layer True: this model holds"),
        ({"layers": {0: 1}}, TypeError, r"layers=\{0: 1\}: expected a layer or a list"),
        ({"layers": b"0"}, TypeError, "layers=b'0': expected a layer"),
        ({"max_length": "3"}, TypeError, "max_length='3': expected a whole number"),
        ({"max_length": 2.0}, TypeError, "max_length=2.0: expected a whole number"),
        ({"normalize": "no"}, TypeError, "normalize='no': expected True or False"),
        ({"skip_first": "no"}, TypeError, "skip_first='no': expected True or False"),
        ({"skip_first": None}, TypeError, "skip_first=None: expected True or False"),
        ({"max_length": True}, ValueError, "max_length=True"),
        ({"batch_tokens": "9"}, TypeError, "batch_tokens='9'"),
        ({"layers": "0"}, ValueError, "layer '0': this model holds layers 0"),
        ({"layers": {0, 1}}, TypeError, r"layers=\{0, 1\}: expected a layer or a list"),
        ({"layers": [[0]]}, ValueError, r"layer \[0\]: this model holds"),
        ({"pooling": 3}, ValueError, "pooling=3: expected one of mean"),
    ],
)
def test_options_of_encode(tiny: RWKV, options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        tiny.encode(["a text"], **{"layers": 0, **options})
    assert tiny.encode(["a text"], layers=np.int64(0), max_length=np.int32(3)).shape == (1, 64)
    assert tiny.encode(["a text"], layers=np.array(0)).shape == (1, 64)  # type: ignore[arg-type]
    assert tiny.encode(["a text"], layers=np.array([0])).shape == (1, 1, 64)  # type: ignore[arg-type]
    first, mean = (tiny.encode("a text", pooling=pooling) for pooling in (None, "mean"))
    assert first.tobytes() == mean.tobytes()


def test_braces_that_are_no_place_stand_as_they_are(tiny: RWKV) -> None:
    given = tiny.encode(["b"], layers=0, prompt='{"a": 1} 5%sure {text} {x y}')
    state = tiny.state('{"a": 1} 5%sure ')
    assert given.tobytes() == tiny.encode(["b {x y}"], layers=0, state=state).tobytes()


def test_an_empty_prefix_is_named(tiny: RWKV) -> None:
    """And is no text, which might be left out."""
    for prefix in ("", [], np.empty(0, np.int64)):
        with pytest.raises(ValueError, match="prefix is empty, and leaves no state"):
            tiny.state(prefix)


def test_an_empty_text_is_empty_whatever_follows_it(tiny: RWKV) -> None:
    for prompt in (None, "before ", "{text} after"):
        with pytest.raises(ValueError, match=r"texts\[1\] is empty"):
            tiny.encode(["a", ""], layers=0, prompt=prompt)


def test_a_text_that_is_no_utf8_is_named_by_its_place(tiny: RWKV) -> None:
    texts = ["fine"] * 9000
    texts[8500] = "abc\ud800"
    with pytest.raises(ValueError, match=r"texts\[8500\] holds half a surrogate.*character 3"):
        tiny.encode(texts, layers=0, show_progress=False)
    assert tiny.encode(["a\0b"], layers=0).shape == (1, 64)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"threads": "2"}, TypeError, "threads='2': expected a whole number"),
        ({"max_layer": "1"}, TypeError, "max_layer='1': expected a whole number"),
        ({"vocabulary": 3}, TypeError, "vocabulary=3: expected a path or None"),
        ({"cache_dir": 3}, TypeError, "cache_dir=3: expected a path or None"),
        ({"revision": 3}, TypeError, "revision=3: expected a str or None"),
        ({"instruction_set": 3}, TypeError, "instruction_set=3: expected a str or None"),
        ({"token": b"secret"}, TypeError, "token=...: expected a str or None"),
        ({"device": 0}, TypeError, "device is int: expected str"),
        ({"local_files_only": "no"}, TypeError, "local_files_only='no': expected True or False"),
        ({"device_memory": 1.5}, TypeError, "device_memory=1.5"),
        ({"file": "x.pth"}, CheckpointError, "is a file itself; leave file= out"),
        ({"vocabulary": "none.txt", "tokenizer": "world"}, CheckpointError, "no such file"),
    ],
)
def test_options_of_load(tmp_path: Path, options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        load(tmp_path, random_weights(L=1), **options)


def test_one_of_several_files_and_a_vocabulary_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By arguments and by options of the command line, to the same embeddings."""
    models = tmp_path / "models"
    models.mkdir()
    for seed, name in enumerate(("a.pth", "b.pth")):
        write_torch(models / name, random_weights(seed, L=1, V=300))
    lines = [f"{i + 1} {bytes([i])!r} 1\n" for i in range(256)]
    (tmp_path / "elsewhere.txt").write_text("".join(lines))
    options: dict[str, Any] = {"file": "b.pth", "vocabulary": tmp_path / "elsewhere.txt"}
    m = rwkvsts.load(models, device="cpu", dtype="float32", **options)
    rows = m.encode(["one text", "two"], layers=0)
    ids = [[byte + 1 for byte in text.encode()] for text in ("one text", "two")]
    b = rwkvsts.load(models / "b.pth", device="cpu", dtype="float32", tokenizer=None)
    assert rows.tobytes() == b.encode_ids(ids, layers=0).tobytes()
    (tmp_path / "texts").write_text("one text\ntwo\n")
    arguments = ["embed", str(tmp_path / "texts"), "--out", str(tmp_path / "x.npy")]
    arguments += ["--model", str(models), "--layers", "0", "--device", "cpu", "--dtype", "float32"]
    arguments += ["--vocabulary", str(tmp_path / "elsewhere.txt")]
    assert main(arguments) == 1
    assert "--file on the command line" in capsys.readouterr().err
    assert main([*arguments, "--file", "b.pth"]) == 0
    assert np.load(tmp_path / "x.npy").tobytes() == rows.tobytes()


@pytest.mark.filterwarnings("error")
def test_rows_that_are_not_finite_are_said(tmp_path: Path) -> None:
    """Weights may be finite and their products not; the largest float32 is no reason to warn."""
    weights = random_weights(L=2)
    m = load(tmp_path, weights, dtype="float32")
    m.encode_ids(random_ids(1, [3, 4]), layers=[0, 1])
    weights["blocks.1.ffn.value.weight"][:] = 3e38
    m = load(tmp_path, weights, dtype="float32")
    with pytest.warns(
        RuntimeWarning, match=r"2 of 2 .* NaN or infinity.*texts\[0\], layer 1"
    ) as said:
        m.encode_ids(random_ids(1, [3, 4]), layers=[0, 1])
    assert said[0].filename == __file__
    m.encode_ids(random_ids(1, [3, 4]), layers=0)


def test_large_numbers_are_finite() -> None:
    rows = np.full((2, 1, 4), np.finfo(np.float32).max)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rwkvsts.batch.warn_of_rows(rows, 0, [0])


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"layers": 3}, TypeError, "layers=3: expected layers in a tuple"),
        ({"layers": "final"}, TypeError, "layers='final': expected layers in a tuple"),
        ({"dtype": "float64"}, ValueError, "dtype='float64': expected one of float32, float16"),
        ({"format": "csv"}, ValueError, "format='csv': expected one of parquet, npy"),
        ({"on_empty": "drop"}, ValueError, "on_empty='drop': expected one of error, skip, null"),
        ({"normalize": "no"}, TypeError, "normalize='no': expected True or False"),
    ],
)
def test_options_of_a_corpus_job(options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        corpus.Options(**{"layers": (0,), **options})


def test_one_name_in_place_of_a_list(tiny: RWKV, tmp_path: Path) -> None:
    """Its letters would be taken one by one."""
    with pytest.raises(TypeError, match="names is str: expected a list of names"):
        corpus.find("t.txt")
    with pytest.raises(TypeError, match="keep='id': expected names of columns in a tuple"):
        corpus.Columns(keep="id")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="suffixes is str: expected a list of str"):
        tiny.branch(["a"], " In one word:", layers=0)
    (tmp_path / "t.txt").write_text("a text\n")
    found = corpus.survey(corpus.find([tmp_path / "t.txt"]), corpus.Columns(), "error")
    for out, write in (("x.npy", corpus.to_npy), ("folder", corpus.to_folder)):
        write(tiny, found, str(tmp_path / out), corpus.Options(layers=(0,)))
    assert np.load(tmp_path / "x.npy").shape == (1, 64)
