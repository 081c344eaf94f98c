"""The command line: what it writes, what it refuses, and that it leaves nothing half done.

Runs in this process on a stand-in model; where the test says so, the real program on a real one.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makecheckpoint import write_safetensors
from scipy.stats import spearmanr
from tinymodel import random_weights

import rwkvsts
from rwkvsts import RWKV6, DataError, cli
from rwkvsts.batch import Batch, Reader
from rwkvsts.cli import embed as cli_embed
from rwkvsts.cli import info, study
from rwkvsts.cli import options as cli_options
from rwkvsts.cli.main import _parser
from rwkvsts.corpus import options as corpus_options
from rwkvsts.corpus import output
from rwkvsts.data import datasets
from rwkvsts.study import experiment, folder, plots

TEXTS = ["one two", "three \u2028 four", " ünï ", "one two"]


def letters(texts: list[str], first: int) -> Batch:
    """Texts in tokens that are letters."""
    return Batch(np.array([*map(ord, "".join(texts))]), np.cumsum([0, *map(len, texts)]))


class Stand:
    """`RWKV6`'s surface: row of a text = its length and first letter, plus the layer."""

    asked: dict[str, Any]
    fail_at: int | None = None
    chunks: list[int]

    def __init__(self) -> None:
        self.config = types.SimpleNamespace(n_layer=12, n_embd=2, n_vocab=300)
        self.device, self.dtype, self.source, self.revision = "cpu", "float32", "made/up", None
        self.n_blocks, self.width = 12, 2
        self.architecture, self.layers = "made up", (*range(12), "final")
        self.poolings = ("mean", "last")
        self.default_layer = 6
        self.tokenizer = types.SimpleNamespace(name="letters")

    @classmethod
    def from_pretrained(cls, source: str, **how: Any) -> Stand:
        cls.asked = {"source": source, **how}
        cls.chunks = []
        return cls()

    def encode(self, texts: list[str], layers: Any = None, out: Any = None, **_: Any) -> np.ndarray:
        if self.fail_at is not None and sum(self.chunks) + len(texts) > self.fail_at:
            raise KeyboardInterrupt
        self.chunks.append(len(texts))
        rows = np.array([[len(t), ord(t.strip()[0])] for t in texts], np.float32)
        one = not isinstance(layers, list)
        layers = self.n_blocks // 2 if layers is None else layers
        numbers = [100 if x == "final" else x for x in ([layers] if one else layers)]
        result = np.stack([rows + number for number in numbers], axis=1)
        result = result[:, 0] if one else result
        if out is None:
            return result
        out[:] = result
        return out

    def reader(self, layers: list[Any], *_: Any) -> Reader:
        def run(read: Batch, rows: np.ndarray, *_: Any) -> int:
            texts = ["".join(map(chr, read.ids[a:b])) for a, b in pairwise(read.start)]
            self.encode(texts, layers, rows)
            return len(texts)

        return Reader(letters, run, (len(layers), self.width))

    def norms(self, texts: list[str], layers: list[Any], positions: int) -> np.ndarray:
        return np.ones((len(texts), len(layers), positions), np.float32)

    def memory(self) -> dict[str, int]:
        return {"weights": 1, "workspace": 1, "peak": 1 << 20}


@pytest.fixture(autouse=True)
def stand(monkeypatch: pytest.MonkeyPatch) -> type[Stand]:
    fake = type("Fake", (Stand,), {})
    monkeypatch.setattr(cli_options, "RWKV", fake)
    monkeypatch.setattr(experiment.models, "RWKV", fake)
    monkeypatch.setattr(experiment.models, "kind_of", lambda *_: "rwkv")
    return fake


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs started here run the copy under test, not a source tree that is not built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(rwkvsts.__file__).parents[1]))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone two\r\nthree \u2028 four\n ünï \none two".encode())
    return path


def rows(layer: int) -> list[list[float]]:
    return [[len(t) + layer, ord(t.strip()[0]) + layer] for t in TEXTS]


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Run what must fail: status and its one line on stderr."""
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("rwkvsts: model ")]
    assert len(lines) == 1 and error.endswith("\n"), error  # beside what was said to run
    return status, lines[0]


def test_embed_keeps_lines_and_order(
    texts: Path, tmp_path: Path, stand: type[Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_options, "BLOCK_ROWS", 3)
    out = tmp_path / "new" / "x.npy"
    argv = ["embed", str(texts), "--out", str(out), "--layers", "3,1", "--pooling", "last"]
    assert cli.main(argv) == 0
    found = np.load(out)
    assert found.dtype == np.float32 and found.shape == (4, 2, 2)
    assert found[:, 0].tolist() == rows(3) and found[:, 1].tolist() == rows(1)
    assert stand.chunks == [3, 1] and stand.asked["max_layer"] == 3
    assert [path.name for path in out.parent.iterdir()] == ["x.npy"]


def test_embed_one_layer_and_standard_input(
    texts: Path, tmp_path: Path, stand: type[Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = types.SimpleNamespace(buffer=io.BytesIO(texts.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    out = tmp_path / "x.npy"
    assert cli.main(["embed", "-", "--out", str(out), "--layers", "final"]) == 0
    assert np.load(out).tolist() == rows(100)
    assert stand.asked["max_layer"] is None


def test_embed_takes_the_layer_half_way_up_by_default(
    texts: Path, tmp_path: Path, stand: type[Stand]
) -> None:
    out = tmp_path / "x.npy"
    assert cli.main(["embed", str(texts), "--out", str(out)]) == 0
    assert np.load(out).tolist() == rows(6) and stand.asked["max_layer"] == "default"


def test_embed_does_not_replace_what_standard_input_reads(texts: Path) -> None:
    texts = texts.rename(texts.with_suffix(".npy"))
    before = texts.read_bytes()
    with texts.open("rb") as stdin:
        command = [sys.executable, "-m", "rwkvsts", "embed", "-", "--out", str(texts)]
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True)
    assert done.returncode == 1 and "is the file of texts" in done.stderr
    assert texts.read_bytes() == before


def test_embed_says_that_standard_input_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    status, error = fails(capsys, "embed", "-", "--out", str(tmp_path / "x.npy"))
    assert status == 1 and "standard input is closed" in error


def test_embed_reads_a_pipe(texts: Path, tmp_path: Path, stand: type[Stand]) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "x.npy"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(texts.read_bytes()))
    writer.start()
    assert cli.main(["embed", str(pipe), "--out", str(out), "--layers", "0"]) == 0
    writer.join()
    assert np.load(out).tolist() == rows(0)


def test_ctrl_c_leaves_the_old_file_and_no_other(
    texts: Path,
    tmp_path: Path,
    stand: type[Stand],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(corpus_options, "BLOCK_ROWS", 1)
    stand.fail_at = 2
    out = tmp_path / "x.npy"
    out.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    assert cli.main(["embed", str(texts), "--out", str(out)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "rwkvsts: interrupted"
    assert out.read_bytes() == b"old" and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\n\nthree\n", "line 2: expected a text, found none"),
        (b"one\ntw\xffo\n", "line 2: not UTF-8 at byte 2"),
        (b"", "there is no text"),
    ],
)
def test_bad_text_files_are_refused_before_the_model(
    content: bytes,
    message: str,
    tmp_path: Path,
    stand: type[Stand],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "t.txt", tmp_path / "x.npy"
    file.write_bytes(content)
    status, error = fails(capsys, "embed", str(file), "--out", str(out))
    assert status == 1 and message in error and str(file) in error
    assert not out.exists() and not hasattr(stand, "asked")


def test_a_full_disk_is_told_before_writing(
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = types.SimpleNamespace(free=100)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage)
    argv = ["embed", str(texts), "--out", str(tmp_path / "x.npy"), "--layers", "0,1,2,3"]
    status, error = fails(capsys, *argv)
    assert status == 1 and "128 bytes wanted, 100 free" in error  # 4 texts, 4 layers, 2 floats
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_a_folder_is_tried_before_the_model(
    texts: Path, tmp_path: Path, stand: type[Stand], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    status, error = fails(capsys, "embed", str(texts), "--out", str(tmp_path / "file" / "new"))
    assert status == 1 and "cannot write into" in error and "it is a file" in error
    assert not hasattr(stand, "asked")


def test_an_array_may_lie_in_the_folder_of_texts(
    texts: Path, tmp_path: Path, stand: type[Stand]
) -> None:
    where = str(tmp_path)
    assert cli.main(["embed", where, "--out", f"{where}/x.npy", "--layers", "0"]) == 0
    assert cli.main(["embed", where, "--out", f"{where}/x", "--layers", "0"]) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "rwkvsts: out of memory: allow this process more"),
        (MemoryError("no 9 bytes"), "rwkvsts: out of memory (no 9 bytes): allow this process more"),
        (ValueError("a\x1b[2Jb \u202ec"), r"rwkvsts: a\x1b[2Jb \u202ec"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(
    error: Exception,
    told: str,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli_embed.corpus, "survey", fail)
    status, said = fails(capsys, "embed", str(texts), "--out", str(texts.with_name("x.npy")))
    assert status == 1 and said.startswith(told)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"rwkvsts {rwkvsts.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "study | report | embed | fit | serve | mteb | info"),
        (["train"], "invalid choice"),
        (["study", "--task", "mrpc,cola"], "no data set 'cola'; choose one of mrpc"),
        (["study", "--layers", "1,x"], "'x' in '1,x': expected layer numbers"),
        (["study", "--layers", "-1"], "expected"),
        (["study", "--tokenizer", "bert"], "invalid choice"),
        (["embed", "file"], "--out"),
        (["embed", "file", "--out", ""], "--out: the name is empty"),
        (["embed", "file", "--out", "s3://bucket/x.npy"], "is an address; name a file or a folder"),
        (["study", "--out", ""], "--out: the name is empty"),
        (["study", "--out", "https://host/x"], "is an address; name a file or a folder"),
    ],
)
def test_wrong_command_lines(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = fails(capsys, *argv)
    assert status == 2 and message in error


def test_absent_inputs_and_places(
    texts: Path, tmp_path: Path, stand: type[Stand], capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, pipe, npy = str(tmp_path / "nowhere"), tmp_path / "pipe.npy", tmp_path / "t.npy"
    npy.write_text("a text, whatever its name\n")
    os.mkfifo(pipe)
    write_stsb(tmp_path)
    stsb = ["study", "--task", "stsb", "--data", str(tmp_path)]
    for argv, message in [
        (["embed", nowhere, "--out", str(tmp_path / "x.npy")], "cannot be read (No such file"),
        (["embed", str(texts), "--out", str(texts / "x.npy")], "cannot write into"),
        (["embed", str(texts), "--out", str(tmp_path)], "is a folder"),
        (["embed", str(texts), "--out", str(pipe)], "is no plain file"),
        (["embed", str(npy), "--out", str(npy)], "is the file of texts"),
        (["embed", str(texts), "--out", str(texts)], "neither a .npy file nor a folder"),
        (["embed", str(texts), "--out", "-"], "neither a .npy file nor a folder"),
        (["embed", str(texts), "--out", "x.xlsx"], "neither a .npy file nor a folder"),
        (["study", "--task", "mrpc", "--data", nowhere], "--data: no folder"),
        (["study", "--data", str(tmp_path)], "name a task, as --task mrpc"),
        (
            ["study", "--task", "mrpc", "--data", str(tmp_path)],
            "msr_paraphrase_train.txt is neither",
        ),
        ([*stsb, "--glove", nowhere], "nowhere: cannot be read"),
        ([*stsb, "--split", "dev"], "no split 'dev' in stsb"),
        (["study", "--out", str(texts)], "cannot write into"),
    ]:
        status, error = fails(capsys, *argv)
        assert status == 1 and message in error
    assert not hasattr(stand, "asked")


def test_tracebacks_only_with_debug(tmp_path: Path) -> None:
    argv = ["embed", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x.npy")]
    with pytest.raises(DataError, match="nowhere cannot be read"):
        cli.main([*argv, "--debug"])


def write_stsb(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for file, count in (("sts-dev.csv", 1500), ("sts-test.csv", 1379)):
        score = rng.uniform(0, 5, count)
        lines = [
            f"news\tf\t2012\t{i}\t{s:.3f}\tcat w{i} .\t{'cat' if s > 2 else 'dog'} sat {i % 9} ."
            for i, s in enumerate(score)
        ]
        (folder / file).write_text("\n".join(lines) + "\n")


def test_study_prints_and_writes_one_table(
    tmp_path: Path,
    stand: type[Stand],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plots, "draw", lambda *_: object())  # test_report.py draws
    monkeypatch.setattr(plots, "save", lambda figure, path, kind: path.write_text(kind))
    write_stsb(tmp_path)
    glove = tmp_path / "glove.txt"
    glove.write_text("cat 1 0\ndog 0 1\nsat 1 1\n")
    out = tmp_path / "results"
    argv = ["study", "--model", "made/up", "--task", "stsb", "--split", "test[:50]"]
    argv += ["--data", str(tmp_path), "--glove", str(glove), "--out", str(out)]
    argv += ["--layers", "1,11", "--tokenizer", "both", "--device", "cpu", "--dtype", "float32"]
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "made/up on stsb"
    assert "test[:50], n = 50" in printed and "word overlap" in printed
    assert stand.asked["source"] == "made/up" and stand.asked["max_layer"] == 11
    assert (stand.asked["device"], stand.asked["dtype"]) == ("cpu", "float32")
    content = json.loads((out / "run.json").read_text())
    assert [(r["tokenizer"], r["layer"]) for r in content["rows"]] == [
        *[(None, None)] * 3,
        ("gpt2", 1),
        ("gpt2", 11),
        ("world", 1),
        ("world", 11),
    ]
    assert {path.name for path in out.iterdir()} == {*folder.FILES, folder.PASSES, ".lock"}


def test_without_arguments_the_bundled_study_runs_and_says_so(
    tmp_path: Path,
    stand: type[Stand],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [f"{i}\t{i % 2}\tcat {i}\tdog {i // 2}\tk\tn" for i in range(30)]
    (tmp_path / "pairs.tsv").write_text(
        "\n".join(["id\tlabel\tsentence1\tsentence2\tkind\tnote", *lines])
    )
    (tmp_path / experiment.DEMO_VECTORS).write_bytes(gzip.compress(b"cat 1 0\ndog 0 1\n"))
    monkeypatch.setattr(datasets, "asset", lambda name: tmp_path / name)
    assert cli.main(["study"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Bundled demonstration")
    assert printed[-1] == f"The real one: {study.REAL}"
    assert any("all, n = 30" in line for line in printed)
    assert stand.asked["source"] == "demo" and sum(stand.chunks) > 60
    # What the last line says must be a command that parses.
    real = _parser().parse_args(study.REAL.split()[1:])
    assert (real.model, real.task) == (["RWKV/v6-Finch-1B6-HF"], ("mrpc",))
    assert real.tokenizer == "both"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "model.safetensors", random_weights(5, L=4, V=256))
    return tmp_path / "model.safetensors"


def program(*argv: object) -> list[str]:
    model = ["--tokenizer", "bytes", "--device", "cpu", "--dtype", "float32"]
    return [sys.executable, "-m", "rwkvsts", *map(str, argv), *model]


def test_the_real_program_scores_a_real_model(weights: Path, tmp_path: Path) -> None:
    write_stsb(tmp_path)
    (tmp_path / "glove.txt").write_text("cat 1 0\ndog 0 1\nsat 1 1\n")
    argv = ["study", "--model", weights, "--task", "stsb", "--split", "test[:40]", "--layers"]
    argv += ["3,0,final", "--data", tmp_path, "--glove", tmp_path / "glove.txt"]
    done = subprocess.run(
        program(*argv, "--out", tmp_path / "out"), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""  # no bar where there is no terminal
    rows = json.loads((tmp_path / "out" / "run.json").read_text())["rows"][3:]
    model = RWKV6.from_pretrained(weights, device="cpu", dtype="float32", tokenizer="bytes")
    pairs = datasets.load("stsb", "test[:40]", tmp_path)
    for row, layer in zip(rows, (3, 0, "final"), strict=True):
        # One text a call, scored pair by pair.
        a, b = (
            np.array([model.encode(text, layers=layer) for text in side], np.float64)
            for side in (pairs.sentence1, pairs.sentence2)
        )
        cosine = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
        expected = spearmanr(np.round(cosine, 12), pairs.label).statistic
        assert row["spearman"] == pytest.approx(expected, abs=1e-12)
        assert row["layer"] == layer and row["ms_per_pair"] > 0 and row["peak_mib"] > 0


def test_the_real_program_embeds_what_encode_gives(
    weights: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.npy"
    argv = ["embed", "-", "--model", weights, "--out", out, "--layers", "2,1", "--pooling", "max"]
    subprocess.run(program(*argv), input=texts.read_bytes(), check=True)
    model = RWKV6.from_pretrained(weights, device="cpu", dtype="float32", tokenizer="bytes")
    expected = model.encode(TEXTS, layers=[2, 1], pooling="max")
    assert np.array_equal(np.load(out), expected)  # to the bit


def test_ctrl_c_ends_the_real_program_at_once(weights: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "long.txt", tmp_path / "results"
    file.write_text(("word " * 200 + "\n") * 100_000)  # many minutes of work
    argv = program("embed", file, "--model", weights, "--out", folder / "x.npy", "--layers", 3)
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as running:
        until = time.monotonic() + 300
        while not (folder.is_dir() and any(folder.iterdir())) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=300)
    assert running.returncode == 130 and error.splitlines()[-1] == "rwkvsts: interrupted"
    assert error.count("\n") == 2  # the first says what runs
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_takes_nothing(unbuffered: str) -> None:
    """A reader that left is no error to tell; a full disk is, once."""
    argv = [sys.executable, "-m", "rwkvsts", "info"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as closed:
        gone = subprocess.run(
            argv, stdout=closed, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (gone.returncode, gone.stderr) == (141, "")
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            told = subprocess.run(
                argv, stdout=full, stderr=subprocess.PIPE, text=True, env=environment
            )
        assert (told.returncode, told.stderr.count("\n")) == (1, 1)
        assert "No space left on device" in told.stderr


def test_help_and_errors_come_quickly() -> None:
    """What takes long to import waits until it is needed."""
    heavy = ("scipy.stats", "pandas", "pyarrow", "matplotlib", "huggingface_hub", "tabulate")
    code = f"import sys, rwkvsts.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_info_tells_versions_devices_and_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    sizes = dataclasses.make_dataclass("Config", [("n_layer", int), ("n_embd", int)])(12, 192)
    model = types.SimpleNamespace(
        source="made/up", revision="abc", config=sizes, architecture="made up"
    )
    monkeypatch.setattr(info.RWKV, "from_pretrained", lambda *_, **__: model)
    assert cli.main(["info", "made/up"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    assert facts["numpy"] == np.__version__ and facts["model"] == "made/up"
    assert (facts["n_layer"], facts["n_embd"], facts["revision"]) == ("12", "192", "abc")
    assert {"cpu", "cores", "instruction sets", "cuda", "auto", "python"} <= set(facts)


def test_info_prints_what_it_costs_on_ones_own_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("A first sentence.\n\nAnd a second one, of 12 words or so.\n")
    ask = ["info", "demo", "--accuracy", str(file), "--device", "cpu", "--dtype"]
    assert cli.main([*ask, "bfloat16"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("cpu bfloat16 against float32, cosine over 2 texts")
    assert [line.split()[0] for line in lines] == [*map(str, range(12)), "final"]
    lowest = [float(line.split()[1]) for line in lines]
    assert 0.9999 < min(lowest) < 1
    assert cli.main([*ask, "float32"]) == 1
    assert "give --dtype" in capsys.readouterr().err
    assert cli.main(["info", "demo", "--dtype", "bfloat16"]) == 1
    assert "they are of --accuracy FILE" in capsys.readouterr().err
    file.write_text("\n \n")
    assert cli.main([*ask, "bfloat16"]) == 1
    assert "no text" in capsys.readouterr().err
