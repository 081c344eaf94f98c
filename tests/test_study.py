"""The study: right pairing, controls always, published figures only where they belong, reports.

The model is a stand-in with `RWKV6`'s surface: what it returns is known, so the table is.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from rwkvsts.data import datasets
from rwkvsts.files.writing import replacing
from rwkvsts.study import cost, experiment, report

WORDS = [f"w{i}" for i in range(40)]


class BagOfWords:
    """Counts words; a layer L adds L to each, so that layers differ. Keeps what it was asked."""

    device, dtype, source, revision, n_blocks = "cpu", "float32", "made/up", "abc123", 12

    def __init__(self, n_layer: int = 24) -> None:
        self.config = types.SimpleNamespace(n_layer=n_layer, n_embd=2048, n_vocab=65536)
        self.calls: list[dict[str, Any]] = []

    def encode(self, texts: list[str], layers: Any, **how: Any) -> np.ndarray:
        self.calls.append({"texts": len(texts), "layers": layers, **how})
        counts = np.array([[t.split().count(w) for w in WORDS] for t in texts], np.float32)
        one = not isinstance(layers, list)
        offsets = [99 if x == "final" else x for x in ([layers] if one else layers)]
        out = np.stack([counts + 0.1 * offset for offset in offsets], axis=1)
        return out[:, 0] if one else out

    def memory(self) -> dict[str, int]:
        return {"weights": 1 << 20, "workspace": 1 << 19, "peak": 3 << 20}


def made_up_pairs(n: int = 60, name: str = "mrpc", split: str = "validation") -> datasets.Pairs:
    rng = np.random.default_rng(7)
    first = [" ".join(rng.choice(WORDS, 6)) for _ in range(n)]
    second = [" ".join(np.append(rng.choice(WORDS, 3), s.split()[:3])) for s in first]
    label = rng.integers(0, 2, n).astype(np.float64)
    return datasets.Pairs(name, split, first, second, label, "made up")


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{w} " + " ".join(f"{x:.3f}" for x in rng.normal(size=50)) for w in WORDS[:30]]
    (tmp_path / "glove.txt").write_text("\n".join(rows))
    return tmp_path / "glove.txt"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> BagOfWords:
    fake = BagOfWords()
    monkeypatch.setattr(experiment, "open_model", lambda config, tokenizer: fake)
    monkeypatch.setattr(
        datasets, "load", lambda name, split, *_, **__: made_up_pairs(60, name, split or "all")
    )
    return fake


def config(glove: Path | None, **change: Any) -> experiment.StudyConfig:
    base = experiment.StudyConfig(
        model="made/up", task="mrpc", glove=glove, resamples=50, timed_pairs=2, layers=(1, 3)
    )
    return dataclasses.replace(base, **change)


def test_each_row_scores_its_own_pairs_and_layer(model: BagOfWords, glove: Path) -> None:
    table = experiment.run(config(glove, layers=(3, 1, "final")))
    pairs = made_up_pairs()
    expected = {}
    for layer in (3, 1, 99):
        # One pair at a time: nothing here can pair or order rows wrongly.
        scores = []
        for one, other, _ in zip(pairs.sentence1, pairs.sentence2, pairs.label, strict=True):
            a, b = (model.encode([text], layers=layer)[0].astype(float) for text in (one, other))
            scores.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        expected[layer] = spearmanr(np.round(scores, 12), pairs.label).statistic
    assert len(set(expected.values())) == 3
    rows = [row for row in table.rows if row.layer is not None and row.split == "validation"]
    assert [row.layer for row in rows] == [3, 1, "final"]
    for row, rho in zip(rows, expected.values(), strict=True):
        assert row.spearman == pytest.approx(rho, abs=1e-12)
        assert row.low < row.spearman < row.high
        assert row.over_overlap == pytest.approx(rho - table.rows[0].spearman, abs=1e-12)


def test_a_wrong_pairing_would_show(
    model: BagOfWords, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [row.spearman for row in experiment.run(config(glove)).rows]
    pairs = made_up_pairs()
    turned = dataclasses.replace(pairs, sentence2=pairs.sentence2[1:] + pairs.sentence2[:1])
    monkeypatch.setattr(datasets, "load", lambda *_, **__: turned)
    wrong = [row.spearman for row in experiment.run(config(glove)).rows]
    assert all(abs(a - b) > 1e-3 for a, b in zip(right, wrong, strict=False))


def test_controls_come_first_in_every_split(model: BagOfWords, glove: Path) -> None:
    table = experiment.run(config(glove, tokenizers=("world", "gpt2")))
    assert [row.split for row in table.rows] == ["train[:1000]"] * 7 + ["validation"] * 7
    for part in (table.rows[:7], table.rows[7:]):
        assert [row.method for row in part[:3]] == ["word overlap", "GloVe", "GloVe, words split"]
        assert [(row.tokenizer, row.layer) for row in part[3:]] == [
            ("world", 1),
            ("world", 3),
            ("gpt2", 1),
            ("gpt2", 3),
        ]
    assert table.rows[0].over_overlap == 0
    assert table.rows[0].peak_mib == 0 and table.rows[3].peak_mib == 3
    assert table.rows[1].peak_mib == 30 * 50 * 4 / (1 << 20)


def test_model_is_asked_as_the_paper_does(model: BagOfWords, glove: Path) -> None:
    experiment.run(config(glove, splits=("validation",), timed_pairs=5, pooling="last"))
    assert all(c["max_length"] == 128 and c["pooling"] == "last" for c in model.calls)
    single = [c["layers"] for c in model.calls if c["texts"] == 2]
    assert single == [1] * 8 + [3] * 8  # 3 warm-ups and 5 timed, a pair a call, one layer
    assert [c["layers"] for c in model.calls if c["texts"] == 120] == [[1, 3]]


def test_a_bad_model_is_told_before_anything_is_computed(
    model: BagOfWords, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no model")

    monkeypatch.setattr(experiment, "open_model", refuse)
    monkeypatch.setattr(cost, "time_pairs", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match="no model"):
        experiment.run(config(glove))


def test_each_layer_has_its_own_time(
    model: BagOfWords, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_pairs(embed: Any, *_: Any, **__: Any) -> cost.PairTime:
        model.calls.append({"layers": 0})
        embed(["w1", "w2"])
        return cost.PairTime(model.calls[-1]["layers"], 7.0, 2)

    monkeypatch.setattr(cost, "time_pairs", time_pairs)
    table = experiment.run(config(glove, layers=(5, 3)))
    assert [row.ms_per_pair for row in table.rows[1:5]] == [0, 0, 5000, 3000]
    assert {row.ms_per_pair_mean for row in table.rows[1:5]} == {7000}


def test_published_figures_stand_only_beside_the_same_protocol(
    model: BagOfWords, glove: Path
) -> None:
    def published(**change: Any) -> dict[tuple[str, Any, str], float]:
        rows = experiment.run(config(glove, **change)).rows
        return {
            (row.tokenizer or row.method, row.layer, row.split): row.published_spearman
            for row in rows
            if row.published_spearman is not None
        }

    both = ("world", "gpt2")
    assert published(tokenizers=both) == {
        ("GloVe", None, "train[:1000]"): 0.3876,
        ("GloVe", None, "validation"): 0.4326,
        ("gpt2", 1, "train[:1000]"): 0.2879,
        ("gpt2", 3, "train[:1000]"): 0.2766,
        ("gpt2", 1, "validation"): 0.3498,
        ("gpt2", 3, "validation"): 0.3410,
    }
    of_glove = {"GloVe"}
    assert {key[0] for key in published(tokenizers=both, pooling="last")} == of_glove
    assert published(tokenizers=both, task="stsb") == {}
    model.config.n_layer = 12
    assert {key[0] for key in published(tokenizers=both)} == of_glove


def test_published_table_is_the_papers() -> None:
    assert len(experiment.PUBLISHED_RWKV) == 12
    last = experiment.PUBLISHED_RWKV[11, "validation"]
    assert (last.spearman, last.s_per_pair, last.peak_mib) == (0.3073, 0.3288, 3078.44)
    seven = experiment.PUBLISHED_RWKV[7, "train[:1000]"]
    assert (seven.spearman, seven.s_per_pair, seven.peak_mib) == (0.2491, 0.3301, 3078.38)


def test_facts_tell_how_to_repeat_the_run(model: BagOfWords, glove: Path) -> None:
    facts = experiment.run(config(glove, tokenizers=("world", "gpt2"))).facts
    assert {"cpu", "cores", "gpu", "os", "python", "numpy", "scipy", "rwkvsts", "date"} <= set(
        facts
    )
    assert [m["tokenizer"] for m in facts["models"]] == ["world", "gpt2"]
    assert facts["models"][0]["revision"] == "abc123"
    assert facts["models"][0]["memory"]["peak"] == 3 << 20
    assert facts["word_vectors"] == {"source": str(glove), "rows": 30}
    assert facts["numpy"] == np.__version__


def test_default_splits() -> None:
    splits = {
        task: experiment.splits_of(experiment.StudyConfig(task=task))
        for task in ("mrpc", "stsb", "demo")
    }
    assert splits == {
        "mrpc": ("train[:1000]", "validation"),
        "stsb": ("validation", "test"),
        "demo": ("all",),
    }
    # The hub's copy of the 2014 edition is one split; a local folder has the test split.
    assert experiment.splits_of(experiment.StudyConfig(task="sick-2014")) == ("all",)
    assert experiment.splits_of(experiment.StudyConfig(task="sick-2014", data="d")) == ("test",)


@pytest.fixture
def table(model: BagOfWords, glove: Path) -> experiment.Study:
    return experiment.run(config(glove, tokenizers=("world", "gpt2")))


def test_graded_labels_have_no_auc(
    model: BagOfWords, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = made_up_pairs(name="stsb", split="test")
    graded = dataclasses.replace(pairs, label=np.arange(60.0) % 6)
    monkeypatch.setattr(datasets, "load", lambda *_, **__: graded)
    table = experiment.run(config(glove, task="stsb", splits=("test",)))
    assert all(np.isnan(row.auc) for row in table.rows)
    assert "AUC" not in report.text(table)
    assert json.loads(report.to_json(table))["rows"][0]["auc"] is None


def test_text_fits_a_terminal_and_agrees_with_the_rows(table: experiment.Study) -> None:
    lines = report.text(table).split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[2].strip() == "train[:1000], n = 60"
    row = table.rows[3]
    line = next(line for line in lines if line.startswith("RWKV-6 mean, world"))
    assert line.split()[3:5] == ["1", f"{row.spearman:.4f}"]


def test_csv_and_json_hold_every_figure(table: experiment.Study, tmp_path: Path) -> None:
    paths = report.write(table, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "study.csv",
        "study.json",
        "study.md",
        "study.tex",
        "study.png",
    ]
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in paths
    )
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["spearman"]) for r in rows] == [r.spearman for r in table.rows]
    assert [r["published_spearman"] for r in rows[:2]] == ["", "0.3876"]
    content = json.loads(paths[1].read_text())
    assert [r["high"] for r in content["rows"]] == [r.high for r in table.rows]
    assert content["config"]["layers"] == [1, 3] and content["facts"]["cpu"]
    assert paths[4].read_bytes().startswith(b"\x89PNG")


def test_markdown_and_latex_escape(table: experiment.Study) -> None:
    odd = dataclasses.replace(table.rows[0], method="a|b_c & 5 %")
    odd_table = dataclasses.replace(table, rows=[odd])
    head, rule, title, row = report.markdown(odd_table).splitlines()[:4]
    assert "a\\|b_c & 5 %" in row
    assert len({line.replace("\\|", "").count("|") for line in (head, rule, title, row)}) == 1
    body = report.latex(odd_table)
    assert r"a|b\_c \& 5 \%" in body and r"Spearman [95 \%]" in body
    cells = [line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")]
    assert len(set(cells)) == 1 and body.count(r"\begin{tabular}") == 1


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_plot_draws_what_the_table_says(
    table: experiment.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    from rwkvsts.study import plots

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    plots.layers(table, "unused.png")
    panels = drawn[0].axes
    assert [p.get_title() for p in panels] == ["train[:1000], n = 60", "validation, n = 60"]
    for panel, split in zip(panels, ("train[:1000]", "validation"), strict=True):
        rows = [row for row in table.rows if row.split == split]
        heights = [{y and round(float(y), 12) for y in line.get_ydata()} for line in panel.lines]
        for row in rows[:3]:
            assert {round(row.spearman, 12)} in heights
        for tokenizer in ("world", "gpt2"):
            rho = {round(row.spearman, 12) for row in rows if row.tokenizer == tokenizer}
            assert rho in heights
        published = {row.published_spearman for row in rows if row.tokenizer == "gpt2"}
        assert published in heights


def test_real_mrpc_controls_reach_the_table(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "open_model", lambda config, tokenizer: BagOfWords())
    glove = shared / "glove" / "glove.6B.50d.part.txt"
    table = experiment.run(config(glove, data=shared, resamples=20))
    figures = {(r.split, r.method): round(r.spearman, 4) for r in table.rows if r.layer is None}
    assert figures["train[:1000]", "word overlap"] == 0.4031
    assert figures["validation", "word overlap"] == 0.4165
    assert figures["train[:1000]", "GloVe"] == 0.3564
    assert figures["validation", "GloVe"] == 0.4189
    overlap = next(r for r in table.rows if r.method == "word overlap")
    assert overlap.auc == pytest.approx(
        0.5 + overlap.spearman / (2 * 0.8), abs=0.02
    )  # near 0.805 (2 AUC - 1), which ties blur
    assert cost.host_peak_bytes() is None or table.facts["host_peak_mib"] > 10
