"""Scores against SciPy and brute force; intervals against resamples that are drawn out in full."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, spearmanr

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


def test_interval_does_not_depend_on_how_resamples_are_grouped() -> None:
    rng = np.random.default_rng(5)
    score, label = rng.normal(size=3000), tied(rng, 3000, 2)
    parts = list(statistics._resamples(3000, 700, 0))
    assert len(parts) > 1 and [first for first, _ in parts[:2]] == [0, parts[0][1].shape[1]]
    assert all((counts.sum(axis=0) == 3000).all() for _, counts in parts)
    draws = np.random.default_rng(0).integers(0, 3000, (700, 3000))
    rhos = [spearmanr(score[d], label[d]).statistic for d in draws]
    (found,) = statistics.estimates([score], label, resamples=700)
    np.testing.assert_allclose(found.draws, rhos, rtol=0, atol=1e-12)


def test_interval_agrees_with_scipys_bootstrap() -> None:
    """Other draws of the same distribution: 4000 leave the ends of the interval within 0.01."""
    rng = np.random.default_rng(6)
    label = tied(rng, 150, 5)
    score = label + 2 * rng.normal(size=150)
    theirs = bootstrap(
        (score, label),
        lambda x, y: spearmanr(x, y).statistic,
        n_resamples=4000,
        vectorized=False,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    ours = statistics.spearman(score, label, resamples=4000)
    expected = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    (estimate,) = statistics.estimates([score], label, resamples=4000)
    assert estimate.draws.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.05)


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


def test_auc_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(10)
    score, label = tied(rng, 200, 9), tied(rng, 200, 2)
    theirs = metrics.roc_auc_score(label, score)
    assert statistics.auc(score, label) == pytest.approx(theirs, abs=1e-14)


def test_many_methods_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(12)
    label = tied(rng, 90, 4)
    scores = [rng.normal(size=90), tied(rng, 90, 3), np.ones(90)]
    together = statistics.estimates(scores, label, resamples=60, seed=9)
    for score, found in zip(scores, together, strict=True):
        alone = statistics.spearman(score, label, resamples=60, seed=9)
        assert repr(found.interval()) == repr(alone)  # NaN and all
    lead = together[0].minus(together[1])
    expected = statistics.spearman_difference(scores[0], scores[1], label, resamples=60, seed=9)
    assert lead == expected
    assert np.isnan(together[0].minus(together[2]).p)


def test_p_of_a_difference_is_level_under_the_null_and_small_for_a_real_one() -> None:
    """Two methods of equal worth: 5 % of 400 trials at 0.05, three standard deviations wide."""
    rng = np.random.default_rng(13)
    truth = rng.normal(size=(400, 100))
    one, other = (truth + rng.normal(size=truth.shape) for _ in range(2))
    label = truth + 0.5 * rng.normal(size=truth.shape)
    p = [
        statistics.spearman_difference(a, b, y, resamples=200).p
        for a, b, y in zip(one, other, label, strict=True)
    ]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09
    better = statistics.spearman_difference(label[0], one[0], label[0])
    assert better.p < 1e-6 and better.value > 0


def test_a_difference_is_that_of_resamples_drawn_out() -> None:
    """Value, interval and p, from both correlations on the same pairs in every resample."""
    rng = np.random.default_rng(4)
    n, seed = 50, 7
    label = tied(rng, n, 4)
    one, other = tied(rng, n, 5) + label, rng.normal(size=n)
    found = statistics.spearman_difference(one, other, label, resamples=150, seed=seed)
    lead = [
        spearmanr(one[d], label[d]).statistic - spearmanr(other[d], label[d]).statistic
        for d in [np.arange(n), *np.random.default_rng(seed).integers(0, n, (150, n))]
    ]
    value, draws = lead[0], np.array(lead[1:])
    p = 2 * norm.sf(abs(value) / draws.std(ddof=1))
    expected = (value, *np.quantile(draws, (0.025, 0.975)), p)
    assert (found.value, found.low, found.high, found.p) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; never below the one before it.
    found = statistics.holm([0.01, 0.04, 0.03, 0.005])
    assert found.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]).tolist() == [1, 1]
    with_hole = statistics.holm([0.01, np.nan, 0.03])
    assert with_hole[[0, 2]].tolist() == pytest.approx([0.02, 0.03]) and np.isnan(with_hole[1])
    assert len(statistics.holm([])) == 0


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
    ceiling = statistics.ceiling(np.random.default_rng(1).permutation(label))
    assert ceiling == pytest.approx(spearmanr(np.arange(408.0)[::-1], label).statistic, abs=1e-14)
    assert ceiling == pytest.approx(0.805, abs=5e-4)
    rho = statistics.spearman(score, label).value
    assert rho == pytest.approx(ceiling * (2 * statistics.auc(score, label) - 1), abs=1e-12)
