"""PCB-Merging: tasks compete for each entry; small stakes drop out, the rest is averaged by stake.

Du et al. 2024, https://arxiv.org/abs/2410.02396, section 3 (parameter competition balancing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.counting import Magnitudes
from mergeops.methods.steps.selection import find_keys, magnitude, number, signed_keys
from mergeops.methods.steps.sparsify import delta_keys
from mergeops.methods.steps.weighting import multiply, weighted_sum
from mergeops.schema import check_range

TAIL = 0.0001
"""Share of the magnitudes that is clipped at either end, as in the authors' code."""
LEAST_STAKE = 1e-12
"""What the sum of the stakes in an entry counts at least."""


@dataclass(frozen=True)
class Pcb:
    """Parameters of ``pcb``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none; no part of the competition."""
    density: float = 0.1
    """Share of each task's entries in a tensor that keep a stake; the authors take 0.05 to 0.2."""
    scale: float = 1.2
    """Factor on the merged change (the paper's lambda)."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)


class Competition(NamedTuple):
    """What ``merge`` needs to know of the whole tensor: keys (see ``selection``), one a source."""

    smallest: tuple[int, ...]
    """Magnitudes of the task vector's entries count at least so much."""
    largest: tuple[int, ...]
    """... and at most so much."""
    floors: tuple[int, ...]
    """The balance from which an entry has a stake."""
    tops: tuple[int, ...]
    """The largest balance."""


def statistics(scan: Scan, p: Pcb, at: MethodView) -> Competition:
    """Two scans for the magnitudes that are clipped, and two for the balances that have a stake."""
    n, numel = len(at.per_source["weight"]), at.numel
    # Places from the top of the entries with these indices from below.
    low = numel - int(numel * TAIL)
    high = numel - max(int(numel * (1 - TAIL) - 1), 0)
    smallest, largest = _pairs(
        find_keys(scan, delta_keys, _targets(n, low, high), counted=Magnitudes())
    )

    def balance_keys(base: Tensor | None, sources: Tensor, row: int, offset: int) -> Tensor:
        assert base is not None
        clips = _clips(smallest, largest, sources.dtype)
        deltas = sources.double() - base.double()
        return signed_keys(_balance(deltas, row, clips[row], sources.dtype))

    kept = numel - min(int(numel * (1 - p.density)), numel - 1)
    floors, tops = _pairs(find_keys(scan, balance_keys, _targets(n, kept, 1)))
    return Competition(smallest, largest, floors, tops)


@method("pcb", source_parameters=("weight",), needs_base=True, min_sources=2, statistics=statistics)
def merge(base: Tensor, sources: Tensor, p: Pcb, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, at least two; of equal ones the result is not that fine-tune.
        p: parameters.
        at: gives the weights and the competition.

    Returns:
        ``[m]``. Entries in which no task has a stake stay at ``base``.
    """
    of_tensor: Competition = at.statistics
    deltas = sources.double() - base.double()
    clips = _clips(of_tensor.smallest, of_tensor.largest, sources.dtype)
    stakes = torch.empty_like(deltas)
    for row, (floor, top) in enumerate(zip(of_tensor.floors, of_tensor.tops, strict=True)):
        balance = _balance(deltas, row, clips[row], sources.dtype)
        least, most = (number(key, sources.dtype) for key in (floor, top))
        if least < most:
            # Stakes run from 0 at the floor to 1; however small, one alone decides an entry.
            stakes[row] = ((balance.double() - least) / (most - least)).clamp_(max=1.0)
            stakes[row].masked_fill_(signed_keys(balance) <= floor, 0.0)
        else:
            # A task that changes nothing has none.
            stakes[row] = (signed_keys(balance) >= floor) & (balance > 0.0)
    for delta, clip in zip(deltas, clips, strict=True):
        delta.copy_(delta.sign() * delta.abs().clamp_(*clip))
    whole = weighted_sum(stakes, [1.0] * len(stakes)).clamp_(min=LEAST_STAKE)
    change = weighted_sum(
        multiply(deltas, at.per_source["weight"]) * stakes, [p.scale] * len(stakes)
    )
    return (base.double() + change / whole).to(base.dtype)


def _balance(deltas: Tensor, row: int, clip: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """How much a task's entries weigh in the competition: ``[n, m]`` float64 -> ``[m]``.

    Rounded to the dtype of the weights, so that what was counted is what is compared.
    """
    n, (smallest, largest) = len(deltas), clip
    size = deltas[row].abs().clamp_(smallest, largest).sub_(smallest)
    if largest > smallest:
        size /= largest - smallest
    # Within the task: exp(n size^2), over exp(n), which keeps it finite and changes no stake.
    within = size.square_().sub_(1.0).mul_(n).exp_()
    # Between tasks: tanh(tau_k * sum_j tau_j).
    return (within * torch.tanh(deltas[row] * weighted_sum(deltas, [1.0] * n))).to(dtype)


def _clips(
    smallest: Sequence[int], largest: Sequence[int], dtype: torch.dtype
) -> list[tuple[float, float]]:
    return [
        (magnitude(low, dtype), max(magnitude(low, dtype), magnitude(high, dtype)))
        for low, high in zip(smallest, largest, strict=True)
    ]


def _targets(n: int, *places: int) -> list[tuple[int, int]]:
    """These places from the top, in each of n rows."""
    return [(row, place) for place in places for row in range(n)]


def _pairs(keys: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What was found for the first place of ``_targets``, and for the second."""
    n = len(keys) // 2
    return tuple(keys[:n]), tuple(keys[n:])
