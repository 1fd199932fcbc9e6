"""Racing on items: a candidate is asked on more and more items, and dropped once it has lost.

The items of a stage are those of the stage before and new ones, the same for every candidate, so
that two candidates differ only where their answers do. After each stage but the last a candidate is
compared with the leader, item by item. It is dropped where the upper end of the interval of the
difference is below ``margin``; where it is behind, but not yet lost, it waits. When nothing new is
proposed, those that wait are compared with the leader of then, the most promising first, and asked
on until each has lost or was asked everything.

What is promised: a candidate that is better than every leader by ``margin`` or more is dropped in
at most ``alpha`` of all studies, over all its looks (Bonferroni: each look has its share of half
of ``alpha``; the other half is for leaders that lead by luck, measured in benchmarks/SEARCH.md). Of
candidates that lead by less, any may be dropped.

With several objectives the leaders are the front of those that were asked everything, and a
candidate is dropped where one of them leaves it no objective to be better in by the margin. A
candidate that has to keep a limit is dropped, too, where the interval says that it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mergeops.scores import Comparison, Scores, compare
from mergeops.search.objectives import EVERYTHING, Limit, Objective, dominates

GROWTH = 2
"""Items of a stage, in those of the stage before."""
FEWEST = 48
"""Items of a first stage: fewer tell nothing."""
MOST = 6
"""Stages: each look at a candidate takes its share of the error."""
WHOLE, DROPPED, WAITING, FAILED = "whole", "dropped", "waiting", "failed"
Stages = Mapping[float, Scores]
"""Share of the dev items -> scores on them."""


def stages(items: int) -> tuple[float, ...]:
    """Shares of the items that are asked by and by, the last one 1.0.

    Args:
        items: of the whole dev part.
    """
    shares = [1.0]
    while items * shares[0] / GROWTH >= FEWEST and len(shares) < MOST:
        shares.insert(0, shares[0] / GROWTH)
    return tuple(shares)


class RaceVerdict(NamedTuple):
    """What became of a candidate as far as it was asked."""

    state: str
    """WHOLE, DROPPED or WAITING."""
    looks: tuple[Comparison, ...] = ()
    """At it and the leader that it lost to or is behind of, one for each objective."""
    leader: str = ""
    """Which one that is."""
    reason: str = ""
    """Why it was dropped, where that was not for a leader."""


@dataclass(kw_only=True)
class Race:
    """The candidates of a study, and who leads.

    Args:
        shares: the stages.
        margin: a lead that matters, in points of the score.
        alpha: chance that the best of all is dropped although it leads by the margin.
        objectives: what is to be large.
        limits: what a candidate has to keep.
        reference: of whom the limits are counted, at each stage; needed where there are some.
        compare: of two scores; for tests and replays.
    """

    shares: Sequence[float]
    margin: float
    alpha: float
    objectives: tuple[Objective, ...] = (EVERYTHING,)
    limits: tuple[Limit, ...] = ()
    reference: Stages = field(default_factory=dict)
    compare: Callable[..., Comparison] = compare
    leaders: dict[str, Stages] = field(default_factory=dict)
    """By name; more than one only where there are several objectives."""

    @property
    def values(self) -> dict[str, tuple[float, ...]]:
        """Of each leader on all items, one for each objective."""
        return {name: self.values_of(own) for name, own in self.leaders.items()}

    def values_of(self, stages: Stages) -> tuple[float, ...]:
        """Of a candidate on all that it was asked, one for each objective; larger is better."""
        scores = stages[max(stages)]
        return tuple(objective.merit(scores) for objective in self.objectives)

    def run(
        self,
        stages: MutableMapping[float, Scores],
        ask: Callable[[float], Scores],
        *,
        may_wait: bool,
        is_raced: bool = True,
    ) -> RaceVerdict:
        """Ask a candidate stage by stage, as far as it is worth it; see ``finish``.

        Args:
            stages: what it was asked before; what it is asked now is added.
            ask: gives its scores on a share of the items.
            may_wait: whether it stops where it is behind.
            is_raced: False asks it everything.
        """
        reached = max(stages, default=0.0)
        for share in self.shares:
            if share < reached:
                continue
            if share not in stages:
                stages[share] = ask(share)
            if not is_raced or share == self.shares[-1]:
                continue
            verdict = self.look(share, stages[share])
            if verdict.state == DROPPED or (verdict.state == WAITING and may_wait):
                return verdict
        return RaceVerdict(WHOLE)

    def look(self, share: float, scores: Scores) -> RaceVerdict:
        """A candidate after a stage that is not the last: lost, behind, or to be asked on."""
        # As many as there are stages: one after each but the last, and one more if it has waited.
        # Each counts twice, since the leader is the lucky one of those before.
        looks = 2 * len(self.shares) * (len(self.limits) + 1) * max(len(self.leaders), 1)
        # The upper end of a two-sided interval errs with half of what is left.
        confidence = 1 - 2 * self.alpha / looks
        for limit in self.limits:
            kept = self.compare(scores, self.reference[share], limit.tasks, confidence=confidence)
            if kept.high < limit.least:
                return RaceVerdict(DROPPED, reason=f"{limit}: it is {kept}")
        behind = RaceVerdict(WHOLE)
        for name, leader in self.leaders.items():
            pairs = tuple(
                self.compare(scores, leader[share], each.tasks, confidence=confidence)
                for each in self.objectives
            )
            if all(pair.high < self.margin for pair in pairs):
                return RaceVerdict(DROPPED, pairs, name)
            if all(pair.difference < 0 for pair in pairs):
                behind = RaceVerdict(WAITING, pairs, name)
        return behind

    def finish(self, name: str, stages: Stages) -> bool:
        """A candidate that was asked everything; it leads from now on where it is better.

        Returns:
            Whether it leads.
        """
        mine = self.values_of(stages)
        if self.broken(stages) or any(
            mine == theirs or dominates(theirs, mine) for theirs in self.values.values()
        ):
            return False
        beaten = [name for name, theirs in self.values.items() if dominates(mine, theirs)]
        for each in beaten:
            del self.leaders[each]
        self.leaders[name] = stages
        return True

    def broken(self, stages: Stages) -> list[str]:
        """The limits that a candidate does not keep, on all that it was asked."""
        share = max(stages)
        return [
            f"{limit}: it is {kept}"
            for limit in self.limits
            for kept in [self.compare(stages[share], self.reference[share], limit.tasks)]
            if kept.difference < limit.least
        ]

    def slacks(self, stages: Stages) -> dict[str, float]:
        """How far a candidate is from each limit; 0 and less keeps it."""
        share = max(stages)
        return {
            limit.task: limit.least
            - self.compare(stages[share], self.reference[share], limit.tasks).difference
            for limit in self.limits
        }
