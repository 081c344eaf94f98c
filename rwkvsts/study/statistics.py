"""How good and how dear: cosine, Spearman with its interval, AUC, time per pair, peak memory.

Promises that an interval is a percentile bootstrap over pairs from a seed, that ranks are taken
anew in every resample with ties averaged, and that no time includes a warm-up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
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
    x, y = _same_length(score, label)
    draws = np.concatenate(
        [_rank_correlation(x, y, counts) for counts in _resamples(len(x), resamples, seed)]
    )
    return _interval(_spearman(x, y), draws)


def spearman_difference(
    score: ArrayLike, other: ArrayLike, label: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Spearman of `score` less that of `other`, both [n] on the same pairs.

    The bootstrap is paired: each resample scores both methods on the same draw of pairs, so what
    the pairs have in common cancels.
    """
    x, y = _same_length(score, label)
    z, _ = _same_length(other, label)
    draws = np.concatenate(
        [
            _rank_correlation(x, y, counts) - _rank_correlation(z, y, counts)
            for counts in _resamples(len(x), resamples, seed)
        ]
    )
    return _interval(_spearman(x, y) - _spearman(z, y), draws)


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


def _interval(value: float, draws: Scores) -> Interval:
    draws = draws[~np.isnan(draws)]  # resamples in which one side is constant
    if len(draws) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def _resamples(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each of n pairs occurs in each resample, [rows, n], some rows at a time.

    Counts stand for the resample itself: ranks follow from them without a sort per resample. The
    draws do not depend on the scores, so equal seeds give paired resamples.
    """
    rng = np.random.default_rng(seed)
    rows_at_once = max(1, (1 << 20) // n)
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)


def _resampled_ranks(values: Scores, counts: NDArray[np.int64]) -> Scores:
    """Rank, ties averaged, that each of the [n] values has within each resample: [rows, n]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    group = np.empty(len(values), np.int64)
    group[order] = np.cumsum(first) - 1
    in_group = np.add.reduceat(counts[:, order], np.flatnonzero(first), axis=1)
    rank = np.cumsum(in_group, axis=1) - (in_group - 1) / 2
    return np.asarray(rank[:, group])


def _rank_correlation(x: Scores, y: Scores, counts: NDArray[np.int64]) -> Scores:
    """Spearman's correlation within each resample, [rows]; NaN where one side is constant."""
    middle = (len(x) + 1) / 2
    dx, dy = _resampled_ranks(x, counts) - middle, _resampled_ranks(y, counts) - middle
    covariance = np.einsum("rn,rn,rn->r", counts, dx, dy)
    spread = np.einsum("rn,rn,rn->r", counts, dx, dx) * np.einsum("rn,rn,rn->r", counts, dy, dy)
    undefined = np.full_like(covariance, np.nan)
    rho: Scores = np.divide(covariance, np.sqrt(spread), out=undefined, where=spread > 0)
    return rho
