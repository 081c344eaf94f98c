"""The table: who is best, chosen where, beating whom; what is within noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rwkvsts.study import notes, statistics, table
from rwkvsts.study.methods import Method, PairSet, Scored
from rwkvsts.study.settings import PROMPTS

N = 300


def scored(split: str, quality: dict[Method, float], task: str = "stsb") -> list[Scored]:
    """Scores that follow the labels the closer the higher their quality."""
    rng = np.random.default_rng([len(split), len(task)])
    label = rng.uniform(0, 5, N)
    pairs = PairSet(task, split, label, f"digest of {task} {split}")
    return [
        Scored(method, pairs, q * label + rng.normal(size=N)) for method, q in quality.items()
    ]


def layer(number: int, model: str = "one", **other: object) -> Method:
    return Method(model, "world", "mean", layer=number, **other)  # type: ignore[arg-type]


def by_method(rows: list[table.Row], split: str) -> dict[tuple[str, object], table.Row]:
    return {(row.method, row.layer): row for row in rows if row.split == split}


def test_a_setting_is_chosen_on_the_earlier_split_and_reported_on_the_later() -> None:
    # On validation layer 3 is best; on test layer 5 would be.
    validation = scored("validation", {table.OVERLAP: 0.2, layer(3): 1.0, layer(5): 0.4})
    test = scored("test", {table.OVERLAP: 0.2, layer(3): 0.5, layer(5): 1.2})
    built = table.build([*validation, *test], resamples=200)
    (note,) = (n for n in notes.of(built, [], 200, 0) if n.startswith("stsb test:"))
    assert "'*' marks the row of each reading that scored best on validation" in note
    rows = by_method(built, "test")
    chosen, better = rows["one mean, world", 3], rows["one mean, world", 5]
    assert better.spearman > chosen.spearman
    assert (chosen.best, chosen.chosen_on, better.best) == ("system", "validation", "")
    assert better.behind > 0 and better.p_behind < 0.05
    earlier = by_method(built, "validation")
    assert earlier["one mean, world", 3].chosen_on == ""
    # Without the earlier split these pairs choose, and say so.
    alone = by_method(table.build(test, resamples=200), "test")
    assert (alone["one mean, world", 5].best, alone["one mean, world", 5].chosen_on) == (
        "system",
        "",
    )


@pytest.mark.parametrize(
    ("split", "present", "expected"),
    [
        ("test", ["train", "validation"], "validation"),
        ("test", ["train[:1000]"], "train[:1000]"),
        ("validation", ["train[:1000]", "test"], "train[:1000]"),
        ("train[1000:]", ["train[:1000]"], ""),
        ("all", ["train", "validation"], ""),
    ],
)
def test_which_split_chooses(split: str, present: list[str], expected: str) -> None:
    quality = {layer(1): 0.5, layer(2): 0.4}
    every = [s for name in [*present, split] for s in scored(name, quality)]
    rows = [row for row in table.build(every, resamples=20) if row.split == split]
    assert {row.chosen_on for row in rows if row.best} == {expected}


def test_another_task_does_not_choose() -> None:
    every = [*scored("validation", {layer(1): 1}, "sick"), *scored("test", {layer(1): 1})]
    assert {row.chosen_on for row in table.build(every, resamples=20)} == {""}


def test_best_rows_are_compared_pair_by_pair() -> None:
    quality = {
        table.OVERLAP: 0.05,
        layer(1): 1.0,
        layer(2): 0.3,
        layer(1, "twin"): 1.0,
        layer(1, "weak"): 0.3,
    }
    rows = by_method(table.build(scored("test", quality), resamples=400), "test")
    one, twin = rows["one mean, world", 1], rows["twin mean, world", 1]
    weak, overlap = rows["weak mean, world", 1], rows["word overlap", None]
    assert [r.letter for r in (overlap, one, twin, weak)] == ["a", "b", "c", "d"]
    assert (one.beats, one.within_noise) == ("ad", "c")
    assert (twin.beats, twin.within_noise) == ("ad", "b")
    assert (weak.beats, overlap.beats) == ("a", "")
    other = rows["one mean, world", 2]
    assert other.letter == "" and other.behind < 0 and other.p_behind < 0.05
    assert not table.ties_with_best(other)


def test_layers_are_tested_as_one_of_many() -> None:
    """Every P of a model's other rows is Holm's, over just those rows."""
    found = scored("test", {layer(i): 0.5 + 0.02 * i for i in range(6)} | {layer(0, "two"): 1})
    rows = [row for row in table.build(found, resamples=300, seed=4) if row.model == "one"]
    label = found[0].pairs.label
    best = next(i for i, row in enumerate(rows) if row.best == "system")
    raw = [
        statistics.spearman_difference(s.scores, found[best].scores, label, 300, 4).p
        for i, s in enumerate(found[:6])
        if i != best
    ]
    adjusted = [row.p_behind for row in rows if row.best != "system"]
    assert adjusted == pytest.approx(statistics.holm(raw).tolist(), abs=1e-12)


def test_a_reading_has_a_best_layer_of_its_own() -> None:
    echo = {"prompt": PROMPTS["echo"]}
    quality = {layer(1): 1.0, layer(2): 0.5, layer(1, **echo): 0.1, layer(2, **echo): 0.3}
    rows = by_method(table.build(scored("test", quality), resamples=50), "test")
    assert rows["one mean, world", 1].best == "system"
    assert rows["one mean, world, prompt echo", 2].best == "reading"
    assert rows["one mean, world, prompt echo", 1].best == ""


def test_a_row_without_a_correlation_is_never_best() -> None:
    found = scored("test", {layer(1): 1.0, layer(2): 0.2})
    found[0] = dataclasses.replace(found[0], scores=np.ones(N))
    rows = table.build(found, resamples=50)
    assert [row.best for row in rows] == ["", "system"]
    assert np.isnan(rows[0].spearman) and np.isnan(rows[0].p_behind)


def test_binary_labels_have_auc_and_a_ceiling() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([1.0, 0.0], [279, 129])
    pairs = PairSet("mrpc", "validation", label, "d")
    score = rng.normal(size=408) + label
    (row,) = table.build([Scored(layer(1), pairs, score)], resamples=20)
    assert row.ceiling == pytest.approx(0.805, abs=5e-4)
    assert row.spearman == pytest.approx(row.ceiling * (2 * row.auc - 1), abs=1e-12)
    graded = table.build(scored("test", {layer(1): 1}), resamples=20)[0]
    assert np.isnan(graded.auc) and graded.ceiling == pytest.approx(1)
