"""From scores to the rows of a table: estimates, choices, comparisons.

Assumes scored methods, some of them on several splits of one task. Promises that

- the setting of a system (a model with its tokenizer) is chosen on an earlier split of the same
  task where the table holds one, train before validation before test, and that a row says so;
- any two rows of a split are compared on the same resamples;
- differences that are one of many are tested as one of many (Holm).
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ..embedder import Layer
from . import statistics
from .methods import Method, PairSet, Published, Scored, System
from .statistics import Difference, Estimate

OVERLAP = Method("word overlap")
SIGNIFICANT = 0.05
SPLITS = ("train", "validation", "test")  # a setting is chosen on an earlier one


@dataclass(frozen=True)
class Row:
    """One line of the table; NaN, None or empty where a figure does not exist.

    `low` and `high` are the 95 % interval of `spearman`; `ceiling` is what scores without ties
    can reach. `over_overlap` is the lead over word overlap on the same pairs, with its paired
    interval.

    `best` is "system" on the row that stands for its model, "reading" on the best layer of
    another reading of it; `chosen_on` names the split that chose it, empty where these very pairs
    did. The systems' best rows carry a `letter`; `beats` and `within_noise` hold the letters of
    the best rows that this best row beats, or does not differ from. On every other row `behind`
    is its distance from its system's best row and `p_behind` tests that, one of many.

    `ms_per_pair` is the median of one call per pair for this layer alone, `ms_per_pair_mean` its
    mean as in the paper; `ms_per_pair_batched` is the whole split for all layers. `peak_mib`
    counts the method's own allocations: for a GPU those on the device.
    """

    task: str
    split: str
    n: int
    method: str
    model: str
    tokenizer: str | None
    pooling: str | None
    lead: bool
    skip_first: bool
    prompt: str | None
    post: str
    layer: Layer | str | None
    step: str
    spearman: float
    low: float
    high: float
    auc: float
    ceiling: float
    over_overlap: float
    over_overlap_low: float
    over_overlap_high: float
    best: str
    chosen_on: str
    letter: str
    beats: str
    within_noise: str
    behind: float
    p_behind: float
    ms_per_pair: float
    ms_per_pair_mean: float
    ms_per_pair_batched: float
    peak_mib: float
    published_spearman: float | None = None
    published_s_per_pair: float | None = None
    published_peak_mib: float | None = None
    published_source: str = ""


def build(scored: Sequence[Scored], resamples: int = 1000, seed: int = 0) -> list[Row]:
    """The rows of all methods on all splits, split by split in the order given."""
    splits = list(dict.fromkeys(s.pairs.key for s in scored))
    groups = [_Group([s for s in scored if s.pairs.key == k], resamples, seed) for k in splits]
    rows: list[Row] = []
    for group in groups:
        group.choose(_development(group.pairs, groups))
        rows += group.rows()
    return rows


class _Group:
    """All methods on the pairs of one split."""

    def __init__(self, scored: list[Scored], resamples: int, seed: int) -> None:
        self.scored, self.pairs = scored, scored[0].pairs
        self.methods = [s.method for s in scored]
        label = self.pairs.label
        found = statistics.estimates([s.scores for s in scored], label, resamples, seed)
        self.estimate: dict[Method, Estimate] = dict(zip(self.methods, found, strict=True))
        self.best: dict[System, Method] = {}
        self.best_of_reading: list[Method] = []
        self.chosen_on = ""

    def choose(self, development: _Group | None) -> None:
        """Name each system's and each reading's best method, on development pairs if possible."""
        judge = development or self
        self.chosen_on = development.pairs.split if development else ""
        for system in dict.fromkeys(m.system for m in self.methods):
            self.best[system] = judge.first_of(m for m in self.methods if m.system == system)
        for label in dict.fromkeys(m.label for m in self.methods):
            best = judge.first_of(m for m in self.methods if m.label == label)
            self.best_of_reading.append(best)

    def first_of(self, methods: Iterable[Method]) -> Method:
        """The best of the methods on these pairs; the first where they are level."""

        def height(method: Method) -> float:
            rho = self.estimate[method].value if method in self.estimate else math.nan
            return -math.inf if math.isnan(rho) else rho

        return max(methods, key=height)

    def rows(self) -> list[Row]:
        """A row per method, in the order given."""
        letters = dict(zip(self.best, _letters(len(self.best)), strict=True))
        verdicts = self._compare_systems(letters)
        behind = self._compare_within()
        top = statistics.ceiling(self.pairs.label)
        rows = []
        for scored in self.scored:
            method = scored.method
            comparison = self._standing(method, letters, verdicts, behind)
            rows.append(
                Row(
                    task=self.pairs.task,
                    split=self.pairs.split,
                    n=len(self.pairs.label),
                    method=method.label,
                    **vars(method),
                    step=method.step,
                    auc=statistics.auc(scored.scores, self.pairs.label),
                    ceiling=top,
                    **self._correlation(method),
                    **comparison,
                    **vars(scored.cost),
                    **_published_fields(scored.published),
                )
            )
        return rows

    def _correlation(self, method: Method) -> dict[str, Any]:
        """Spearman and its lead over word overlap, as fields of a row."""
        rho = self.estimate[method].interval()
        overlap = self.estimate.get(OVERLAP)
        lead = self.estimate[method].minus(overlap) if overlap else _NO_DIFFERENCE
        return {
            "spearman": rho.value,
            "low": rho.low,
            "high": rho.high,
            "over_overlap": lead.value,
            "over_overlap_low": lead.low,
            "over_overlap_high": lead.high,
        }

    def _standing(
        self,
        method: Method,
        letters: dict[System, str],
        verdicts: dict[System, tuple[str, str]],
        behind: dict[Method, Difference],
    ) -> dict[str, Any]:
        """Whether the method was chosen, and what it beats or falls behind, as fields of a row."""
        stands = self.best[method.system] == method
        chosen = stands or method in self.best_of_reading
        beats, noise = verdicts[method.system] if stands else ("", "")
        distance = behind.get(method, _NO_DIFFERENCE)
        return {
            "best": "system" if stands else "reading" if chosen else "",
            "chosen_on": self.chosen_on if chosen and method.pooling else "",
            "letter": letters[method.system] if stands else "",
            "beats": beats,
            "within_noise": noise,
            "behind": distance.value,
            "p_behind": distance.p,
        }

    def _compare_systems(self, letters: dict[System, str]) -> dict[System, tuple[str, str]]:
        """For each system the letters of the best rows that its own beats, or does not differ from.

        Holm over all pairs of systems on this split.
        """
        pairs = list(combinations(self.best, 2))
        differences = [
            self.estimate[self.best[one]].minus(self.estimate[self.best[other]])
            for one, other in pairs
        ]
        adjusted = statistics.holm([d.p for d in differences])
        beats: dict[System, list[str]] = {system: [] for system in self.best}
        noise: dict[System, list[str]] = {system: [] for system in self.best}
        for (one, other), difference, p in zip(pairs, differences, adjusted, strict=True):
            if p < SIGNIFICANT:
                winner, loser = (one, other) if difference.value > 0 else (other, one)
                beats[winner].append(letters[loser])
            elif not math.isnan(p):
                noise[one].append(letters[other])
                noise[other].append(letters[one])
        return {s: ("".join(sorted(beats[s])), "".join(sorted(noise[s]))) for s in self.best}

    def _compare_within(self) -> dict[Method, Difference]:
        """Every other method of a system against the system's best; Holm within the system."""
        found: dict[Method, Difference] = {}
        for system, best in self.best.items():
            others = [m for m in self.methods if m.system == system and m != best]
            raw = [self.estimate[m].minus(self.estimate[best]) for m in others]
            adjusted = statistics.holm([d.p for d in raw])
            for method, d, p in zip(others, raw, adjusted, strict=True):
                found[method] = Difference(d.value, d.low, d.high, float(p))
        return found


_NO_DIFFERENCE = Difference(math.nan, math.nan, math.nan, math.nan)


def _development(pairs: PairSet, groups: list[_Group]) -> _Group | None:
    """The latest split of the same task that comes before these pairs; None if there is none."""
    place = _place(pairs.split)
    earlier = [
        g for g in groups if g.pairs.task == pairs.task and 0 <= _place(g.pairs.split) < place
    ]
    return max(earlier, key=lambda g: _place(g.pairs.split), default=None)


def _place(split: str) -> int:
    name = split.partition("[")[0]
    return SPLITS.index(name) if name in SPLITS else -1


def _letters(count: int) -> list[str]:
    """a, b, ... z, A, ... Z; what comes after has none to show."""
    letters = string.ascii_letters[:count]
    return [*letters, *["?"] * (count - len(letters))]


def _published_fields(found: Published | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "published_spearman": found.spearman,
        "published_s_per_pair": found.s_per_pair,
        "published_peak_mib": found.peak_mib,
        "published_source": found.source,
    }


def ties_with_best(row: Row) -> bool:
    """Whether the row's distance from its system's best row is within noise."""
    return not np.isnan(row.p_behind) and row.p_behind >= SIGNIFICANT
