"""How good a method is and what differs: Spearman, AUC, intervals, paired differences, Holm.

Assumes scores and labels of the same pairs in the same order. Promises that every interval is a
percentile bootstrap over pairs from a seed; that ranks are taken anew in every resample, ties
averaged; and that any two methods on the same pairs are compared on the same resamples, so that
what the pairs have in common cancels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference; `p` tests, two-sided, that it is 0."""

    p: float


@dataclass(frozen=True)
class Estimate:
    """Spearman's correlation of one method, with its value in every resample.

    `draws` is float64 [resamples]. Estimates on the same pairs, with the same seed, have the same
    resamples and may be subtracted draw by draw.
    """

    value: float
    draws: Scores

    def interval(self) -> Interval:
        """The estimate with its percentile interval."""
        return Interval(self.value, *_percentiles(self.draws))

    def minus(self, other: Estimate) -> Difference:
        """How far this method leads the other on the same pairs.

        `p` is that of a normal distribution with the bootstrap's standard error. Counting draws on
        the far side of 0 could not go below 1 / resamples, too coarse where many are compared.
        """
        from scipy.stats import norm

        value = self.value - other.value
        draws = self.draws - other.draws
        draws = draws[~np.isnan(draws)]
        error = draws.std(ddof=1) if len(draws) > 1 else np.nan
        steps = abs(value) / error if error > 0 else math.inf * abs(value)
        p = 1.0 if value == 0 else float(2 * norm.sf(steps))
        return Difference(value, *_percentiles(draws), p)


def cosine(a: ArrayLike, b: ArrayLike) -> Scores:
    """Cosine of each row of `a` with the same row of `b`, both [S, C]: float64 [S].

    Computed in float64 and rounded to 12 decimals, far above the rounding errors: cosines that are
    equal in exact arithmetic, as of texts with the same words, stay equal, so ranks tie where they
    should. A zero vector (a text without a known word) has cosine 0 with everything.
    """
    a64, b64 = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a64.shape != b64.shape or a64.ndim != 2:
        raise ValueError(f"expected two arrays of one shape [S, C], got {a64.shape}, {b64.shape}")
    norm = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    if not np.isfinite(norm).all():
        row = int(np.flatnonzero(~np.isfinite(norm))[0])
        raise ValueError(f"row {row} is not finite: the embeddings hold NaN or infinity")
    dot = np.einsum("sc,sc->s", a64, b64)
    ratio: Scores = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0).round(12)
    return ratio


def spearman(score: ArrayLike, label: ArrayLike, resamples: int = 1000, seed: int = 0) -> Interval:
    """Spearman's rank correlation of two [n] arrays, with its interval over pairs."""
    (one,) = estimates([score], label, resamples, seed)
    return one.interval()


def spearman_difference(
    score: ArrayLike, other: ArrayLike, label: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Difference:
    """Spearman of `score` less that of `other`, both [n] on the same pairs."""
    one, second = estimates([score, other], label, resamples, seed)
    return one.minus(second)


def estimates(
    scores: Sequence[ArrayLike], label: ArrayLike, resamples: int = 1000, seed: int = 0
) -> list[Estimate]:
    """Spearman of each row of `scores` [methods, n] with `label` [n], on common resamples.

    >>> one, other = estimates([[1, 2, 3, 4], [1, 3, 2, 4]], [0, 1, 2, 3], resamples=10)
    >>> one.value, round(other.value, 3)
    (1.0, 0.8)
    """
    y = np.asarray(label, np.float64)
    rows = [_same_length(x, y)[0] for x in scores]
    draws = np.empty((len(rows), resamples))
    ranked, ranked_label = [_Ranks(x) for x in rows], _Ranks(y)
    for first, counts in _resamples(len(y), resamples, seed):
        dy = ranked_label.within(counts)
        weighted = counts * dy
        spread = np.einsum("nr,nr->r", weighted, dy)
        for row, ranks in zip(draws, ranked, strict=True):
            dx = ranks.within(counts)
            covariance = np.einsum("nr,nr->r", dx, weighted)
            both = np.einsum("nr,nr->r", dx * counts, dx) * spread
            part = row[first : first + counts.shape[1]]
            part[:] = np.nan  # stays where one side is constant in the resample
            np.divide(covariance, np.sqrt(both), out=part, where=both > 0)
    return [Estimate(_spearman(x, y), row) for x, row in zip(rows, draws, strict=True)]


def holm(p: ArrayLike) -> Scores:
    """P values [n] adjusted for being one of n comparisons (Holm's step-down method).

    NaN, a comparison that is not defined, stays NaN and does not count.

    >>> holm([0.01, 0.04, 0.03]).round(12).tolist()
    [0.03, 0.06, 0.06]
    """
    raw = np.asarray(p, np.float64)
    adjusted = np.full_like(raw, np.nan)
    defined = np.flatnonzero(~np.isnan(raw))
    order = defined[np.argsort(raw[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(factors * raw[order]).clip(max=1.0)
    return adjusted


def auc(score: ArrayLike, label: ArrayLike) -> float:
    """Chance that a pair of label 1 scores above one of label 0, a tie counting half.

    NaN unless both labels occur and no other.
    """
    from scipy.stats import mannwhitneyu

    x, y = _same_length(score, label)
    if not np.array_equal(np.unique(y), (0.0, 1.0)):
        return float("nan")
    positive, negative = x[y == 1], x[y == 0]
    statistic = mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(statistic) / (len(positive) * len(negative))


def ceiling(label: ArrayLike) -> float:
    """The largest Spearman that scores without ties can reach: below 1 where labels are tied.

    With 279 ones among 408 labels it is 0.805, and such scores have rho = 0.805 (2 AUC - 1).
    """
    from scipy.stats import rankdata

    y = np.asarray(label, np.float64)
    return _spearman(np.asarray(rankdata(y, method="ordinal"), np.float64), y)


def _same_length(score: ArrayLike, label: ArrayLike) -> tuple[Scores, Scores]:
    x, y = np.asarray(score, np.float64), np.asarray(label, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"expected two arrays [n], n at least 2, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("scores and labels must be finite")
    return x, y


def _spearman(x: Scores, y: Scores) -> float:
    from scipy.stats import spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant input: NaN says it
        return float(spearmanr(x, y).statistic)


def _percentiles(draws: Scores) -> tuple[float, float]:
    draws = draws[~np.isnan(draws)]  # resamples in which one side is constant
    if len(draws) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def _resamples(n: int, resamples: int, seed: int) -> Iterator[tuple[int, Scores]]:
    """How often each of n pairs occurs in each resample: number of the first, [n, resamples].

    Counts stand for the resample itself: ranks follow from them without a sort per resample. The
    draws do not depend on the scores, so equal seeds give paired resamples. Pairs come first, so
    that one pair's counts lie together: they are moved as one.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, (1 << 17) // n)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = rng.integers(0, n, (count, n)) * count + np.arange(count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * count)
        yield start, counts.reshape(n, count).astype(np.float64)


class _Ranks:
    """The order of [n] values, from which their ranks in any resample follow."""

    def __init__(self, values: Scores) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        self._starts = np.flatnonzero(first)
        self._group = np.empty(len(values), np.int64)
        self._group[self._order] = np.cumsum(first) - 1

    def within(self, counts: Scores) -> Scores:
        """Rank, ties averaged, of each value in each resample, less the middle: [n, resamples]."""
        in_group = np.add.reduceat(counts[self._order], self._starts, axis=0)
        rank = np.cumsum(in_group, axis=0)
        rank -= (in_group - 1) / 2 + (len(counts) + 1) / 2
        return np.asarray(rank[self._group])
