"""What the results come to: differences on held-out items, with intervals that hold together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.study.cases import ALL, FEW, SOUND, by_dev, mean
from benchmarks.study.plan import RUNS
from benchmarks.study.questions import SKILLS, TRANSFER
from benchmarks.study.results import Result, scores_of
from mergeops.scores import Simultaneous, simultaneous_estimate

GAINS, LOSES, NOT_SHOWN = "gains", "loses", "not shown"
SOUP = "linear"
"""The method that makes the uniform soup."""
BEST, UNIFORM = "best run", "uniform soup"
"""What methods are held to."""
DRAWS = 4000


@dataclass(frozen=True)
class Row:
    """A model beside what it is held to."""

    result: Result
    held: float
    """Share of right answers over the trained skills."""
    against: Mapping[str, Simultaneous]
    """Reference -> the difference to it; the intervals of all rows of a table hold together."""


class Study:
    """The results, as the report asks for them.

    Args:
        results: as far as the study got; the parents at least.
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = list(results)
        self.parents = {r.name: r for r in self.results if r.kind == "parent"}

    @property
    def best_run(self) -> Result:
        """The best single run, chosen on dev."""
        return self.parents[by_dev(self.results)[0].name]

    def soup(self, pool: str) -> Result | None:
        """The uniform soup of a pool."""
        return next((r for r in self.defaults(pool) if r.name == SOUP), None)

    def defaults(self, *pools: str) -> list[Result]:
        """Methods with their defaults, of some pools."""
        return [r for r in self._made("default") if r.pool in pools]

    def methods(self, pool: str) -> list[Row]:
        """Every method on a pool, best on the held-out items first.

        Those of one source or two are with the sound runs, as they take the best of them.
        """
        pools = (pool, "best", "best 2") if pool == SOUND else (pool,)
        own, soup = self.defaults(*pools), self.soup(pool)
        references = {BEST: self.best_run, **({UNIFORM: soup} if soup else {})}
        return self._rows(own, references)

    def searches(self) -> list[Row]:
        """What searches chose, beside the defaults of the same pool."""
        soup = self.soup(FEW)
        references = {BEST: self.best_run, **({UNIFORM: soup} if soup else {})}
        return self._rows(self._made("search"), references)

    def contributions(self, pool: str) -> dict[str, Simultaneous]:
        """Run -> the soup of a pool minus the soup without it."""
        soup = self.soup(pool)
        others = {r.name: r for r in self._made("without") if r.pool == pool}
        if soup is None or not others:
            return {}
        # Without minus whole, turned round: the whole is what stands beside each of the others.
        turned = _compared(others.values(), soup)
        return {
            name: Simultaneous(
                difference=-each.difference,
                low=-each.high,
                high=-each.low,
                p_value=each.p_value,
                confidence=each.confidence,
                candidates=each.candidates,
            )
            for name, each in zip(others, turned, strict=True)
        }

    def windows(self) -> list[tuple[Result, Simultaneous]]:
        """Each window, and the difference to the last checkpoint of its run."""
        found: list[tuple[Result, Simultaneous]] = []
        for run, own in itertools.groupby(self._made("window"), key=lambda r: r.pool):
            members = list(own)
            found += zip(members, _compared(members, self.parents[run]), strict=True)
        return found

    def diagnostics(self) -> dict[str, tuple[float, float, float]]:
        """What ``mergeops inspect`` says of a run -> its rank correlation with what the run
        contributes to the soup, and an interval; the intervals hold together. Nothing before every
        run was left out once."""
        gains = self.contributions(ALL)
        seen = next((r.details for r in self.results if r.kind == "inspect"), None)
        if seen is None or len(gains) < len(RUNS):
            return {}
        names = list(gains)
        values = {
            "norm of base": [seen["relative_norm"][n] for n in names],
            "mean cosine": [_pair_mean(seen["cosine"], n) for n in names],
            "mean sign conflict": [_pair_mean(seen["sign_conflict"], n) for n in names],
        }
        told = [gains[name].difference for name in names]
        level = 1 - 0.05 / len(values)
        return {name: rank_correlation(own, told, level) for name, own in values.items()}

    def _made(self, kind: str) -> list[Result]:
        return [r for r in self.results if r.kind == kind and not r.error]

    def _rows(self, own: Sequence[Result], references: Mapping[str, Result]) -> list[Row]:
        columns = {name: _compared(own, reference) for name, reference in references.items()}
        rows = [
            Row(result, mean(result.held), {name: columns[name][i] for name in columns})
            for i, result in enumerate(own)
        ]
        return sorted(rows, key=lambda row: -row.held)


def finding(estimate: Simultaneous) -> str:
    """In a word: an interval that holds zero shows nothing."""
    if estimate.low > 0:
        return GAINS
    return LOSES if estimate.high < 0 else NOT_SHOWN


def rank_correlation(
    first: Sequence[float], second: Sequence[float], confidence: float
) -> tuple[float, float, float]:
    """Spearman's, and a bootstrap interval over the pairs.

    Args:
        first: ``[n]``, as is ``second``.
        confidence: of the two-sided interval.
    """
    import numpy as np
    from scipy.stats import spearmanr

    a, b = np.array(first), np.array(second)
    generator = np.random.default_rng(0)
    drawn = []
    for places in generator.integers(0, len(a), (DRAWS, len(a))):
        if len(set(a[places])) > 1 and len(set(b[places])) > 1:
            drawn.append(float(spearmanr(a[places], b[places]).statistic))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(spearmanr(a, b).statistic), float(low), float(high)


def transfer(result: Result, base: Result) -> Simultaneous | None:
    """The difference to the base on the task that no run is trained on, where it was asked."""
    if TRANSFER not in result.held:
        return None
    own, reference = scores_of(result.held), scores_of(base.held)
    return simultaneous_estimate({"": own}, reference, [TRANSFER])[""]


def _compared(own: Iterable[Result], reference: Result) -> list[Simultaneous]:
    """Each against the reference on the trained skills, in order."""
    candidates = {str(i): scores_of(each.held) for i, each in enumerate(own)}
    made = simultaneous_estimate(candidates, scores_of(reference.held), SKILLS, draws=DRAWS)
    return [made[name] for name in candidates]


def _pair_mean(pairs: Mapping[str, Any], name: str) -> float:
    """Over the pairs that a source is in."""
    own: list[float] = [value for pair, value in pairs.items() if name in pair.split("|")]
    return sum(own) / len(own)
