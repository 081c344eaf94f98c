"""The study: right pairing, controls always, settings as asked, published figures in their place.

The model is a stand-in: what it returns is known, so the table is.
"""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from wordcounts import WORDS, WordCounts, made_up_pairs

import rwkvsts
from rwkvsts.data import datasets
from rwkvsts.errors import DataError
from rwkvsts.study import (
    StudyConfig,
    baselines,
    cost,
    experiment,
    passes,
    postprocess,
    published,
    settings,
    statistics,
)
from rwkvsts.study.settings import PROMPTS, Reading
from rwkvsts.study.words import Words


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{w} " + " ".join(f"{x:.3f}" for x in rng.normal(size=50)) for w in WORDS[:30]]
    (tmp_path / "glove.txt").write_text("\n".join(rows))
    return tmp_path / "glove.txt"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> WordCounts:
    fake = WordCounts()
    monkeypatch.setattr(experiment.models, "open_model", lambda *_: fake)
    monkeypatch.setattr(experiment.models, "kind_of", lambda *_: "rwkv")
    monkeypatch.setattr(
        datasets, "load", lambda name, split, *_, **__: made_up_pairs(60, name, split or "all")
    )
    return fake


def config(glove: Path | None, **change: Any) -> StudyConfig:
    base = StudyConfig(
        models=("made/up",),
        tasks=("mrpc",),
        glove=glove,
        resamples=50,
        timed_pairs=2,
        layers=(1, 3),
    )
    return dataclasses.replace(base, **change)


def test_each_row_scores_its_own_pairs_and_layer(model: WordCounts, glove: Path) -> None:
    table = experiment.run(config(glove, layers=(3, 1, "final")))
    pairs = made_up_pairs()
    expected = {}
    for layer in (3, 1, 99):
        # One pair at a time: nothing here can pair or order rows wrongly.
        scores = []
        for one, other, _ in zip(pairs.sentence1, pairs.sentence2, pairs.label, strict=True):
            a, b = (
                model.encode([text], layers=layer, pooling="mean")[0].astype(float)
                for text in (one, other)
            )
            scores.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        expected[layer] = spearmanr(np.round(scores, 12), pairs.label).statistic
    assert len(set(expected.values())) == 3
    rows = [row for row in table.rows if row.layer is not None and row.split == "validation"]
    overlap = next(r for r in table.rows if r.method == "word overlap" and r.split == "validation")
    assert [row.layer for row in rows] == [3, 1, "final"]
    for row, rho in zip(rows, expected.values(), strict=True):
        assert row.spearman == pytest.approx(rho, abs=1e-12)
        assert row.low < row.spearman < row.high
        assert row.over_overlap == pytest.approx(rho - overlap.spearman, abs=1e-12)


def test_a_wrong_pairing_would_show(
    model: WordCounts, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config(glove, splits=("validation",))
    right = [row.spearman for row in experiment.run(one).rows]
    pairs = made_up_pairs()
    turned = dataclasses.replace(pairs, sentence2=pairs.sentence2[1:] + pairs.sentence2[:1])
    monkeypatch.setattr(datasets, "load", lambda *_, **__: turned)
    wrong = [row.spearman for row in experiment.run(one).rows]
    assert all(abs(a - b) > 1e-3 for a, b in zip(right, wrong, strict=True))


def test_scores_do_not_depend_on_the_pairs_taken_at_a_time(
    model: WordCounts, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = experiment.run(config(glove))
    monkeypatch.setattr(passes, "CHUNK_BYTES", 7 * 8 * 2 * model.width)
    model.calls.clear()
    parts = experiment.run(config(glove))
    assert sum(call["texts"] > 2 for call in model.calls) > 8
    for one, other in zip(whole.scored, parts.scored, strict=True):
        assert np.array_equal(one.scores, other.scores)


def test_controls_come_first_in_every_split(model: WordCounts, glove: Path) -> None:
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


def test_the_model_is_asked_as_the_paper_does(model: WordCounts, glove: Path) -> None:
    experiment.run(config(glove, splits=("validation",), timed_pairs=5, poolings=("last",)))
    assert all(c["max_length"] == 128 and c["pooling"] == "last" for c in model.calls)
    single = [c["layers"] for c in model.calls if c["texts"] == 2]
    assert single == [1] * 8 + [3] * 8  # 3 warm-ups and 5 timed, a pair a call, one layer
    assert [c["layers"] for c in model.calls if c["texts"] == 120] == [[1, 3]]


def test_every_combination_of_settings_is_a_method(model: WordCounts, glove: Path) -> None:
    asked = config(
        glove,
        models=("made/up", "other/up"),
        splits=("validation",),
        poolings=("mean", "last"),
        skip_first=(False, True),
        prompts=(None, PROMPTS["eol"]),
        lead=True,
        timed_pairs=0,
    )
    rows = [row for row in experiment.run(asked).rows if row.pooling]
    assert len(rows) == 2 * 2 * 2 * 2 * 2
    assert len({(row.method, row.layer) for row in rows}) == len(rows)
    assert rows[0].method == "made/up mean, world, token 0 first"
    assert rows[-1].method == "other/up last, world, token 0 first, skip first, prompt eol"
    assert all(call["state"] == ("after", [0]) for call in model.calls)
    assert {call.get("prompt") for call in model.calls} == {None, PROMPTS["eol"]}
    assert {call.get("skip_first") for call in model.calls} == {None, True}
    assert np.isnan([row.ms_per_pair for row in rows]).all()


def test_all_layers_are_every_block_and_the_last_norm(model: WordCounts, glove: Path) -> None:
    rows = experiment.run(config(glove, layers="all", splits=("validation",))).rows
    assert [row.layer for row in rows if row.pooling] == [*range(12), "final"]


def test_the_ladder_takes_a_step_at_a_time(model: WordCounts, glove: Path) -> None:
    asked = config(glove, recipe=("paper", "world"), splits=("validation",), timed_pairs=0)
    rows = [row for row in experiment.run(asked).rows if row.pooling]
    steps = {row.step: row for row in rows}
    assert list(steps) == list(settings.STEPS[:2]) + [settings.STEPS[3], settings.STEPS[2]]
    assert steps[settings.STEPS[0]].tokenizer == "gpt2"
    assert steps[settings.STEPS[2]].lead and steps[settings.STEPS[2]].layer == 11
    assert len({(row.method, row.layer) for row in rows}) == len(rows) == 6 + 6 + 13


def test_the_best_recipe_holds_every_kind_of_step() -> None:
    best = settings.readings(StudyConfig(recipe=("best",)))
    assert all(reading.lead != reading.skip_first and reading.layers == "all" for reading in best)
    assert {reading.prompt for reading in best} == set(PROMPTS.values())
    assert "state" in {reading.pooling for reading in best}
    assert any(reading.skip_first for reading in best)
    whole = settings.readings(StudyConfig(recipe=("paper", "world", "best")))
    assert whole[0] == Reading("gpt2")
    rows = [(dataclasses.replace(r, posts=()), post) for r in whole for post in r.posts]
    assert len(set(rows)) == len(rows)  # what two recipes share is one row


def test_post_processing_learns_from_train_sentences_alone(model: WordCounts, glove: Path) -> None:
    posts = ("none", "standardise", "abtt", "filter")
    asked = config(glove, splits=("validation",), posts=posts, layers=(3, 1))
    study = experiment.run(asked)
    train, pairs = made_up_pairs(split="train"), made_up_pairs()
    sentences = list(dict.fromkeys(train.sentence1 + train.sentence2))

    def rows(texts: list[str], layer: int) -> np.ndarray:
        return model.encode(texts, layers=layer, pooling="mean")

    for layer in (3, 1):
        steps = {
            "none": postprocess.Standardise().fit(np.zeros((2, 40)) + [[-1], [1]]),
            "standardise": postprocess.Standardise().fit(rows(sentences, layer)),
            "abtt": postprocess.AllButTheTop().fit(rows(sentences, layer)),
            "filter": postprocess.EmbedFilter(model.head()),
        }
        for post, step in steps.items():
            sides = (pairs.sentence1, pairs.sentence2)
            one, other = (step.transform(rows(side, layer)) for side in sides)
            expected = spearmanr(statistics.cosine(one, other), pairs.label).statistic
            row = next(r for r in study.rows if (r.post, r.layer) == (post, layer) and r.pooling)
            assert row.spearman == pytest.approx(expected, abs=1e-9)
            assert row.method == "up mean, world" + ("" if post == "none" else f", {post}")
    assert any("train split, without their labels" in note for note in study.notes)


def test_post_processing_without_train_sentences_is_refused(model: WordCounts, glove: Path) -> None:
    (glove.parent / "mine.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t0\n")
    mine = config(glove, tasks=(), pairs=(glove.parent / "mine.tsv",), posts=("abtt",))
    with pytest.raises(DataError, match="mine has no train split, which abtt would be fitted on"):
        experiment.run(mine)
    assert not model.calls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posts": ("bleach",)}, "no post-processing 'bleach'; choose of none, standardise"),
        ({"splits": ("test", "test")}, "splits: 'test' is named twice"),
        ({"models": ("a", "a")}, "models: 'a' is named twice"),
        ({"layers": (1, 1)}, "layers: 1 is named twice"),
        ({"recipe": ("worst",)}, "no recipe 'worst'; choose of paper"),
    ],
)
def test_what_is_named_twice_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        StudyConfig(**change)


def test_a_file_that_repeats_a_task_is_refused(model: WordCounts, glove: Path) -> None:
    (glove.parent / "all.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t0\n")
    (glove.parent / "x").mkdir()
    (glove.parent / "x" / "all.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t0\n")
    twice = (glove.parent / "all.tsv", glove.parent / "x" / "all.tsv")
    with pytest.raises(DataError, match="all all is there twice"):
        experiment.run(config(glove, tasks=(), pairs=twice))
    assert not model.calls
    with pytest.raises(DataError, match="nothing to score"):
        experiment.run(config(glove, tasks=()))


def test_labels_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    """No correlation is defined with them: the table would hold nan without a word."""
    own = tmp_path / "own.tsv"
    own.write_text("sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t1\n")
    with pytest.raises(DataError, match="own all: expected labels that differ, found 1 for all 2"):
        experiment.load_pairs(StudyConfig(tasks=(), pairs=(own,)))


def test_a_bad_model_is_told_before_anything_is_computed(
    model: WordCounts, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no model")

    monkeypatch.setattr(experiment.models, "open_model", refuse)
    monkeypatch.setattr(cost, "time_pairs", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match="no model"):
        experiment.run(config(glove))


def test_each_layer_has_its_own_time(
    model: WordCounts, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_pairs(embed: Any, *_: Any, **__: Any) -> cost.PairTime:
        model.calls.append({"layers": 0})
        embed(["w1", "w2"])
        return cost.PairTime(model.calls[-1]["layers"], 7.0)

    monkeypatch.setattr(cost, "time_pairs", time_pairs)
    table = experiment.run(config(glove, layers=(5, 3)))
    assert [row.ms_per_pair for row in table.rows[1:5]] == [0, 0, 5000, 3000]
    assert {row.ms_per_pair_mean for row in table.rows[1:5]} == {7000}


def test_a_sentence_of_many_pairs_is_encoded_once() -> None:
    model, pairs = WordCounts(), made_up_pairs(20)
    pairs = dataclasses.replace(pairs, sentence2=[pairs.sentence1[0]] * 20)
    reading = Reading(layers=(1,))
    passes.run(model, reading, [1], pairs, StudyConfig(timed_pairs=0), [])
    assert model.calls[-1]["texts"] == len(set(pairs.sentence1))


def test_published_figures_stand_only_beside_the_same_protocol(
    model: WordCounts, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(**change: Any) -> dict[tuple[str, Any, str], float]:
        rows = experiment.run(config(glove, resamples=20, timed_pairs=0, **change)).rows
        return {
            (row.tokenizer or row.method, row.layer, row.split): row.published_spearman
            for row in rows
            if row.published_spearman is not None
        }

    both = ("world", "gpt2")
    of_rwkv = {
        ("gpt2", 1, "train[:1000]"): 0.2879,
        ("gpt2", 3, "train[:1000]"): 0.2766,
        ("gpt2", 1, "validation"): 0.3498,
        ("gpt2", 3, "validation"): 0.3410,
    }
    assert found(tokenizers=both) == of_rwkv  # this GloVe file is not the paper's
    notes = " ".join(experiment.run(config(glove)).notes)
    assert "30 rows of 50 numbers" in notes and "do not stand beside them" in notes
    assert found(tokenizers=both, poolings=("last",)) == {}
    assert found(tokenizers=both, lead=True) == {}
    assert found(tokenizers=both, skip_first=(True,)) == {}
    assert found(tokenizers=both, max_length=64) == {}
    assert found(tokenizers=both, tasks=("stsb",)) == {}
    monkeypatch.setattr(published, "GLOVE_ROWS", 30)
    of_glove = {
        ("GloVe", None, "train[:1000]"): 0.3876,
        ("GloVe", None, "validation"): 0.4326,
    }
    assert found(tokenizers=both) == {**of_rwkv, **of_glove}
    model.config.n_layer = 12
    assert found(tokenizers=both) == of_glove


def test_published_table_is_the_papers() -> None:
    assert len(published.RWKV) == 12
    last = published.RWKV[11, "validation"]
    assert (last.spearman, last.s_per_pair, last.peak_mib) == (0.3073, 0.3288, 3078.44)
    seven = published.RWKV[7, "train[:1000]"]
    assert (seven.spearman, seven.s_per_pair, seven.peak_mib) == (0.2491, 0.3301, 3078.38)


def test_marks_of_other_models_are_told_below_the_table(model: WordCounts, glove: Path) -> None:
    study = experiment.run(config(glove, tasks=("stsb",), splits=("test",)))
    (marks,) = (note for note in study.notes if note.startswith("Published for other models"))
    assert "LLaMA2-7B, contrastive prompting 0.8229 (arXiv 2505.12831)" in marks
    assert "mamba-370m, best layer 0.4845 (OFSkean/information_flow, left-padded" in marks
    other = experiment.run(config(glove, tasks=("stsb",), splits=("validation",)))
    assert not any("other models" in note for note in other.notes)


def test_facts_tell_how_to_repeat_the_run(model: WordCounts, glove: Path) -> None:
    study = experiment.run(config(glove, tokenizers=("world", "gpt2"), norms=True))
    facts = study.facts
    assert {"cpu", "cores", "gpu", "os", "python", "scipy", "rwkvsts", "date"} <= set(facts)
    assert [m["tokenizer"] for m in facts["models"]] == ["world", "gpt2"]
    assert facts["models"][0]["revision"] == "abc123"
    assert facts["models"][0]["memory"]["peak"] == 3 << 20
    place = f"{glove.parent.name}/{glove.name}"  # and not where the user's home is
    share = facts["word_vectors"]["share"]
    assert 0 < share <= 1 and any(f"know {share:.1%} of the texts' words" in n for n in study.notes)
    assert facts["word_vectors"] == {"source": place, "rows": 30, "dims": 50, "share": share}
    assert facts["numpy"] == np.__version__
    (run,) = study.runs
    assert run["config"]["glove"] == place and run["config"]["layers"] == [1, 3]


def test_norms_are_those_of_a_texts_first_tokens(model: WordCounts, glove: Path) -> None:
    """The first is what the model reads first: a token before the text, where it has one."""
    study = experiment.run(config(glove, norms=True, skip_first=(True,), lead=True))
    (found,) = study.norms
    assert found["positions"] == [1, 2, 3, 4, 6, 8, 12]  # no passage has 16
    lengths = [100, *(position - 1 for position in found["positions"][1:])]
    assert found["norms"] == [[length, length + 1] for length in lengths]
    assert not experiment.run(config(glove)).norms


def test_norms_are_a_mean_over_the_texts_that_are_so_long(model: WordCounts) -> None:
    found = passes.norms(model, [1, 3], ["w1 w2", "w1"])
    np.testing.assert_array_equal(found[:3], [[100, 101], [1, 2], [2, 3]])
    assert np.isnan(found[3:]).all()


def test_a_state_and_joined_layers_are_rows(model: WordCounts, glove: Path) -> None:
    """Each against its vectors, made a text at a time."""
    posts = ("none", "average", "concatenate")
    asked = config(glove, splits=("validation",), poolings=("mean", "state"), posts=posts)
    rows = {(r.method, r.layer): r for r in experiment.run(asked).rows if r.pooling}
    pairs = made_up_pairs()
    expected = {}
    for name in ("up mean, world", "up state, world"):

        def vectors(text: str, name: str = name) -> np.ndarray:
            if "state" in name:
                return model.encode_states([text], [1, 3])[0].astype(float)
            return model.encode([text], [1, 3], pooling="mean")[0].astype(float)

        scores = []
        for sides in zip(pairs.sentence1, pairs.sentence2, strict=True):
            one, other = ([row / np.linalg.norm(row) for row in vectors(text)] for text in sides)
            each = [a @ b for a, b in zip(one, other, strict=True)]
            x, y = one[0] + one[1], other[0] + other[1]
            average = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            scores.append([*each, average, np.mean(each)])
        columns = np.round(np.transpose(scores), 6)
        found = [spearmanr(column, pairs.label).statistic for column in columns]
        cells = [("", 1), ("", 3), (", average", "1+3"), (", concatenate", "1+3")]
        expected |= {(name + post, x): rho for (post, x), rho in zip(cells, found, strict=True)}
    assert list(rows) == list(expected)
    for row, rho in expected.items():
        assert rows[row].spearman == pytest.approx(rho, abs=2e-3), row
        assert rows[row].ms_per_pair > 0


@pytest.mark.parametrize("has_branch", [True, False])
def test_endings_are_averaged_with_their_signs(has_branch: bool, monkeypatch: Any) -> None:
    """From the text's state, for an RWKV; by reading it anew, for a model that has none."""
    model = rwkvsts.load("demo", device="cpu", dtype="float32")
    texts = [f"Text {i} of some." for i in range(5)]
    how: dict[str, Any] = {"layers": [0, 3], "pooling": "last"}
    one, other, third = (
        model.encode(texts, prompt=f"Say: {{text}}{end}", **how)
        for end in (" in short:", " at length:", " again:")
    )
    if not has_branch:
        encode, width = model.encode, model.width
        model = types.SimpleNamespace(encode=encode, width=width)  # type: ignore[assignment]
    prompt = "Say: {text}| in short:|- at length:| again:"
    (reading,) = settings.readings(StudyConfig(poolings=("mean",), prompts=(prompt,)))
    assert reading.pooling == "last"
    monkeypatch.setattr(passes, "CHUNK_BYTES", 4 * 3 * 2 * model.width * 2)  # two texts at a time
    encode = passes.encoder(model, reading, StudyConfig())
    np.testing.assert_array_equal(encode(texts, [0, 3]), (one - other + third) / np.float32(3))
    np.testing.assert_array_equal(encode(texts, 3), (one - other + third)[:, 1] / np.float32(3))


def test_endings_need_words_and_their_text_before_them() -> None:
    assert settings.endings("in short: {text}") is None and settings.endings(None) is None
    assert settings.endings("Say: | now:") == ("Say: {text}", [(1, " now:")])
    for prompt in ("{text}|", "{text}| a||b", "{text}|-", "say| {text}"):
        with pytest.raises(DataError, match=r"expected \{text\} before the first bar and words"):
            StudyConfig(prompts=(prompt,))


def test_joined_layers_have_one_name() -> None:
    reading = Reading(posts=("none", "average"))
    assert passes.cells(reading, [1, 2]) == [("none", 1), ("none", 2), ("average", "1+2")]
    names = {
        "0-2": [0, 1, 2],
        "0-final": [0, 1, 2, "final"],
        "0+2+final": [0, 2, "final"],
        "2+1+0": [2, 1, 0],
        "final": ["final"],
    }
    for name, layers in names.items():
        assert passes.cells(reading, layers)[-1] == ("average", name)


def test_baselines_of_word_vectors_learn_from_train_sentences(
    model: WordCounts, glove: Path
) -> None:
    asked = config(glove, splits=("validation",), baselines=("sif",), layers=(1,))
    rows = experiment.run(asked).rows
    assert [row.method for row in rows[:4]][-1] == "GloVe, SIF" and not rows[3].pooling
    train, pairs = made_up_pairs(split="train"), made_up_pairs()
    texts = train.sentence1 + train.sentence2
    vectors = baselines.load_vectors(glove, texts + pairs.sentence1 + pairs.sentence2)
    sif = Words(vectors, "sif").fit(list(dict.fromkeys(texts)))
    score = statistics.cosine(sif.encode(pairs.sentence1), sif.encode(pairs.sentence2))
    assert rows[3].spearman == pytest.approx(spearmanr(score, pairs.label).statistic, abs=1e-12)
    with pytest.raises(DataError, match="no baseline 'tfidf'; choose of sif, usif"):
        config(glove, baselines=("tfidf",))


def test_default_splits() -> None:
    assert {
        task: experiment.splits_of(StudyConfig(), task) for task in ("mrpc", "stsb", "demo")
    } == {"mrpc": ("train[:1000]", "validation"), "stsb": ("validation", "test"), "demo": ()}
    # The hub's copy of the 2014 edition is one split; a local folder has the test split.
    assert experiment.splits_of(StudyConfig(), "sick-2014") == ("all",)
    assert experiment.splits_of(StudyConfig(data="d"), "sick-2014") == ("validation", "test")


def test_models_go_by_what_tells_them_apart() -> None:
    names = experiment.model_names
    assert names(("demo", "RWKV/v6-Finch-1B6-HF")) == ["demo", "v6-Finch-1B6-HF"]
    assert names(("/a/one/model.pth", "/a/two/model.pth")) == ["one/model.pth", "two/model.pth"]
    assert names(("org/m@v1", "other/n")) == ["m", "n"]
    assert names(("org/m@v1", "org/m@refs/pr/1", "org/m")) == ["m@v1", "m@refs/pr/1", "m"]
    assert names(("a/m@v1", "b/m@v1")) == ["a/m", "b/m"]
    assert names((".",)) == [Path.cwd().name]


def test_graded_labels_have_no_auc(
    model: WordCounts, glove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graded = dataclasses.replace(made_up_pairs(name="stsb"), label=np.arange(60.0) % 6)
    monkeypatch.setattr(datasets, "load", lambda *_, **__: graded)
    study = experiment.run(config(glove, tasks=("stsb",), splits=("test",)))
    assert all(np.isnan(row.auc) for row in study.rows)
    assert not any("binary" in note for note in study.notes)


def test_real_mrpc_controls_reach_the_table(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.models, "open_model", lambda *_: WordCounts())
    monkeypatch.setattr(experiment.models, "kind_of", lambda *_: "rwkv")
    vectors = shared / "glove" / "glove.6B.50d.part.txt"
    study = experiment.run(config(vectors, data=shared, resamples=20))
    figures = {(r.split, r.method): round(r.spearman, 4) for r in study.rows if r.layer is None}
    assert figures["train[:1000]", "word overlap"] == 0.4031
    assert figures["validation", "word overlap"] == 0.4165
    assert figures["train[:1000]", "GloVe"] == 0.3564
    assert figures["validation", "GloVe"] == 0.4189
    overlap = next(r for r in study.rows if r.split == "validation" and not r.pooling)
    assert overlap.ceiling == pytest.approx(0.805, abs=5e-4)
    # Without ties it would be ceiling (2 AUC - 1).
    assert overlap.auc == pytest.approx(0.5 + overlap.spearman / (2 * overlap.ceiling), abs=0.02)
    assert any("14,139 rows" in note for note in study.notes)
