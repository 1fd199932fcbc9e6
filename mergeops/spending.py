"""How sure the k-th use of one confirm part has to be, so that all uses together err at most alpha.

Looking at the same items again and again finds something in the end. So the error is spent: use k
is tested at alpha / (k (k + 1)), a series that sums to alpha. The chance that any of all uses
promotes a merge that is not better is then at most alpha, by the union bound; it is the weighted
Bonferroni rule that sequential testing starts from (Foster and Stine 2008,
https://doi.org/10.1111/j.1467-9868.2007.00643.x). The series falls slowly: the tenth use still has
alpha / 110, where halving would have left alpha / 1024.
"""

from __future__ import annotations


def level_of(use: int, alpha: float) -> float:
    """The level of one use.

    Args:
        use: 1 for the first.
        alpha: of all uses together.
    """
    if use < 1:
        raise ValueError(f"use is {use}; the first is 1")
    return alpha / (use * (use + 1))
