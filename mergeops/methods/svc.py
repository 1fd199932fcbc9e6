"""SVC: shrink the directions of the summed change that several tasks count more than once.

https://arxiv.org/abs/2602.05536.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.matrices import decompose, merge_matrices
from mergeops.schema import check_range


@dataclass(frozen=True)
class Svc:
    """Parameters of ``svc``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""
    least_response: float = 1.0
    """The least that a task's response along a direction counts; with 1 no direction grows."""

    def __post_init__(self) -> None:
        check_range("method.least_response", self.least_response, 1e-6, None)


@method("svc", version=2, source_parameters=("weight",), needs_base=True, takes_matrices=True)
def merge(base: Tensor, sources: Tensor, p: Svc, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order; of n equal ones the result is that fine-tune.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """
    combine = functools.partial(_calibrated_sum, least_response=p.least_response)
    return merge_matrices(base, sources, at.per_source["weight"], at, combine, scale=p.scale)


def _calibrated_sum(matrices: Tensor, noise: Tensor, *, least_response: float) -> Tensor:
    left, values, right = decompose(matrices.sum(dim=0), float(noise.norm()))
    # u_r^T Delta = sigma_r v_r^T of the sum, and u_r^T Delta_k of each task.
    summed = values[:, None] * right
    responses = []
    for matrix in matrices:
        own = left.T @ matrix
        length = own.square().sum(dim=1)
        # s_{r,k} = <u_r^T Delta, u_r^T Delta_k> / ||u_r^T Delta_k||^2; a task without a part in a
        # direction is not counted more than once there.
        response = (summed * own).sum(dim=1) / length.where(length > 0, 1.0)
        responses.append(response.clamp(min=least_response))
    # gamma_r = K / sum_k max(alpha, s_{r,k}).
    factors = len(matrices) / torch.stack(responses).sum(dim=0)
    return left * (values * factors) @ right
