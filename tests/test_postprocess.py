"""Post-processing against scikit-learn, where it has the same, and NumPy written out."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from makecheckpoint import bf16, write_safetensors
from tinymodel import random_weights

import rwkvsts
from rwkvsts import CheckpointError
from rwkvsts.study.postprocess import (
    AllButTheTop,
    AverageLayers,
    ConcatenateLayers,
    EmbedFilter,
    PostProcess,
    Standardise,
    Whitening,
)


@pytest.fixture
def rows() -> np.ndarray:
    """40 rows of width 6 whose columns hang together."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)


@pytest.fixture
def others() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 6))


LEARNING = (Standardise(), AllButTheTop(2), Whitening(), Whitening(3))


def test_standardise_is_scikit_learns(rows: np.ndarray, others: np.ndarray) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="compares with it")
    rows[:, 2] = 0.1  # without spread, but for rounding
    right = preprocessing.StandardScaler().fit(rows)
    np.testing.assert_allclose(
        Standardise().fit(rows).transform(others), right.transform(others), rtol=1e-10
    )


@pytest.mark.parametrize("width", [None, 1, 4])
def test_whitening_is_scikit_learns(
    rows: np.ndarray, others: np.ndarray, width: int | None
) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="compares with it")
    right = decomposition.PCA(width, whiten=True, svd_solver="full").fit(rows).transform(others)
    found = Whitening(width).fit(rows).transform(others)
    np.testing.assert_allclose(np.abs(found), np.abs(right), rtol=1e-9)  # a direction has no sign
    np.testing.assert_allclose(found @ found.T, right @ right.T, rtol=1e-9)
    covariance = np.cov(Whitening(width).fit_transform(rows), rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(width or 6).squeeze(), atol=1e-9)


def test_whitening_keeps_what_the_rows_span(rows: np.ndarray) -> None:
    assert Whitening().fit_transform(rows[:4]).shape == (4, 3)
    with pytest.raises(ValueError, match=r"width=4: expected 1 \.\. 3, the directions that 4 rows"):
        Whitening(4).fit(rows[:4])


def test_all_but_the_top_by_hand(rows: np.ndarray, others: np.ndarray) -> None:
    found = AllButTheTop(2).fit(rows).transform(others)
    _, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
    top = vectors[:, -2:]
    centred = others - rows.mean(0)
    np.testing.assert_allclose(found, centred - centred @ top @ top.T, atol=1e-10)
    np.testing.assert_allclose(found @ top, 0, atol=1e-10)
    assert AllButTheTop().fit(rows).directions_.shape == (1, 6)  # C // 100, at least one
    assert np.allclose(AllButTheTop(0).fit(rows).transform(others), centred)


def test_the_filter_by_the_svd_of_the_head(others: np.ndarray) -> None:
    head = np.random.default_rng(2).normal(size=(50, 6)) * [9, 1, 5, 2, 7, 3]
    _, _, right = np.linalg.svd(head)
    for keep, first, last in [(None, 1, 4), (2, 2, 4), (4, 1, 5), (6, 0, 6)]:
        found = EmbedFilter(head, keep).fit(others).transform(others)
        kept = right[first:last]
        np.testing.assert_allclose(np.abs(found), np.abs(others @ kept.T), atol=1e-9)
    with pytest.raises(ValueError, match=r"keep=7: expected 1 \.\. 6"):
        EmbedFilter(head, 7)
    with pytest.raises(ValueError, match=r"rows of width 5: the head's is 6"):
        EmbedFilter(head).transform(others[:, :5])
    with pytest.raises(ValueError, match=r"head has shape \(6,\)"):
        EmbedFilter(head[0])


@pytest.mark.parametrize("step", LEARNING, ids=lambda s: type(s).__name__)
def test_each_layer_for_itself(step: PostProcess, rows: np.ndarray) -> None:
    other = rows[::-1] ** 2
    both = np.stack([rows, other], axis=1)
    found = copy.copy(step).fit_transform(both)
    for layer, alone in enumerate((rows, other)):
        np.testing.assert_allclose(found[:, layer], copy.copy(step).fit_transform(alone), atol=1e-9)


def test_layers_together() -> None:
    x = np.array([[[3.0, 4.0], [0.0, 200.0]], [[1.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(
        ConcatenateLayers().fit_transform(x), [[0.6, 0.8, 0, 1], [1, 0, 0, 0]]
    )
    np.testing.assert_allclose(AverageLayers().transform(x), [[0.3, 0.9], [0.5, 0]])
    for step in (AverageLayers(), ConcatenateLayers()):
        with pytest.raises(ValueError, match=r"expected several layers, \[n, L, C\]"):
            step.transform(x[:, 0])


def test_the_dtype_that_came_in_comes_out(rows: np.ndarray) -> None:
    assert Standardise().fit(rows).transform(rows.astype(np.float32)).dtype == np.float32
    assert Standardise().fit([[1, 2], [3, 5]]).transform([[1, 2]]).dtype == np.float64


@pytest.mark.parametrize("step", LEARNING, ids=lambda s: type(s).__name__)
def test_refusals(step: PostProcess, rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"is not fitted: call fit on train sentences first"):
        type(step)().transform(rows)
    with pytest.raises(ValueError, match=r"rows of shape \(6,\): expected \[n, C\]"):
        step.fit(rows[0])
    with pytest.raises(ValueError, match=r"row 3 is not finite"):
        step.fit(np.where(np.arange(40)[:, None] == 3, np.nan, rows))
    with pytest.raises(ValueError, match=r"rows of shape \(5,\): fitted on \(6,\)"):
        copy.copy(step).fit(rows).transform(rows[:, :5])


def test_a_step_must_say_what_it_does() -> None:
    with pytest.raises(TypeError, match="_apply"):
        PostProcess()


def test_directions_need_two_rows(rows: np.ndarray) -> None:
    for step in (AllButTheTop(1), Whitening()):
        with pytest.raises(ValueError, match=r"a single row has no directions"):
            step.fit(rows[:1])
    with pytest.raises(ValueError, match=r"components=9: expected 0 \.\. 6"):
        AllButTheTop(9).fit(rows)


def test_the_head_of_a_model(tmp_path: Path) -> None:
    weights = random_weights(3, L=1)
    head = weights["head.weight"]
    write_safetensors(tmp_path / "a.safetensors", weights)
    model = rwkvsts.load(tmp_path / "a.safetensors", device="cpu", tokenizer=None)
    assert np.array_equal(model.head(), head)
    rows = model.encode_ids([[1, 2, 3], [4, 5]], "final")
    found = EmbedFilter(model.head()).transform(rows)
    np.testing.assert_allclose(found, EmbedFilter(head).transform(rows))
    assert found.shape == (2, 32) and found.dtype == np.float32
    write_safetensors(tmp_path / "b.safetensors", {n: bf16(a) for n, a in weights.items()})
    rounded = rwkvsts.load(tmp_path / "b.safetensors", device="cpu", tokenizer=None).head()
    assert rounded.dtype == np.float32 and np.allclose(rounded, head, rtol=1 / 128)
    del weights["head.weight"]
    write_safetensors(tmp_path / "c.safetensors", weights)
    without = rwkvsts.load(tmp_path / "c.safetensors", device="cpu", tokenizer=None)
    with pytest.raises(CheckpointError, match=r"expected a tensor head\.weight, .* found none"):
        without.head()
