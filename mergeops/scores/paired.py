"""Compare two models item by item: exact tests, intervals, and what could have been seen at all.

Two models that answer the same items share the items' difficulty; the difference on each item does
not. So everything here works on differences, and refuses items that are not provably the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from mergeops.errors import EvaluationError
from mergeops.scores.scores import Scores, TaskScore

EXACT = "exact McNemar"
SIGN = "exact sign"
Pairs = tuple[tuple[float, float], ...]
"""(candidate, reference) for each item, larger is better."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate against a reference on the same items; positive means the candidate is better."""

    n: int
    """Items."""
    difference: float
    """Mean of candidate minus reference."""
    low: float
    high: float
    """Two-sided interval of ``confidence``, from -inf to inf for one item or one cluster."""
    confidence: float
    p_value: float
    """One-sided: the chance of a difference as large if the candidate were no better."""
    test: str
    """``exact McNemar`` for items of 0 and 1, else ``paired t``; ``clustered t`` for clusters;
    ``exact sign`` where every item or cluster shows the same difference."""
    wins: int
    """Items on which the candidate is better."""
    losses: int
    """Items on which it is worse."""
    units: int
    """What is independent: items, or clusters of them."""

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
        from scipy.stats import t

        # Half the interval is t(1 - alpha / 2) standard errors.
        quantile = float(t.ppf(0.5 + self.confidence / 2, self.units - 1))
        stderr = (self.high - self.low) / (2 * quantile)
        # Minimal detectable effect, (z(1 - alpha) + z(power)) se, with the se of n items.
        return (_z(1 - alpha) + _z(power)) * stderr * math.sqrt(self.n / n)


def pair(
    candidate: Scores, reference: Scores, tasks: Iterable[str] | None = None
) -> dict[str, Pairs]:
    """The values of both models on every item, by task.

    Args:
        tasks: which; None takes all of the candidate's.

    Raises:
        EvaluationError: a task is missing, or any item, prompt or target is not the same.
    """
    if candidate.part != reference.part:
        raise EvaluationError(
            f"scores of the {candidate.part} part cannot be compared with scores of the "
            f"{reference.part} part"
        )
    paired = {}
    for task in candidate.tasks if tasks is None else tasks:
        for scores, who in ((candidate, "the candidate"), (reference, "the reference")):
            if task not in scores.tasks:
                raise EvaluationError(
                    f"task {task!r} is not among the scores of {who}: {', '.join(scores.tasks)}"
                )
        paired[task] = _pair_task(candidate.tasks[task], reference.tasks[task])
    return paired


def compare(
    candidate: Scores,
    reference: Scores,
    tasks: Iterable[str] | None = None,
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Compare on the items of all ``tasks`` together.

    Raises:
        EvaluationError: as ``pair``; or the tasks' metrics do not point the same way, so that
            their sum means nothing.
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
    return compare_pairs(
        [p for pairs in paired.values() for p in pairs],
        clusters=cluster_labels(candidate, tuple(paired)),
        confidence=confidence,
    )


def cluster_labels(scores: Scores, tasks: Iterable[str]) -> list[str] | None:
    """One label for each item of the tasks in order, an item without a cluster being its own; None
    where no two items share one."""
    labels = [
        f"{task}:{item.cluster}" if item.cluster else f"{task}#{item.doc_id}"
        for task in tasks
        for item in scores.tasks[task].items
    ]
    return labels if len(set(labels)) < len(labels) else None


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
        labels: Iterable[object] = range(n) if clusters is None else clusters
        groups: dict[object, list[float]] = defaultdict(list)
        for label, (a, b) in zip(labels, pairs, strict=True):
            groups[label].append(a - b)
        units = len(groups)
        test, difference, low, high, p_value = t_test(list(groups.values()), confidence, reach)
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
    )


def mcnemar_p(wins: int, losses: int) -> float:
    """Exact one-sided McNemar test: of the items where two models differ, does the candidate win
    more than half?

    McNemar 1947, https://doi.org/10.1007/BF02295996, with the binomial instead of its
    approximation. 1.0 when the models never differ.
    """
    from scipy.stats import binomtest

    if wins + losses == 0:
        return 1.0
    # P(at least ``wins`` heads in ``wins + losses`` throws of a fair coin).
    return float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue)


def tango_interval(wins: int, losses: int, n: int, confidence: float) -> tuple[float, float]:
    """Score interval, two-sided, of the difference of two paired proportions.

    Tango 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B:
    the differences that a score test does not reject. Chosen because it keeps its coverage with few
    items and few disagreements, where the Wald interval shrinks to nothing, and because at zero it
    is McNemar's own statistic, so interval and test agree.

    Args:
        wins, losses: items on which only the candidate, or only the reference, is right.
        n: all items.
    """
    z = _z(0.5 + confidence / 2)
    # The lower bound is the upper one of the roles exchanged, negated.
    return -_tango_bound(losses, wins, n, z), _tango_bound(wins, losses, n, z)


def detectable_share(n: int, discordant: float, alpha: float, power: float = 0.8) -> float | None:
    """The smallest true difference of two paired proportions that can be found among n items.

    Args:
        discordant: share d of the items on which the two models differ; None is returned for 0.
    """
    if n == 0 or discordant <= 0:
        return None
    z = _z(1 - alpha) + _z(power)
    # Minimal detectable effect delta = z se by the normal approximation, whose standard error is
    # sqrt((d - delta^2) / n), solved for delta.
    return z * math.sqrt(discordant / (n + z * z))


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


def _pair_task(candidate: TaskScore, reference: TaskScore) -> Pairs:
    task = candidate.task
    if candidate.metric != reference.metric:
        raise EvaluationError(
            f"task {task}: metric {candidate.metric} cannot be compared with {reference.metric}"
        )
    if candidate.n != reference.n:
        raise EvaluationError(
            f"task {task}: {candidate.n} items cannot be paired with {reference.n}; score both "
            "with the same evaluate.limit, confirm_fraction and split_salt"
        )
    sign = 1.0 if candidate.higher_is_better else -1.0
    both = list(zip(candidate.items, reference.items, strict=True))
    for attribute, name in _NAMES.items():
        other_ids = [a.doc_id for a, b in both if getattr(a, attribute) != getattr(b, attribute)]
        if other_ids:
            raise EvaluationError(
                f"task {task}, item {other_ids[0]}: the {name} is not the same for both models, as "
                f"on {len(other_ids)} of {len(both)} items; score both with the same task files "
                "and settings"
            )
    pairs = [(sign * mine.value, sign * other.value) for mine, other in both]
    if sign < 0 and all(v in (0.0, -1.0) for p in pairs for v in p):
        return tuple((1.0 + a, 1.0 + b) for a, b in pairs)  # an error rate: count what is right
    return tuple(pairs)


_NAMES = {"doc_id": "item", "doc_hash": "item", "prompt_hash": "prompt", "target_hash": "target"}


def t_test(
    groups: list[list[float]], confidence: float, reach: tuple[float, float]
) -> tuple[str, float, float, float, float]:
    """Test, mean, interval and one-sided p of the differences of independent groups.

    Groups of one make it Student's paired t test. Where the groups do not vary it knows no error,
    and a sign test over the groups takes its place.
    """
    from scipy.stats import t

    n, count = sum(map(len, groups)), len(groups)
    mean = math.fsum(d for group in groups for d in group) / n
    # Cluster-robust variance (Miller 2024, https://arxiv.org/abs/2411.00640, section 2.2): each
    # group's residuals are summed before they are squared; G / (G - 1) corrects for G groups.
    squares = math.fsum(math.fsum(d - mean for d in group) ** 2 for group in groups)
    stderr = math.sqrt(squares * count / max(count - 1, 1)) / n
    if count == 1 or stderr <= 1e-12 * max(abs(d) for group in groups for d in group):
        low, high = constant_interval(mean, count, confidence, reach)
        return SIGN, mean, low, high, sign_p(mean, count)
    # Student's t with G - 1 degrees of freedom: the interval mean +- t(1 - alpha / 2) se, and
    # the upper tail beyond mean / se.
    half = float(t.ppf(0.5 + confidence / 2, count - 1)) * stderr
    return "clustered t", mean, mean - half, mean + half, float(t.sf(mean / stderr, count - 1))


def _tango_bound(wins: int, losses: int, n: int, z: float) -> float:
    """The largest difference that the score test does not reject, by bisection.

    The score falls from +inf to -inf as the difference grows over (-1, 1).
    """
    low, high = (wins - losses) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _tango_score(wins, losses, n, middle) > -z:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tango_score(wins: int, losses: int, n: int, delta: float) -> float:
    """Tango's score z(delta): wins - losses less its mean under ``delta``, in standard errors."""
    # Restricted maximum likelihood estimate q of the share of losses, given that the share of wins
    # is q + delta: the larger root of a q^2 + b q + c.
    a = 2.0 * n
    b = -wins - losses + (2.0 * n - wins + losses) * delta
    c = -losses * delta * (1 - delta)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    distance = wins - losses - n * delta
    # Variance of wins - losses under delta.
    variance = n * (2 * q + delta * (1 - delta))
    if variance <= 0:  # at the ends, where only one outcome is possible
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _z(p: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(p)
