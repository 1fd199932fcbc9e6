"""WUDI: the change that interferes least with every task's own, in closed form.

Cheng et al. 2025, https://arxiv.org/abs/2503.08099, minimise
``sum_k ||(Delta - Delta_k) Delta_k^T||^2 / ||Delta_k||^2`` by descent. Its minimum is known:
https://arxiv.org/abs/2606.07289 (SWUDI, ASWUDI), which also filters the directions.

With ``C = sum_k Delta_k^T Delta_k / n_k``, ``D = sum_k Delta_k Delta_k^T Delta_k / n_k`` and
``C = V diag(l) V^T``, a filter f of the eigenvalues gives
``Delta = S (I - V diag(f) V^T) + D V diag(f / l) V^T``, where S is the sum of the task vectors;
f = 1 is the exact minimum, which does not depend on S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.matrices import merge_matrices, negligible
from mergeops.schema import check_range

LEAST_EIGENVALUE = 1e-8
"""What a filtered direction is divided by at least, as in the authors' code."""

Filter = Callable[[Tensor, int], Tensor]
"""``filter(eigenvalues [k], the largest first; columns) -> [k]``: how far each direction is solved
for, from 0 to 1."""


@dataclass(frozen=True)
class Wudi:
    """Parameters of ``wudi``, ``aswudi`` and ``actmat``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""


@dataclass(frozen=True)
class Swudi:
    """Parameters of ``swudi``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""
    time: float = 300.0
    """How long a descent the filter stands for: a direction of eigenvalue l is solved for by
    1 - exp(-time * l)."""
    rank_share: float = 0.85
    """Share of the columns' directions that are solved for, those of the largest eigenvalues; the
    authors take 0.85 for language models, 0.65 for CLIP."""

    def __post_init__(self) -> None:
        check_range("method.time", self.time, 0.0, None)
        check_range("method.rank_share", self.rank_share, 0.0, 1.0)


@method("wudi", version=2, source_parameters=("weight",), needs_base=True, takes_matrices=True)
def merge_exactly(base: Tensor, sources: Tensor, p: Wudi, at: MethodView) -> Tensor:
    """WUDI in closed form: the change that interferes least with every task's own.

    Cheng et al. 2025, https://arxiv.org/abs/2503.08099, equation 6, solved exactly. Their descent
    of 300 steps of one absolute size stops elsewhere.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``; a fine-tune given several times counts once.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """
    return _merge(base, sources, p, at, None)


@method("actmat", version=2, source_parameters=("weight",), needs_base=True, takes_matrices=True)
def merge_by_covariance(base: Tensor, sources: Tensor, p: Wudi, at: MethodView) -> Tensor:
    """ACTMat: RegMean without data, a task's change standing for its inputs' covariance.

    https://arxiv.org/abs/2604.01329: as WUDI, with every task weighed by its squared length.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``; of equal ones the result is that fine-tune.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """

    def combine(matrices: Tensor, noise: Tensor) -> Tensor:
        return _minimum(matrices, noise, [1.0] * len(matrices), None)

    return merge_matrices(base, sources, at.per_source["weight"], at, combine, scale=p.scale)


@method("swudi", version=2, source_parameters=("weight",), needs_base=True, takes_matrices=True)
def merge_smoothly(base: Tensor, sources: Tensor, p: Swudi, at: MethodView) -> Tensor:
    """SWUDI: WUDI in closed form, the smaller directions left as the sum of the task vectors.

    https://arxiv.org/abs/2606.07289. The authors scale the change of large language models by
    about one over the number of tasks.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """

    def solved(eigenvalues: Tensor, columns: int) -> Tensor:
        # f_r = 1 - exp(-t l_r) for the largest R, else 0.
        shares = -torch.expm1(-p.time * eigenvalues)
        shares[int(p.rank_share * columns) :] = 0.0
        return shares

    return _merge(base, sources, p, at, solved)


@method("aswudi", version=2, source_parameters=("weight",), needs_base=True, takes_matrices=True)
def merge_adaptively(base: Tensor, sources: Tensor, p: Wudi, at: MethodView) -> Tensor:
    """ASWUDI: WUDI in closed form for as many directions as a matrix effectively has.

    https://arxiv.org/abs/2606.07289, the rule of participation.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """

    def solved(eigenvalues: Tensor, columns: int) -> Tensor:
        # R = ceil((sum_r sqrt(l_r))^2 / sum_r l_r).
        rank = math.ceil(float(eigenvalues.sqrt().sum() ** 2 / eigenvalues.sum()))
        shares = torch.zeros_like(eigenvalues)
        shares[:rank] = 1.0
        return shares

    return _merge(base, sources, p, at, solved)


def _merge(
    base: Tensor, sources: Tensor, p: Wudi | Swudi, at: MethodView, solved: Filter | None
) -> Tensor:
    """Each matrix by the minimum, with tasks weighed by one over their squared length."""

    def combine(matrices: Tensor, noise: Tensor) -> Tensor:
        return _minimum(matrices, noise, _squared_lengths(matrices), solved)

    return merge_matrices(base, sources, at.per_source["weight"], at, combine, scale=p.scale)


def _squared_lengths(matrices: Tensor) -> list[float]:
    """``||Delta_k||^2`` of each task, 1 of one that changes nothing."""
    return [length if length > 0 else 1.0 for length in matrices.square().sum(dim=(1, 2)).tolist()]


def _minimum(
    matrices: Tensor, noise: Tensor, divisors: list[float], solved: Filter | None
) -> Tensor:
    """Delta of the file's docstring for ``[n, r, c]``; no filter is f = 1."""
    rows, columns = matrices.shape[1:]
    # A^T A = C, A^T-wise stacked: [n * r, c].
    stacked = torch.cat(
        [matrix / math.sqrt(divisor) for matrix, divisor in zip(matrices, divisors, strict=True)]
    )
    if len(stacked) < columns:
        # The other directions are no task's: each term is zero there.
        _, values, right = torch.linalg.svd(stacked, full_matrices=False)
        eigenvalues = values * values
    else:
        eigenvalues, vectors = torch.linalg.eigh(stacked.T @ stacked)
        eigenvalues, right = eigenvalues.flip(0).clamp(min=0.0), vectors.flip(1).T
    # What C gets from the rounding of the tasks.
    rounded = float((noise.square() / noise.new_tensor(divisors)).sum())
    rank = int((eigenvalues > max(negligible(eigenvalues, (columns,)), rounded)).sum())
    if rank == 0:
        return torch.zeros_like(matrices[0])
    eigenvalues, right = eigenvalues[:rank], right[:rank]
    # D V: sum_k Delta_k Delta_k^T Delta_k V / n_k.
    along = torch.zeros(rows, rank, dtype=matrices.dtype, device=matrices.device)
    for matrix, divisor in zip(matrices, divisors, strict=True):
        along += matrix @ (matrix.T @ (matrix @ right.T)) / divisor
    if solved is None:
        exact: Tensor = along / eigenvalues @ right
        return exact
    shares = solved(eigenvalues, columns)
    total = matrices.sum(dim=0)
    unsolved = total - total @ right.T * shares @ right
    filtered: Tensor = unsolved + along * (shares / eigenvalues.clamp(min=LEAST_EIGENVALUE)) @ right
    return filtered
