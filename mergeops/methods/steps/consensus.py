"""The sign vote of ties and of the methods that build on it (TIES, sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.steps.weighting import multiply


def elect_and_average(
    deltas: Tensor, weights: Sequence[float], *, normalize: bool, vote_by_weight: bool = True
) -> Tensor:
    """Combine the task vectors' entries whose sign won the vote.

    Args:
        deltas: ``[n, m]``, sparse task vectors; a zero entry does not vote. Overwritten.
        weights: n numbers; a negative weight votes for the opposite sign.
        normalize: divide by the voters' weight.
        vote_by_weight: count each vote by its weight, which then also gives the sign; else the
            task vectors vote as they are, and weights (not negative) only average.

    Returns:
        ``[m]``. Each entry's sign is that of the vote's sum, + where that is zero; entries of
        the other sign are left out. Zero where nobody votes.
    """
    if vote_by_weight:
        multiply(deltas, weights)
    # The vote (4.2): the sign of the sum.
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    if not vote_by_weight:
        multiply(deltas, weights)
    sign = torch.copysign(torch.ones_like(total), total)
    # The disjoint mean (4.3): sum of the entries with the elected sign, and their voters' weight.
    merged = torch.zeros_like(total)
    voters = torch.zeros_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        delta *= sign
        merged += delta.clamp_(min=0)
        if normalize and weight != 0.0:
            # The divisor counts those that agree, so one dissenter cannot shrink the rest.
            delta.sign_()
            voters += delta if abs(weight) == 1.0 else delta.mul_(abs(weight))
    merged *= sign
    if normalize:
        # Where nobody votes, zero is divided by the least weight that anybody has.
        least = min((abs(weight) for weight in weights if weight != 0.0), default=1.0)
        merged /= voters.clamp_(min=least)
    return merged
