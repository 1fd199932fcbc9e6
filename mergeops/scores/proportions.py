"""Two paired proportions: an exact test, a score interval, and what could have been seen at all."""

from __future__ import annotations

import math
from statistics import NormalDist


def mcnemar_p(wins: int, losses: int) -> float:
    """Exact one-sided McNemar test: of the items where two models differ, does the candidate win
    more than half?

    McNemar 1947, https://doi.org/10.1007/BF02295996, with the binomial instead of its
    approximation. 1.0 when the models never differ.
    """
    from scipy.special import bdtrc

    if wins == 0:
        return 1.0
    # P(at least ``wins`` heads in ``wins + losses`` throws of a fair coin).
    return float(bdtrc(wins - 1, wins + losses, 0.5))


def wilson_interval(right: int, n: int, confidence: float) -> tuple[float, float]:
    """Score interval, two-sided, of a proportion (Wilson 1927, https://doi.org/10.2307/2276774).

    Args:
        right: of ``n`` items, at least one.
    """
    z, share = z_quantile(0.5 + confidence / 2), right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula is exact, and its rounding is not.
    low = 0.0 if right == 0 else middle - half
    return low, 1.0 if right == n else middle + half


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
    z = z_quantile(0.5 + confidence / 2)
    # The lower bound is the upper one of the roles exchanged, negated.
    return -_tango_bound(losses, wins, n, z), _tango_bound(wins, losses, n, z)


def detectable_share(n: int, discordant: float, alpha: float, power: float = 0.8) -> float | None:
    """The smallest true difference of two paired proportions that can be found among n items.

    Args:
        discordant: share d of the items on which the two models differ; None is returned for 0.
    """
    if n == 0 or discordant <= 0:
        return None
    z = z_quantile(1 - alpha) + z_quantile(power)
    # Minimal detectable effect delta = z se by the normal approximation, whose standard error is
    # sqrt((d - delta^2) / n), solved for delta.
    return z * math.sqrt(discordant / (n + z * z))


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


def z_quantile(p: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(p)
