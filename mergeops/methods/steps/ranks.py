"""Drop entries at random, the smaller in their row the likelier (DELLA's MagPrune)."""

from __future__ import annotations

from collections.abc import Sequence

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.steps.fused import chance_of_rank
from mergeops.methods.steps.randomness import STEPS, draws
from mergeops.methods.steps.selection import magnitude_keys

_LOW = 2**32 - 1


def drop_by_rank(
    deltas: Tensor,
    densities: Sequence[float],
    epsilons: Sequence[float],
    keys: Sequence[int],
    offset: int,
    row_length: int,
    *,
    rescale: bool,
) -> Tensor:
    """Keep each entry with a probability that grows evenly with its rank, in place.

    The probability goes from ``density - epsilon`` for the smallest entry of a row to
    ``density + epsilon`` for the largest; epsilon gives way where this would leave 0 to 1, so the
    mean over a row is always the density. Equal magnitudes have equal probabilities.

    Args:
        deltas: ``[n, m]``, whole rows of the task vectors.
        densities: n shares, 0 to 1.
        epsilons: n half widths.
        keys: n random keys.
        offset: index of the first entry.
        row_length: entries of a row.
        rescale: divide each entry that stays by its probability, so that the expectation stays.
    """
    m = deltas.shape[1]
    for delta, density, epsilon, key in zip(deltas, densities, epsilons, keys, strict=True):
        if density == 1.0:
            continue
        start, step = chance_of_rank(density, epsilon, row_length)
        # MagPrune: the probability to stay, in steps, grows evenly with the rank in the row.
        ranks = twice_ranks(magnitude_keys(delta).view(-1, row_length)).view(-1)
        chances = ranks.double().mul_(step).add_(start).round_().clamp_(0, STEPS - 1)
        stays = draws(key, offset, m, delta.device) < chances.to(torch.int32)
        if rescale:
            delta /= chances.clamp_(min=1).mul_(1.0 / STEPS).to(delta.dtype)
        delta.masked_fill_(~stays, 0.0)
    return deltas


def twice_ranks(keys: Tensor) -> Tensor:
    """Twice the rank of each key within its row, counted from 0; equal keys share their mean rank.

    Args:
        keys: ``[r, m]`` int32 or int64, not negative.

    Returns:
        ``[r, m]`` int64, from 0 to ``2 * (m - 1)``.
    """
    m = keys.shape[1]
    values, columns = _sort_rows(keys)
    is_first = torch.ones_like(values, dtype=torch.bool)
    torch.ne(values[:, 1:], values[:, :-1], out=is_first[:, 1:])
    first = is_first.view(-1).nonzero()[:, 0]
    following = torch.cat([first[1:], first.new_tensor([keys.numel()])])
    # First and last index of a run of equal keys add up to twice the mean; then off with the rows'.
    in_row = 2 * (first % m) + (following - first - 1)
    spread = in_row.repeat_interleave(following - first, output_size=keys.numel())
    return torch.empty_like(spread).view(keys.shape).scatter_(1, columns, spread.view(keys.shape))


def _sort_rows(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in ascending order, and where its entries come from."""
    if keys.device.type != "cpu" or keys.dtype != torch.int32:
        values, columns = keys.sort(dim=1)
        return values, columns
    # numpy sorts plain integers ten times faster than torch sorts integers with their places, so
    # the place goes into the low half of one integer.
    packed = keys.to(torch.int64).bitwise_left_shift_(32)
    packed |= torch.arange(keys.shape[1])
    packed.numpy().sort(axis=1)
    return packed >> 32, packed & _LOW
