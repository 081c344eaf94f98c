"""The table on paper, the plots, the run's folder: they say what the rows say, together or not."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from wordcounts import WORDS, WordCounts, made_up_pairs

from rwkvsts.data import datasets
from rwkvsts.errors import DataError
from rwkvsts.study import Study, StudyConfig, experiment, folder, merge, plots, read, report, write
from rwkvsts.study.methods import Method, PairSet, Scored


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a study of a stand-in model, with settings."""
    rng = np.random.default_rng(0)
    rows = [f"{w} " + " ".join(f"{x:.3f}" for x in rng.normal(size=50)) for w in WORDS[:30]]
    (tmp_path / "glove.txt").write_text("\n".join(rows))
    monkeypatch.setattr(experiment.models, "open_model", lambda *_: WordCounts())
    monkeypatch.setattr(experiment.models, "kind_of", lambda *_: "rwkv")
    monkeypatch.setattr(
        datasets, "load", lambda name, split, *_, **__: made_up_pairs(60, name, split)
    )

    def run(**settings: Any) -> Study:
        base = StudyConfig(
            models=("made/up",),
            tasks=("mrpc",),
            glove=tmp_path / "glove.txt",
            tokenizers=("world", "gpt2"),
            resamples=50,
            timed_pairs=2,
            layers=(1, 3),
            norms=True,
        )
        return experiment.run(dataclasses.replace(base, **settings))

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots that take no time, for tests of what becomes of their files."""
    nothing = dict.fromkeys(plots.PLOTS, lambda study: object())
    if_any = {"norms": lambda study: object() if study.norms else None}
    monkeypatch.setattr(plots, "PLOTS", {**nothing, **if_any})
    monkeypatch.setattr(plots, "draw", lambda study, name: plots.PLOTS[name](study))
    monkeypatch.setattr(plots, "save", lambda figure, path, kind: path.write_text(kind))


@pytest.fixture
def study(make: Any) -> Study:
    found: Study = make()
    return found


def test_text_fits_a_terminal_and_agrees_with_the_rows(study: Study) -> None:
    lines = report.text(study).split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= report.TERMINAL
    assert lines[2].strip() == "mrpc train[:1000], n = 60"
    row = study.rows[3]
    line = next(line for line in lines if line.startswith("up mean, world"))
    assert line.split()[3:5] == ["1", f"{row.spearman:.4f}"]


def test_standing_says_what_is_beaten_and_what_is_noise(study: Study) -> None:
    row = study.rows[3]
    best = dataclasses.replace(row, letter="d", beats="ac", within_noise="b", chosen_on="")
    chosen = dataclasses.replace(best, chosen_on="validation", within_noise="")
    other = dataclasses.replace(row, letter="", chosen_on="", behind=-0.0123, p_behind=0.3)
    below = dataclasses.replace(other, p_behind=0.01)
    alone = dataclasses.replace(other, behind=math.nan, p_behind=math.nan)
    said = [report._standing(r) for r in (best, chosen, other, below, alone)]
    assert said == ["d >ac ~b", "d* >ac", "-0.012 ~", "-0.012", ""]


def test_a_long_reading_is_shown_by_its_best_layer_and_its_last(make: Any) -> None:
    study = make(layers="all", splits=("validation",), tokenizers=("world",), timed_pairs=0)
    assert len(study.rows) == 3 + 13
    kept = [row for row in report.shown(study) if row.pooling]
    best = next(row for row in study.rows if row.best == "system" and row.pooling)
    assert {row.layer for row in kept} == {best.layer, "final"}
    table = list(csv.DictReader(report.csv(study).splitlines()))
    assert len(table) == len(study.rows)
    assert "every row is in table.csv" in report.text(study)


def test_the_ladder_is_shown_step_by_step(make: Any) -> None:
    text = report.text(make(recipe=("paper", "world"), splits=("validation",), timed_pairs=0))
    steps = [line.strip() for line in text.splitlines() if line.startswith("up:")]
    assert steps == [
        "up: the paper's mode: gpt2 ids",
        "up: World tokenizer",
        "up: leading token 0",
        "up: every layer",
    ]


def test_a_step_is_shown_where_a_higher_one_is_better(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_LAYERS", 6)  # of the stand-in's 13: the paper has 6 of them
    study = make(recipe=("world",), splits=("validation",), timed_pairs=0)
    led = [row for row in report.shown(study) if row.lead]
    steps = {row.layer: row.step for row in led}
    assert [x for x in steps if steps[x] == "leading token 0"] == [1, 3, 5, 7, 9, 11]
    assert 1 <= sum(step == "every layer" for step in steps.values()) <= 2


def test_every_model_of_a_run_is_named_below_the_table(study: Study) -> None:
    facts = study.runs[0]["facts"]
    one = {"source": "a/b", "revision": None, "tokenizer": "world", "dtype": "x", "device": "cpu"}
    facts["models"] = [one, {**one, "source": "c/d", "revision": "r1"}]
    said = report.markdown(study)
    assert "model a/b world: x on cpu" in said and "model c/d r1 world: x on cpu" in said


def test_csv_and_json_hold_every_figure_and_no_file_tells_where_the_user_lives(
    study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder"
    paths, failures = write(study, out)
    assert not failures and {path.name for path in paths} == set(folder.FILES)
    assert {path.name for path in out.iterdir()} == set(folder.FILES)
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["spearman"]) for r in rows] == [r.spearman for r in study.rows]
    assert [r["published_spearman"] for r in rows[5:7]] == ["0.2879", "0.2766"]
    content = json.loads((out / "run.json").read_text())
    assert [r["high"] for r in content["rows"]] == [r.high for r in study.rows]
    (run,) = content["runs"]
    assert run["config"]["layers"] == [1, 3] and run["facts"]["cpu"]
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "layers.pdf").read_bytes().startswith(b"%PDF")
    for path in out.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content and str(Path.home()).encode() not in content


@pytest.mark.usefixtures("quick")
def test_scores_hold_every_pair_of_every_row(study: Study, tmp_path: Path) -> None:
    write(study, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "scores.parquet").to_pandas()
    assert len(table) == 60 * len(study.rows)
    for i, (row, scored) in enumerate(zip(study.rows, study.scored, strict=True)):
        part = table[table.row == i]
        assert part.pair.tolist() == list(range(60))
        assert np.array_equal(part.score, scored.scores)
        assert np.array_equal(part.label, scored.pairs.label)
        assert set(part.method) == {row.method} and set(part.split) == {row.split}
        assert set(part.layer) == {"" if row.layer is None else str(row.layer)}


def test_markdown_and_latex_escape(study: Study) -> None:
    odd = dataclasses.replace(study.rows[0], method="a|b_c & 5 %")
    odd_table = dataclasses.replace(study, rows=[odd])
    head, rule, title, row = report.markdown(odd_table).splitlines()[:4]
    assert "a\\|b_c & 5 %" in row
    assert len({line.replace("\\|", "").count("|") for line in (head, rule, title, row)}) == 1
    body = report.latex(odd_table)
    assert r"a|b\_c \& 5 \%" in body and r"Spearman [95 \%]" in body
    cells = [line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")]
    assert len(set(cells)) == 1 and body.count(r"\begin{tabular}") == 1


def test_latex_compiles(make: Any, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex: apt-get install texlive-latex-base texlive-latex-recommended")
    table = report.latex(make(prompts=("Значит: {text}", 'a "quote"_^~#$%&{text}\\')))
    document = (
        "\\documentclass{article}\\usepackage[landscape]{geometry}\\usepackage{booktabs}"
        f"\\begin{{document}}\\tiny\n{table}\\end{{document}}\n"
    )
    (tmp_path / "table.tex").write_text(document, "utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


def figures(study: Study) -> dict[str, Any]:
    """Every plot of a study."""
    return {name: plots.draw(study, name) for name in plots.PLOTS}


def heights(panel: Any) -> list[list[float]]:
    return [[round(float(y), 12) for y in line.get_ydata()] for line in panel.lines]


def test_plots_draw_what_the_table_says(study: Study) -> None:
    drawn = figures(study)
    for name in ("layers", "bars"):
        titles = [panel.get_title().partition(",")[0] for panel in drawn[name].axes]
        assert [t.partition(" [")[0] for t in titles] == ["mrpc train[:1000]", "mrpc validation"]
    for panel, split in zip(drawn["layers"].axes, ("train[:1000]", "validation"), strict=True):
        rows = [row for row in study.rows if row.split == split]
        found = heights(panel)
        for row in rows[:3]:
            assert [round(row.spearman, 12)] * 2 in found
        for tokenizer in ("world", "gpt2"):
            rho = [round(row.spearman, 12) for row in rows if row.tokenizer == tokenizer]
            assert rho in found
        assert [row.published_spearman for row in rows if row.tokenizer == "gpt2"] in found
    for panel, split in zip(drawn["bars"].axes, ("train[:1000]", "validation"), strict=True):
        best = [row.spearman for row in study.rows if row.split == split and row.best]
        assert [bar.get_width() for bar in panel.patches] == pytest.approx(best[::-1])
    (panel,) = drawn["time"].axes
    times = [row.ms_per_pair for row in study.rows if row.split == "validation"]
    assert sorted(x for line in panel.lines for x in line.get_xdata()) == sorted(times)
    assert [round(y, 9) for y in np.array(study.norms[0]["norms"])[0]] == [
        round(float(y), 9) for y in drawn["norms"].axes[0].lines[0].get_ydata()
    ]


def test_graded_labels_are_shown_in_five_bins() -> None:
    """0 to 5 in steps of 0.2, as STS-B has them; a bin without a pair is left out."""
    label = np.array([0.0, 0.2, 0.9, 1.0, 1.8, 4.0, 4.6, 5.0])
    pairs = PairSet("stsb", "test", label, "")
    names, groups = plots._by_label(Scored(Method("m"), pairs, 10 * label))
    assert names == ["0-1", "1-2", "4-5"]
    assert [group.tolist() for group in groups] == [[0, 2, 9], [10, 18], [40, 46, 50]]


def test_many_layers_are_named_in_steps_and_the_last_one_always() -> None:
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    panel.set_xlim(0, 32)
    plots._layer_axis(panel, [*map(str, range(32)), "final"])
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [
        *("0", "4", "8", "12", "16", "20", "24", "28"),
        "final",
    ]


def test_joined_layers_stand_two_a_line_below_the_axis() -> None:
    """In one line they ran into the neighbours' names."""
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    plots._layer_axis(panel, ["11", "1+3+5+7+9+11", "+".join(map(str, range(24)))])
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [
        *("11", "1+3\n+5+7\n+9+11", "0+1\n+2+3\n+...+23"),
    ]


def test_a_method_has_one_colour_everywhere(study: Study) -> None:
    drawn = figures(study)
    for method, style in plots._styles(study).items():
        for name in ("layers", "time"):
            (colours,) = {
                tuple({line.get_color() for line in panel.lines if line.get_label() == method})
                for panel in drawn[name].axes
            }
            assert colours == (style.colour,)
    styles = plots._styles(study)
    assert len(set(styles.values())) == len(styles)


def test_many_readings_draw_what_stands_for_a_model(make: Any) -> None:
    many = make(poolings=("mean", "last"), prompts=(None, "a {text}", "b {text}", "c {text}"))
    drawn = {row.method for row in plots._drawn(many.rows) if row.pooling}
    standing = {row.method for row in many.rows if row.best == "system" and row.pooling}
    assert standing <= drawn and len(drawn) <= len(standing) + 2
    assert "up mean, world" in drawn


def snapshot(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


@pytest.mark.usefixtures("quick")
def test_a_plot_that_fails_loses_nothing_else(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(make(), tmp_path / "out")
    monkeypatch.setitem(plots.PLOTS, "bars", lambda study: 1 / 0)
    second = make(layers=(5,))
    paths, failures = write(second, tmp_path / "out")
    assert failures == ["bars.pdf: division by zero", "bars.png: division by zero"]
    names = {path.name for path in paths}
    assert names == set(folder.FILES) - {"bars.pdf", "bars.png"}
    # The old bars would stand beside a table that is not theirs.
    assert set(snapshot(tmp_path / "out")) == names
    assert report.csv(second) == (tmp_path / "out" / "table.csv").read_text()


@pytest.mark.usefixtures("quick")
def test_a_full_disk_leaves_the_old_files_and_is_named(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(make(), out)
    before = snapshot(out)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    second = make(layers=(5,))
    monkeypatch.setattr(folder.os, "replace", full)
    paths, failures = write(second, out)
    assert not paths and failures == [f"{out}: No space left on device"]
    assert snapshot(out) == before and not (out / ".new").exists()


def test_a_library_that_fails_while_it_cleans_up_does_not_hide_the_full_disk() -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        finally:
            None.pos  # type: ignore[attr-defined]  # noqa: B018  # as matplotlib's PDF writer
    except AttributeError as error:
        assert folder._reason(error) == "No space left on device"
    assert folder._reason(ValueError("a b")) == "a b"


@pytest.mark.usefixtures("quick")
def test_files_change_together_wherever_the_process_ends(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended at every step of the moving: what a reader opens next is the old set or the new."""
    first, second = make(), make(layers=(5,), norms=False)
    write(first, tmp_path / "old")
    write(second, tmp_path / "new")
    old, new = snapshot(tmp_path / "old"), snapshot(tmp_path / "new")
    assert "norms.pdf" in old and "norms.pdf" not in new

    class Ended(BaseException):
        pass

    replace = os.replace
    for moves in (0, 1, 2, len(new) // 2, len(new) - 1):
        out = tmp_path / f"ended{moves}"
        write(first, out)
        left = iter(range(moves))

        def limited(*paths: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise Ended
            replace(*paths)

        monkeypatch.setattr(folder.os, "replace", limited)
        with pytest.raises(Ended):
            write(second, out)
        monkeypatch.setattr(folder.os, "replace", replace)
        scored, record = read(out)
        found = {n: content for n, content in snapshot(out).items() if n != ".lock"}
        expected = old if moves == 0 else new
        assert found["table.csv"] == expected["table.csv"]
        assert set(found) == set(expected)
        assert len(scored) == len(record["rows"])


def test_a_folder_serves_one_study_at_a_time(tmp_path: Path) -> None:
    with (
        folder.held(tmp_path),
        pytest.raises(DataError, match="another study writes into"),
        folder.held(tmp_path),
    ):
        pass
    with folder.held(tmp_path):
        pass


@pytest.mark.usefixtures("quick")
def test_a_run_read_again_gives_its_table(make: Any, tmp_path: Path) -> None:
    study = make()
    write(study, tmp_path / "out")
    again = merge([tmp_path / "out"])
    assert report.csv(again) == report.csv(study)
    assert report.text(again) == report.text(study)
    assert again.norms == study.norms


@pytest.mark.usefixtures("quick")
def test_merged_runs_are_one_table(make: Any, tmp_path: Path) -> None:
    both = make(models=("a/one", "b/two"), norms=False)
    for name in ("a/one", "b/two"):
        write(make(models=(name,), norms=False), tmp_path / name[2:])
    merged = merge([tmp_path / "one", tmp_path / "two"])
    costs = ["ms_per_pair", "ms_per_pair_mean", "ms_per_pair_batched"]

    def comparable(study: Study) -> Any:
        return study.frame().drop(columns=costs).to_csv()

    assert comparable(merged) == comparable(both)  # letters, comparisons and all
    assert len(merged.runs) == 2


@pytest.mark.usefixtures("quick")
def test_same_name_other_scores_stand_apart_and_other_pairs_are_refused(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(make(tokenizers=("world",)), tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(WordCounts, "encode", lambda self, texts, layers, **_: noise(texts, layers))
        write(make(tokenizers=("world",)), tmp_path / "two")
    methods = {row.method for row in merge([tmp_path / "one", tmp_path / "two"]).rows}
    assert {"up mean, world", "up (two) mean, world"} < methods
    assert "word overlap (two)" not in methods
    monkeypatch.setattr(datasets, "load", lambda name, split, *_, **__: made_up_pairs(50))
    write(make(splits=("validation",)), tmp_path / "three")
    with pytest.raises(DataError, match="mrpc validation is not the same in"):
        merge([tmp_path / "one", tmp_path / "three"])


def noise(texts: list[str], layers: Any) -> np.ndarray:
    each = (len(layers),) if isinstance(layers, list) else ()
    rows = [np.random.default_rng(list(t.encode())).normal(size=(*each, 8)) for t in texts]
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: shutil.rmtree(out), "not the folder of a run"),
        (lambda out: (out / "run.json").write_text("{"), "not the folder of a run"),
        (lambda out: (out / "run.json").write_text("{}"), "expected a run of format 1, found None"),
        (lambda out: (out / "run.json").write_text("[]"), "expected a run of format 1, found None"),
        (
            lambda out: (out / "run.json").write_text('{"format": 1, "rows": []}'),
            r"run\.json is not as it was written \('pairs'\); run the study again",
        ),
        (lambda out: (out / "scores.parquet").write_bytes(b"PAR1"), "not the folder of a run"),
        (
            lambda out: pyarrow.parquet.write_table(
                pyarrow.parquet.read_table(out / "scores.parquet").slice(1), out / "scores.parquet"
            ),
            r"scores\.parquet is not of this run\.json; run the study again",
        ),
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_is_no_run_is_refused(make: Any, tmp_path: Path, spoil: Any, message: str) -> None:
    write(make(), tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        merge([tmp_path / "out"])
