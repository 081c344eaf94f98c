"""The commands study and report: a finished table is printed whatever becomes of the files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wordcounts import WORDS, WordCounts

from rwkvsts import cli
from rwkvsts.study import experiment, folder, plots


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study of a stand-in model on a file of pairs, but for --out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment.models, "open_model", lambda *_: WordCounts())
    monkeypatch.setattr(experiment.models, "kind_of", lambda *_: "rwkv")
    nothing = dict.fromkeys(plots.PLOTS, lambda study: object())
    monkeypatch.setattr(plots, "PLOTS", nothing)
    monkeypatch.setattr(plots, "draw", lambda study, name: plots.PLOTS[name](study))
    monkeypatch.setattr(plots, "save", lambda figure, path, kind: path.write_text(kind))
    rng = np.random.default_rng(0)
    rows = ["a\tb\tscore\tsplit"]
    for i in range(60):
        one, other = (" ".join(rng.choice(WORDS, 5)) for _ in range(2))
        rows.append(f"{one}\t{other}\t{i % 4}\t{'train' if i < 30 else 'test'}")
    Path("mine.tsv").write_text("\n".join(rows))
    Path("glove.txt").write_text("w1 1 0\nw2 0 1\n")
    given = "study --model made/up --pairs mine.tsv --columns a,b,score --glove glove.txt"
    return [*given.split(), "--timed-pairs", "0", "--resamples", "50", "--post", "none,abtt"]


def test_own_pairs_are_scored_with_all_that_is_asked(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*argv, "--pooling", "mean,last", "--prompt", "none", "--prompt", "eol"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("made/up on mine.tsv\n")
    assert "mine train, n = 30" in printed and "mine test, n = 30" in printed
    assert "up last, world, prompt eol, abtt" in printed
    assert "best on train" in " ".join(printed.split())


def test_what_cannot_be_written_is_named_and_the_table_printed(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plots.PLOTS, "time", lambda study: 1 / 0)
    assert cli.main([*argv, "--out", "out"]) == 1
    printed = capsys.readouterr()
    assert "mine test, n = 30" in printed.out and "Written into out: run.json" in printed.out
    assert "is complete, but not all was written: time.pdf, time.png: division" in printed.err
    assert (Path("out") / "table.csv").exists() and not (Path("out") / "time.pdf").exists()


def test_what_failed_alike_is_told_once(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plots.PLOTS, "time", lambda study: 1 / 0)
    monkeypatch.setitem(plots.PLOTS, "bars", lambda study: 1 / 0)
    assert cli.main([*argv, "--out", "out"]) == 1
    assert capsys.readouterr().err.count("division by zero") == 1


def test_splits_without_a_task_are_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*argv, "--split", "test"]) == 1
    assert "a file of pairs has its own, in a column called split" in capsys.readouterr().err


def test_scores_that_are_all_alike_are_explained(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"w{i} w1\tx{i} y\t{i}" for i in range(9)]  # no word is shared
    Path("mine.tsv").write_text("a\tb\tscore\n" + "\n".join(rows))
    assert cli.main([*argv, "--post", "none"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"nan: [^.]*word overlap on mine all[^.]*scored all pairs alike", printed)


def test_an_output_that_lacks_a_sign_shows_another(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.tsv").rename("m\xe4.tsv")
    printed = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", printed)
    assert cli.main([name.replace("mine", "m\xe4") for name in argv]) == 0
    assert printed.buffer.getvalue().startswith(b"made/up on m\\xe4.tsv\n")  # type: ignore


def test_a_full_disk_still_prints_the_table(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_put", full)
    monkeypatch.setattr(folder, "_write_scores", full)
    assert cli.main([*argv, "--out", "out"]) == 1
    printed = capsys.readouterr()
    assert "mine test, n = 30" in printed.out
    assert "No space left on device" in printed.err


def test_report_lays_runs_side_by_side(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*argv, "--out", "one"]) == 0
    other = [word.replace("made/up", "made/down") for word in argv]
    assert cli.main([*other, "--out", "two"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "one", "two", "--out", "both"]) == 0
    printed = capsys.readouterr().out
    assert "up mean, world" in printed and "down mean, world" in printed
    assert (Path("both") / "table.csv").exists()
    assert cli.main(["report", "nowhere"]) == 1
    assert "nowhere: not the folder of a run" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with folder.held(Path("out")):
        assert cli.main([*argv, "--out", "out"]) == 1
    assert "another study writes into out" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["run:1", "a b#c?d%20"])
def test_a_folder_may_be_called_anything(argv: list[str], out: str) -> None:
    """pyarrow takes a name with a colon for an address."""
    assert cli.main([*argv, "--out", out]) == 0
    assert (Path(out) / "scores.parquet").exists()
    assert cli.main(["report", out, "--out", "merged"]) == 0
    assert cli.main([*argv, "--out", out]) == 0


def test_the_home_folder(argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in --out=~/results, which a shell leaves as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.main([*argv, "--out=~/results"]) == 0
    assert (tmp_path / "home" / "results" / "scores.parquet").exists() and not Path("~").exists()


def test_a_slip_in_the_name_of_a_prompt(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be put before every text, as a prompt is that holds no place."""
    assert cli.main([*argv, "--prompt", "metaeoll"]) == 1
    error = capsys.readouterr().err
    assert "no prompt 'metaeoll'; choose of none, " in error and "holds {text}" in error
    assert cli.main([*argv, "--prompt", "query: "]) == 0


def test_one_column_for_both_sentences(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([*argv, "--columns", "a,a,score"])
    assert "'a,a,score': expected three columns, each named once" in capsys.readouterr().err
