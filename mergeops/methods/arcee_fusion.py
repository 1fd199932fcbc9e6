"""Arcee Fusion: take over only the most important changes of one source.

Arcee AI 2025, https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration.
A change's importance is its size times the divergence of its row's softmax from the base's;
important is what lies 1.5 interquartile ranges or more above the median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.counting import Magnitudes
from mergeops.methods.steps.entry_formulas import Important, row_divergences
from mergeops.methods.steps.fused import Array, Bits
from mergeops.methods.steps.reduction import row_sums
from mergeops.methods.steps.selection import find_keys, magnitude, magnitude_keys
from mergeops.methods.steps.sparsify import always

RANGES = 1.5
"""Interquartile ranges above the median where importance begins."""
SOFTENING = 1e-8
"""Added to probabilities before their logarithm."""


@dataclass(frozen=True)
class ArceeFusion:
    """Parameters of ``arcee_fusion``: there are none."""


class Importance(NamedTuple):
    """What ``merge`` needs to know of the whole tensor."""

    threshold: float
    divergences: Tensor
    """``[rows]`` float32."""


def statistics(scan: Scan, p: ArceeFusion, at: MethodView) -> Importance:
    """The rows' divergences (scratch O(rows)) and the threshold of importance."""

    def divergences(base: Tensor, sources: Tensor, offset: int) -> Tensor:
        shape = (-1, at.row_length)
        return _divergence(sources[0].view(shape), base.view(shape))

    def fused(bits: Bits) -> Array | None:
        return row_divergences(bits, at.row_length, SOFTENING)

    of_rows = torch.cat(list(map(torch.as_tensor, scan(divergences, fused=fused))))

    def keys(base: Tensor | None, sources: Tensor, row: int, offset: int) -> Tensor:
        assert base is not None
        return magnitude_keys(_importance(base, sources[0], of_rows, offset, at.row_length))

    # A quartile is an entry: the one at that share of the way through all, rounded down.
    places = [(0, at.numel - quarter * (at.numel - 1) // 4) for quarter in (1, 2, 3)]
    counted = Magnitudes(of_rows.numpy(), at.row_length)
    quartiles = find_keys(scan, keys, places, counted)
    low, median, high = (magnitude(key, torch.float32) for key in quartiles)
    # Median + 1.5 interquartile ranges.
    return Importance(median + RANGES * (high - low), of_rows)


def formula(p: ArceeFusion, at: MethodView, n: int) -> Important:
    """What ``merge`` does."""
    of_tensor: Importance = at.statistics
    changes = Magnitudes(of_tensor.divergences.numpy(), at.row_length)
    return Important(changes, of_tensor.threshold)


@method(
    "arcee_fusion",
    needs_base=True,
    max_sources=1,
    statistics=statistics,
    whole_rows=always,
    formula=formula,
)
def merge(base: Tensor, sources: Tensor, p: ArceeFusion, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[1, m]``, whole rows.
        p: parameters.
        at: gives offset, length of a row, divergences and threshold.

    Returns:
        ``[m]``, the source where its change is important, ``base`` elsewhere.
    """
    of_tensor: Importance = at.statistics
    source = sources[0]
    importance = _importance(base, source, of_tensor.divergences, at.offset, at.row_length)
    return torch.where(importance.double() >= of_tensor.threshold, source, base)


def _importance(
    base: Tensor, source: Tensor, divergences: Tensor, offset: int, row_length: int
) -> Tensor:
    """Size of the change times divergence of its row: ``[m]`` float32."""
    first = offset // row_length
    change = (source - base).abs().float().view(-1, row_length)
    of_rows = divergences[first : first + len(change)].to(change.device)
    return (change * of_rows[:, None]).view(-1)


def _divergence(source: Tensor, base: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the rows' softmax: ``[r, m]`` twice -> ``[r]`` float32.

    In float64, since it is the small difference of two sums; float32 would leave only noise of
    two models that are close. Rounded at the end, so that devices agree, whose exponentials differ
    in the last bit: for changes of the weights down to about 1e-3. Below that the noise of the
    difference reaches float32 in a few rows of a hundred, and may move an entry that lies at the
    threshold.
    """
    # Sum of p log(p / q), p being the source's and q the base's softmax.
    ours, theirs = _softmax(source), _softmax(base)
    return row_sums(ours * (ours.log() - theirs.log())).clamp_(min=0.0).float()


def _softmax(rows: Tensor) -> Tensor:
    """The rows' softmax in float64, softened; the largest entry is taken off, so none overflows."""
    exact = rows.double()
    powers = (exact - exact.amax(dim=1, keepdim=True)).exp_()
    return powers.div_(row_sums(powers)[:, None]).add_(SOFTENING)
