"""RegMean: the weights whose outputs are nearest to those of every source, on its own inputs.

Jin et al. 2023, https://arxiv.org/abs/2212.09849, section 3. It needs no base, but the second
moments G_k = X_k^T X_k / tokens of the inputs of each linear layer, measured with ``prompts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.layer_activations import LayerActivations
from mergeops.methods.steps.matrices import negligible
from mergeops.methods.steps.weighting import weighted_sum
from mergeops.schema import check_range

NOISE = (4 * 2.0**-23) ** 2
"""Second moment of what rounding to float32 leaves of an input of length 1, with some room."""


@dataclass(frozen=True)
class RegMean:
    """Parameters of ``regmean``."""

    alpha: float = 0.9
    """Factor on what different inputs have in common (off the diagonal of G_k); 1 is the exact
    regression, 0 averages each input by itself. The authors take 0.9, and 0.1 for T5."""

    def __post_init__(self) -> None:
        check_range("method.alpha", self.alpha, 0.0, 1.0)


@method("regmean", activations="gram", takes_matrices=True)
def merge(base: Tensor | None, sources: Tensor, p: RegMean, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used.
        sources: ``[n, m]``, recipe order; of equal ones the result is that model.
        p: parameters.
        at: gives the shape and the measured moments.

    Returns:
        ``[m]``. Tensors of which nothing was measured, embeddings and heads: the mean.
    """
    exact = sources.double()
    # Differences from the first source make the mean of equal ones exact.
    mean = exact[0] + weighted_sum(exact - exact[0], [1.0 / len(exact)] * len(exact))
    if at.activations is None or not at.is_matrix:
        return mean.to(sources.dtype)
    differences = (exact - mean).view(-1, *at.shape)
    return (mean + _regression(differences, at.activations, p.alpha).flatten()).to(sources.dtype)


def _regression(differences: Tensor, measured: Sequence[LayerActivations], alpha: float) -> Tensor:
    """``(sum_k D_k G_k) (sum_k G_k)^+`` of the differences ``[n, outputs, inputs]`` from the mean,
    which is what the formula gives of the weights, less the mean."""
    inputs_first = measured[0].inputs_first
    if inputs_first:
        differences = differences.transpose(1, 2)
    target = torch.zeros_like(differences[0])
    whole = torch.zeros_like(measured[0].values, device=differences.device)
    for difference, layer in zip(differences, measured, strict=True):
        moments = layer.values.to(differences.device) / layer.tokens
        # alpha G + (1 - alpha) diag(G).
        moments = moments * alpha + torch.diag(moments.diagonal() * (1.0 - alpha))
        target += difference @ moments
        whole += moments
    solved = _divided(target, whole, alpha)
    return solved.T.contiguous() if inputs_first else solved


def _divided(target: Tensor, whole: Tensor, alpha: float) -> Tensor:
    """``target @ whole^+``; directions of which no token had a part stay as the mean has them."""
    size = whole.diagonal()
    # Inputs are float32: what is shorter than their rounding is no part of them. A norm's outputs
    # have such a direction, and dividing by it would give weights of thousands.
    noise = NOISE * len(whole) * float(size.max())
    seen = (size > noise).nonzero()[:, 0]
    part, divided = whole[seen][:, seen], torch.zeros_like(target)
    # No eigenvalue of alpha G + (1 - alpha) diag(G) is less than this.
    least = (1.0 - alpha) * float(size[seen].min()) if len(seen) else 0.0
    if least > negligible(part.diagonal(), part.shape) * len(part):
        factor = torch.linalg.cholesky(part)
        divided[:, seen] = torch.cholesky_solve(target[:, seen].T, factor).T
        return divided
    values, vectors = torch.linalg.eigh(part)
    vectors = vectors[:, values > noise]
    divided[:, seen] = target[:, seen] @ vectors / values[values > noise] @ vectors.T
    return divided
