"""Compare two models item by item: exact tests, intervals, and what could have been seen at all.

Two models that answer the same items share the items' difficulty; the difference on each item does
not. So everything here works on differences, and refuses items that are not provably the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergeops.errors import EvaluationError
from mergeops.scores.pairing import pair
from mergeops.scores.pooling import Pooled, cluster_labels, is_mean_over_items, pool, sums_by_label
from mergeops.scores.proportions import detectable_share, mcnemar_p, tango_interval, z_quantile
from mergeops.scores.scores import Scores

EXACT = "exact McNemar"
SIGN = "exact sign"
BOOTSTRAP = "paired bootstrap"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate against a reference on the same items; positive means the candidate is better."""

    n: int
    """Items."""
    difference: float
    """Candidate minus reference: of means, of nats a unit, or of a number of all items."""
    low: float
    high: float
    """Two-sided interval of ``confidence``, from -inf to inf for one item or one cluster."""
    confidence: float
    p_value: float
    """One-sided: the chance of a difference as large if the candidate were no better."""
    test: str
    """``exact McNemar`` for items of 0 and 1, else ``paired t``; ``clustered t`` for clusters;
    ``exact sign`` where every item or cluster shows the same difference; ``paired bootstrap``
    where a number that only all items together have takes part."""
    wins: int
    """Items on which the candidate is better."""
    losses: int
    """Items on which it is worse."""
    units: int
    """What is independent: items, or clusters of them."""
    freedom: float
    """Degrees of freedom of a t test; units - 1 where they weigh the same."""

    def __str__(self) -> str:
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def detectable(self, alpha: float, power: float = 0.8, n: int | None = None) -> float | None:
        """The smallest true difference that a test of level ``alpha`` finds with ``power``, given
        how often these two models differ; None if they never do.

        Args:
            n: on so many items like these; None takes as many.
        """
        n = self.n if n is None else n
        if self.test == EXACT:
            return detectable_share(n, (self.wins + self.losses) / self.n, alpha, power)
        if not math.isfinite(self.high) or self.test == SIGN or n == 0:
            return None
        from scipy.special import stdtrit

        # Half the interval is t(1 - alpha / 2) standard errors.
        quantile = float(stdtrit(self.freedom, 0.5 + self.confidence / 2))
        stderr = (self.high - self.low) / (2 * quantile)
        # Minimal detectable effect, (z(1 - alpha) + z(power)) se, with the se of n items.
        return (z_quantile(1 - alpha) + z_quantile(power)) * stderr * math.sqrt(self.n / n)


def compare(
    candidate: Scores,
    reference: Scores,
    tasks: Iterable[str] | None = None,
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Compare on the items of all ``tasks`` together.

    Raises:
        EvaluationError: as ``pairing.pair``; or the tasks' metrics do not point the same way, so
            that their sum means nothing.
    """
    paired = pair(candidate, reference, tasks)
    scores = [candidate.tasks[task] for task in paired]
    up = [score for score in scores if score.higher_is_better]
    down = [score for score in scores if not score.higher_is_better]
    if up and down:
        raise EvaluationError(
            f"tasks {up[0].task} ({up[0].metric}, higher is better) and {down[0].task} "
            f"({down[0].metric}, lower is better) cannot be pooled; choose some with the same "
            "direction"
        )
    pairs = [p for of_task in paired.values() for p in of_task]
    chosen = {score.task: score for score in scores}
    labels = cluster_labels(chosen)
    if is_mean_over_items(chosen, candidate.groups):
        clusters = labels if len(set(labels)) < len(labels) else None
        return compare_pairs(pairs, clusters=clusters, confidence=confidence)
    change = difference_of(candidate, reference, tuple(chosen))
    effects, shares = (sums_by_label(each, labels) for each in (change.effects, change.shares))
    most = max(1.0, *(abs(pool({t.task: t}, {}).value) for t in scores))
    test, low, high, p_value = t_test(
        change.value,
        effects,
        confidence,
        (-most, most),
        scale=most,
        shares=shares,
        more_variance=float((change.resampled**2).mean()) if change.resampled.size else 0.0,
    )
    if change.resampled.size and test != SIGN:
        test = BOOTSTRAP
    elif len(effects) == len(pairs):
        test = test.replace("clustered", "paired")
    return Comparison(
        n=len(pairs),
        difference=change.value,
        low=low,
        high=high,
        confidence=confidence,
        p_value=p_value,
        test=test,
        wins=sum(a > b for a, b in pairs),
        losses=sum(a < b for a, b in pairs),
        units=len(effects),
        freedom=effective_units(shares) - 1,
    )


def difference_of(candidate: Scores, reference: Scores, tasks: tuple[str, ...]) -> Pooled:
    """Candidate minus reference over ``tasks``, positive where the candidate is better.

    Both have answered the same items, see ``pairing.pair``, by metrics of one direction.
    """
    mine, other = (
        pool({task: scores.tasks[task] for task in tasks}, candidate.groups)
        for scores in (candidate, reference)
    )
    sign = 1.0 if candidate.tasks[tasks[0]].higher_is_better else -1.0
    return Pooled(
        value=sign * (mine.value - other.value),
        by_log=mine.by_log,
        effects=sign * (mine.effects - other.effects),
        shares=mine.shares,
        resampled=sign * (mine.resampled - other.resampled),
        variance=math.nan,
    )


def compare_pairs(
    pairs: Iterable[tuple[float, float]],
    *,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    reach: tuple[float, float] | None = None,
) -> Comparison:
    """Compare (candidate, reference) values of the same items.

    Args:
        clusters: a label for each item; equal ones are not independent. None: all items are.
        reach: the smallest and the largest difference that there can be; by default the largest
            value may be lost or won, and 1 at least.

    Raises:
        EvaluationError: there are none.
    """
    pairs = list(pairs)
    n = units = len(pairs)
    if n == 0:
        raise EvaluationError("there are no items to compare on")
    wins = sum(a > b for a, b in pairs)
    losses = sum(a < b for a, b in pairs)
    if clusters is None and all(value in (0.0, 1.0) for p in pairs for value in p):
        test, difference, p_value = EXACT, (wins - losses) / n, mcnemar_p(wins, losses)
        low, high = tango_interval(wins, losses, n, confidence)
    else:
        if reach is None:
            most = max(1.0, *(abs(value) for p in pairs for value in p))
            reach = -most, most
        labels = list(map(str, range(n))) if clusters is None else clusters
        differences = np.array([a - b for a, b in pairs])
        difference = math.fsum(differences) / n
        effects = sums_by_label((differences - difference) / n, labels)
        units = len(effects)
        test, low, high, p_value = t_test(
            difference, effects, confidence, reach, scale=float(abs(differences).max())
        )
        if clusters is None:
            test = test.replace("clustered", "paired")
    return Comparison(
        n=n,
        difference=difference,
        low=low,
        high=high,
        confidence=confidence,
        p_value=p_value,
        test=test,
        wins=wins,
        losses=losses,
        units=units,
        freedom=units - 1,
    )


def constant_interval(
    difference: float, units: int, confidence: float, reach: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float]:
    """Interval of a mean where every independent unit shows the same difference.

    No unit was seen that differs otherwise, which bounds their share (Clopper and Pearson 1934,
    https://doi.org/10.1093/biomet/26.4.404, for no events); those may lie anywhere in ``reach``.

    Args:
        units: items or clusters; one alone shows nothing, and gives -inf and inf.
    """
    if units == 1:
        return -math.inf, math.inf
    # Largest share with (1 - q)^units >= alpha / 2, where none of ``units`` would still be seen.
    q = 1 - ((1 - confidence) / 2) ** (1 / units)
    # The mean if that share lay at either end of the reach.
    return difference + q * (reach[0] - difference), difference + q * (reach[1] - difference)


def sign_p(difference: float, units: int) -> float:
    """Exact one-sided sign test where every unit shows the same difference; 1.0 for one unit."""
    return 0.5**units if difference > 0 and units > 1 else 1.0


def t_test(
    value: float,
    effects: Any,
    confidence: float,
    reach: tuple[float, float],
    *,
    scale: float,
    shares: Any = None,
    more_variance: float = 0.0,
) -> tuple[str, float, float, float]:
    """Test, interval and one-sided p of a value that independent units move.

    Where the units do not vary it knows no error, and a sign test over them takes its place.

    Args:
        value: the estimate, e.g. a mean of differences.
        effects: ``[units]`` how far each moves it; items of their own make it Student's t.
        confidence: of the two-sided interval.
        reach: the smallest and the largest value that there can be.
        scale: the largest difference of one item; less than rounding of it is no variation.
        shares: ``[units]`` weight of each in the value, where they are not the same by design; they
            sum to 1.
        more_variance: of the value, from items that are drawn again.
    """
    # Its special functions are there at once; its statistics take half a second to import.
    from scipy.special import stdtr, stdtrit

    count = len(effects)
    freedom = float(count - 1)
    if shares is None:
        # Cluster-robust variance (Miller 2024, https://arxiv.org/abs/2411.00640, section 2.2): each
        # cluster's residuals are summed before they are squared; G / (G - 1) corrects for G.
        squares = math.fsum(effect**2 for effect in effects) * count / max(count - 1, 1)
    else:
        # Delete-one jackknife of a ratio: without unit g the value is value - effect_g / (1 - h_g),
        # where h_g is its share. Few units that weigh much leave few degrees of freedom.
        freedom = effective_units(shares) - 1
        if freedom < 1e-9:
            count = 1
        else:
            moved = (effects / (1 - shares)) ** 2
            squares = math.fsum(moved) * (count - 1) / count
    if count == 1:
        return SIGN, *constant_interval(value, 1, confidence, reach), 1.0
    stderr = math.sqrt(squares + more_variance)
    if not stderr > 1e-12 * scale:
        return SIGN, *constant_interval(value, count, confidence, reach), sign_p(value, count)
    # Student's t: the interval value +- t(1 - alpha / 2) se, and the upper tail beyond value / se.
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * stderr
    return "clustered t", value - half, value + half, float(stdtr(freedom, -value / stderr))


def effective_units(shares: Any) -> float:
    """How many units of equal weight tell as much (Kish 1965): 1 / sum of h_g^2."""
    return 1 / float((shares**2).sum())
