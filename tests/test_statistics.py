"""Scores against SciPy and brute force; intervals against resamples that are drawn out in full."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from rwkvsts.study import statistics


def tied(rng: np.random.Generator, n: int, levels: int) -> np.ndarray:
    return rng.integers(0, levels, n).astype(np.float64)


def test_cosine_by_hand_and_in_float64() -> None:
    a = np.array([[3, 4], [1, 0], [0, 0], [1e30, 1e30]], np.float32)
    b = np.array([[4, 3], [-2, 0], [1, 1], [1e30, 0]], np.float32)
    # 1e30 squared overflows float32.
    np.testing.assert_allclose(statistics.cosine(a, b), [0.96, -1, 0, 0.5**0.5], rtol=0, atol=1e-12)


def test_equal_cosines_tie() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(500, 64)).astype(np.float32)
    assert np.array_equal(statistics.cosine(a, 3 * a), np.ones(500))


def test_cosine_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match="row 1 is not finite"):
        statistics.cosine([[1, 2], [np.nan, 1]], [[1, 2], [1, 1]])
    with pytest.raises(ValueError, match="one shape"):
        statistics.cosine(np.ones((3, 2)), np.ones((2, 2)))


@pytest.mark.parametrize(("levels", "labels"), [(10_000, 2), (5, 2), (7, 6)])
def test_interval_is_that_of_resamples_drawn_out(levels: int, labels: int) -> None:
    rng = np.random.default_rng(levels)
    n, seed = 60, 3
    label = tied(rng, n, labels)
    score = tied(rng, n, levels) + label
    found = statistics.spearman(score, label, resamples=200, seed=seed)
    assert found.value == pytest.approx(spearmanr(score, label).statistic, abs=1e-14)
    draws = np.random.default_rng(seed).integers(0, n, (200, n))
    rhos = [spearmanr(score[d], label[d]).statistic for d in draws]
    low, high = np.quantile(rhos, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.low < found.value < found.high


def test_interval_does_not_depend_on_how_resamples_are_grouped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    score, label = rng.normal(size=3000), tied(rng, 3000, 2)
    assert sum(len(c) for c in statistics._resamples(3000, 700, 0)) == 700
    counts = np.concatenate(list(statistics._resamples(3000, 700, 0)))
    assert (counts.sum(axis=1) == 3000).all()
    whole = statistics._rank_correlation(score, label, counts)
    low, high = np.quantile(whole, (0.025, 0.975))
    found = statistics.spearman(score, label, resamples=700)
    assert (found.low, found.high) == (low, high)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 trials at 95 %: binomial, so 5 standard deviations are 7.7 points below."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(200, 120))
    y = 0.5 * x + rng.normal(size=x.shape) * 0.75**0.5
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman's rho of a bivariate normal, r = 0.5
    intervals = [statistics.spearman(a, b, resamples=300) for a, b in zip(x, y, strict=True)]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.873 <= covered <= 1.0


def test_paired_difference_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(2)
    label = rng.normal(size=400)
    one = label + rng.normal(size=400)
    other = one + 0.1 * rng.normal(size=400)
    found = statistics.spearman_difference(one, other, label, seed=4)
    rho = [spearmanr(s, label).statistic for s in (one, other)]
    assert found.value == pytest.approx(rho[0] - rho[1], abs=1e-14)
    draws = np.random.default_rng(4).integers(0, 400, (1000, 400))[:300]
    subset = [
        spearmanr(one[d], label[d]).statistic - spearmanr(other[d], label[d]).statistic
        for d in draws
    ]
    few = statistics.spearman_difference(one, other, label, resamples=300, seed=4)
    assert (few.low, few.high) == pytest.approx(np.quantile(subset, (0.025, 0.975)), abs=1e-12)
    alone = statistics.spearman(one, label)
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    nothing = statistics.spearman_difference(one, one, label)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_order_of_pairs_matters_only_together() -> None:
    rng = np.random.default_rng(8)
    score, label = rng.normal(size=50), tied(rng, 50, 2)
    turn = rng.permutation(50)
    assert statistics.spearman(score[turn], label[turn]).value == pytest.approx(
        statistics.spearman(score, label).value, abs=1e-14
    )
    assert statistics.spearman(score[turn], label).value != statistics.spearman(score, label).value


def test_constant_scores_have_no_correlation() -> None:
    found = statistics.spearman(np.ones(9), np.arange(9.0))
    assert np.isnan([found.value, found.low, found.high]).all()


def test_lengths_and_finiteness_are_checked() -> None:
    with pytest.raises(ValueError, match="two arrays"):
        statistics.spearman([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        statistics.spearman([1, np.nan], [1, 2])


def test_auc_counts_pairs_won() -> None:
    rng = np.random.default_rng(9)
    score, label = tied(rng, 80, 6), tied(rng, 80, 2)
    won = [(p > q) + 0.5 * (p == q) for p in score[label == 1] for q in score[label == 0]]
    assert statistics.auc(score, label) == pytest.approx(np.mean(won), abs=1e-14)
    assert np.isnan(statistics.auc(score, np.ones(80)))
    assert np.isnan(statistics.auc(score, tied(rng, 80, 3)))


def test_untied_scores_relate_rho_and_auc() -> None:
    """On 279 of 408 positives rho = 0.805 (2 AUC - 1): the ceiling of a binary label."""
    label = np.repeat([1.0, 0.0], [279, 129])
    score = np.random.default_rng(0).normal(size=408) + label
    ceiling = statistics.spearman(np.arange(408.0)[::-1], label).value
    assert ceiling == pytest.approx(0.805, abs=5e-4)
    rho = statistics.spearman(score, label).value
    assert rho == pytest.approx(ceiling * (2 * statistics.auc(score, label) - 1), abs=1e-12)
