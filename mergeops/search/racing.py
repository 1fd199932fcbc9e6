"""Racing on items: a candidate is asked on more and more items, and dropped once it has lost.

The items of a stage are those of the stage before and new ones, the same for every candidate, so
that two candidates differ only where their answers do. After each stage but the last a candidate is
compared with the leader, item by item, and dropped where the upper end of the interval of the
difference is below ``margin``.

What is promised: a candidate that is better than every leader by ``margin`` or more is dropped in
at most ``alpha`` of all studies, over all its looks (Bonferroni: each look has its share of
``alpha``). Of candidates that lead by less, any may be dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergeops.scores import Comparison, Scores, compare

GROWTH = 4
"""Items of a stage, in those of the stage before."""
FEWEST = 48
"""Items of a first stage: fewer tell nothing."""


def stages(items: int) -> tuple[float, ...]:
    """Shares of the items that are asked by and by, the last one 1.0.

    Args:
        items: of the whole dev part.
    """
    shares = [1.0]
    while items * shares[0] / GROWTH >= FEWEST and len(shares) < 4:
        shares.insert(0, shares[0] / GROWTH)
    return tuple(shares)


@dataclass
class Race:
    """The candidates of a study, and who leads.

    Args:
        shares: the stages.
        margin: a lead that matters, in points of the pooled score.
        alpha: chance that the best of all is dropped although it leads by the margin.
    """

    shares: Sequence[float]
    margin: float
    alpha: float
    leader: Mapping[float, Scores] = field(default_factory=dict)
    """The leader's scores at each stage; empty before there is one."""

    @property
    def merit(self) -> float:
        """The leader's on all items; -inf before there is one."""
        return self.leader[self.shares[-1]].merit if self.leader else -math.inf

    def look(self, share: float, scores: Scores) -> Comparison | None:
        """A candidate against the leader after a stage that is not the last."""
        if not self.leader or share == self.shares[-1]:
            return None
        looks = len(self.shares) - 1
        # The upper end of a two-sided interval errs with half of what is left.
        return compare(scores, self.leader[share], confidence=1 - 2 * self.alpha / looks)

    def is_lost(self, look: Comparison | None) -> bool:
        """Whether a candidate is to be dropped after a look."""
        return look is not None and look.high < self.margin

    def finish(self, stages: Mapping[float, Scores]) -> bool:
        """A candidate that was asked everything; it leads from now on where it is better.

        Returns:
            Whether it leads.
        """
        if stages[self.shares[-1]].merit > self.merit:
            self.leader = dict(stages)
            return True
        return False
