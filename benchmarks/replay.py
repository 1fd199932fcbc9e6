"""Races replayed over a complete matrix of answers: what they ask, and whom they drop.

The race is the one of ``mergeops.search``; only the answers are looked up in place of asked. Items
are drawn anew in each replay, so that what is true is known: the mean of the whole matrix.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mergeops.scores import Comparison
from mergeops.scores.proportions import mcnemar_p, tango_interval
from mergeops.search.racing import DROPPED, WAITING, WHOLE, Race, stages

LEVEL = 0.025
"""Of the gate, when a confirm part is used for the first time; all its uses together err in 5 %."""

tango = lru_cache(maxsize=None)(tango_interval)


@dataclass(frozen=True)
class Answers:
    """Of one candidate on the first items of a replay."""

    values: Any
    """``[n]`` bool."""

    @property
    def merit(self) -> float:
        """The mean."""
        return float(self.values.mean())


def compared(mine: Answers, other: Answers, _tasks: Any = None, *, confidence: float) -> Comparison:
    """As ``mergeops.scores.compare`` for items of 0 and 1."""
    wins = int((mine.values & ~other.values).sum())
    losses = int((other.values & ~mine.values).sum())
    n = len(mine.values)
    low, high = tango(wins, losses, n, confidence)
    return Comparison(
        n=n,
        difference=(wins - losses) / n,
        low=low,
        high=high,
        confidence=confidence,
        p_value=float("nan"),  # nobody looks at it here
        test="exact McNemar",
        wins=wins,
        losses=losses,
        units=n,
        freedom=n - 1,
    )


@dataclass(frozen=True)
class Raced:
    """What one replay came to."""

    asked: float
    """Share of (candidate x item) answers."""
    best: int
    """The candidate that it ends with."""
    dropped: frozenset[int]
    merit: float
    """Of the best, on the replay's items."""


def replay(
    answers: Any,
    order: Any,
    *,
    margin: float = 0.01,
    alpha: float = 0.05,
    leader: Any = None,
    shares: tuple[float, ...] | None = None,
) -> Raced:
    """One race.

    Args:
        answers: ``[candidates, items]`` bool, items in the order in which they are asked.
        order: of the candidates.
        leader: ``[items]`` bool: answers of a source, which are known; None for none.
        shares: stages; None takes those of a study.
    """
    n = answers.shape[1]
    shares = shares or stages(n)
    race: Any = Race(shares=shares, margin=margin, alpha=alpha, compare=compared)
    if leader is not None:
        race.finish("source", {s: Answers(leader[: round(s * n)]) for s in shares})
    known: dict[int, dict[float, Any]] = {int(c): {} for c in order}
    verdicts: dict[int, Any] = {}

    def run(candidate: int, may_wait: bool) -> None:
        verdicts[candidate] = race.run(
            known[candidate],
            lambda share: Answers(answers[candidate, : round(share * n)]),
            may_wait=may_wait,
        )
        if verdicts[candidate].state == WHOLE:
            race.finish(str(candidate), known[candidate])

    for candidate in map(int, order):
        run(candidate, True)
    # The most promising first, as a study settles what waits.
    waiting = [c for c, v in verdicts.items() if v.state == WAITING]

    def promise(candidate: int) -> float:
        verdict = verdicts[candidate]
        own = known[int(verdict.leader)][1.0] if verdict.leader != "source" else Answers(leader)
        return float(verdict.looks[0].difference + own.merit)

    for candidate in sorted(waiting, key=lambda c: -promise(c)):
        run(candidate, False)
    whole = [c for c, v in verdicts.items() if v.state == WHOLE]
    best = max(whole, key=lambda c: known[c][1.0].merit) if whole else -1
    asked = sum(max(known[c]) for c in known) / len(known)
    return Raced(
        asked,
        best,
        frozenset(c for c, v in verdicts.items() if v.state == DROPPED),
        known[best][1.0].merit if whole else float("nan"),
    )


def drawn(matrix: Any, rng: Any, items: int, candidates: Any = None) -> Any:
    """So many items of a matrix, drawn with replacement, of some candidates."""
    chosen = rng.integers(matrix.shape[1], size=items)
    return matrix[:, chosen] if candidates is None else matrix[np.ix_(candidates, chosen)]


def field_with_a_lead(truth: Any, rng: Any, lead: float, least: int = 24) -> Any:
    """A candidate, drawn, and all that it truly leads by so much, which are not few."""
    behind = [np.flatnonzero(truth <= own - lead) for own in truth]
    eligible = [c for c, others in enumerate(behind) if len(others) >= least]
    best = int(rng.choice(eligible))
    return np.concatenate([[best], behind[best]])


def race_figures(
    matrix: Any, replays: int, items: int, count: int, *, seed: int = 0, **how: Any
) -> dict[str, float]:
    """Share asked, and how often a best that leads by a point is dropped.

    Args:
        matrix: ``[candidates, items]`` bool.
        replays: how many of each.
        items: of a replay's dev part.
        count: candidates of a replay.
    """
    rng, truth = np.random.default_rng(seed), matrix.mean(axis=1)
    asked, regret = [], []
    for _ in range(replays):
        chosen = rng.choice(len(matrix), count, replace=False)
        found = replay(drawn(matrix, rng, items, chosen), rng.permutation(count), **how)
        asked.append(found.asked)
        regret.append(truth[chosen].max() - truth[chosen][found.best])
    dropped, sizes = 0, []
    for _ in range(replays):
        chosen = field_with_a_lead(truth, rng, 0.01)
        sizes.append(len(chosen))
        found = replay(drawn(matrix, rng, items, chosen), rng.permutation(len(chosen)), **how)
        dropped += 0 in found.dropped
    return {
        "asked": statistics.fmean(asked),
        "asked_p90": float(np.quantile(asked, 0.9)),
        "regret_points": 100 * statistics.fmean(regret),
        "best_dropped": dropped / replays,
        "candidates_led": statistics.fmean(sizes) - 1,
    }


def equal_candidates(
    matrix: Any, studies: int, items: int, held: int, count: int, *, seed: int = 0, **how: Any
) -> dict[str, float]:
    """A/A: each item's answers are shuffled among the candidates, so that none is better.

    Args:
        studies: how many.
        items: of the dev part.
        held: of the confirm part.

    Returns:
        How far the winner's dev score exceeds its held-out score, in points, and how often an
        exact McNemar test of ``LEVEL`` on the held-out items would promote it over another one.
    """
    rng = np.random.default_rng(seed)
    optimism, whole_optimism, promoted = [], [], 0
    for _ in range(studies):
        chosen = rng.choice(len(matrix), count + 1, replace=False)
        shuffled = rng.permuted(drawn(matrix, rng, items + held, chosen), axis=0)
        source, own = shuffled[0], shuffled[1:]
        found = replay(own[:, :items], rng.permutation(count), leader=source[:items], **how)
        best = own[found.best] if found.best >= 0 else source
        optimism.append(best[:items].mean() - best[items:].mean())
        lucky = own[int(own[:, :items].mean(axis=1).argmax())]
        whole_optimism.append(lucky[:items].mean() - lucky[items:].mean())
        wins = int((best[items:] & ~source[items:]).sum())
        losses = int((source[items:] & ~best[items:]).sum())
        promoted += mcnemar_p(wins, losses) <= LEVEL
    return {
        "optimism_points": 100 * statistics.fmean(optimism),
        "optimism_points_without_racing": 100 * statistics.fmean(whole_optimism),
        "promoted": promoted / studies,
    }
