"""Orthogonal matching pursuit: each vector as a sum of a few others.

Pati et al. 1993, https://doi.org/10.1109/ACSSC.1993.342465; for tokens Goddard and Fernandes Neto
2025, https://arxiv.org/abs/2506.06607, section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mergeops.lazy_torch import Tensor, torch
from mergeops.progress import Tick

SKETCH = 128
"""Dimensions in which atoms are chosen; vectors with more are projected at random (Johnson and
Lindenstrauss 1984), which keeps their products but for about 1 / sqrt(SKETCH)."""
CANDIDATES = 128
"""Atoms that are considered for a vector: those most alike."""
CHUNK = 512
"""Vectors at a time that atoms are chosen for."""
WEIGHED = 128
"""Vectors at a time whose atoms are weighed: all entries of those are gathered."""
DEPENDENT = 1e-4
"""Squared length of what an atom adds to those chosen, of its own: less is nothing new."""


class SparseSums(NamedTuple):
    """Vectors as sums of a few atoms each."""

    atoms: Tensor
    """``[n, k]`` int64, which."""
    weights: Tensor
    """``[n, k]`` float32; 0 where fewer are needed."""


def pursue(targets: Tensor, atoms: Tensor, k: int, progress: Tick | None = None) -> SparseSums:
    """Choose atoms one by one, each the one most alike to what those before leave, and weigh them
    by least squares.

    Args:
        targets: ``[n, d]`` float32.
        atoms: ``[s, d]`` float32, s at least k.
        k: atoms a target.
        progress: told how many targets are done.
    """
    seen, sketched = _sketched(atoms), _sketched(targets)
    # A zero vector is like nothing.
    units = seen / torch.linalg.norm(seen, dim=1, keepdim=True).clamp_min(1e-20)
    count = len(targets)
    chosen = torch.zeros(count, k, dtype=torch.int64)
    is_used = torch.zeros(count, k, dtype=torch.bool)
    weights = torch.zeros(count, k)
    # The atoms' products with each other are computed once; one such matrix is held at a time.
    alike = units @ units.T
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        chosen[part], is_used[part] = _choose(sketched[part], units, alike, k)
        if progress is not None:
            progress(min(start + CHUNK, count), 2 * count)
    del alike
    gram = atoms @ atoms.T
    for start in range(0, count, WEIGHED):
        part = slice(start, start + WEIGHED)
        weights[part] = _weigh(targets[part], atoms, gram, chosen[part], is_used[part])
        if progress is not None:
            progress(count + min(start + WEIGHED, count), 2 * count)
    return SparseSums(chosen, weights)


def _sketched(vectors: Tensor) -> Tensor:
    d = vectors.shape[1]
    if d <= SKETCH:
        return vectors
    drawn = np.random.Generator(np.random.Philox(key=d)).standard_normal((d, SKETCH), np.float32)
    return vectors @ torch.from_numpy(drawn)


def _choose(targets: Tensor, units: Tensor, alike: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Which atoms ``[b, k]``, and whether each is used; ``alike`` are their products ``[s, s]``.

    Products with what is left are updated with those of the atoms, made orthogonal one after the
    other (Rubinstein et al. 2008, "Batch-OMP").
    """
    products = targets @ units.T
    count = min(max(CANDIDATES, 2 * k), len(units))
    candidates = products.abs().topk(count, dim=1, sorted=False).indices
    left = products.gather(1, candidates)
    rows = torch.arange(len(targets))
    basis = torch.zeros(len(targets), k, count)
    is_free = torch.ones_like(left, dtype=torch.bool)
    picked = torch.zeros(len(targets), k, dtype=torch.int64)
    is_used = torch.zeros(len(targets), k, dtype=torch.bool)
    for i in range(k):
        best = left.abs().masked_fill(~is_free, -1.0).argmax(dim=1)
        is_free[rows, best] = False
        before = basis[:, :i]
        direction = alike[candidates[rows, best].unsqueeze(1), candidates]
        direction -= (before[rows, :, best].unsqueeze(1) @ before).squeeze(1)
        length = direction[rows, best]
        is_new = length > DEPENDENT
        direction /= length.clamp_min(DEPENDENT).sqrt().unsqueeze(1)
        direction *= is_new.unsqueeze(1)
        left -= direction * (left[rows, best] / length.clamp_min(DEPENDENT).sqrt()).unsqueeze(1)
        basis[:, i] = direction
        picked[:, i], is_used[:, i] = candidates[rows, best], is_new
    return picked, is_used


def _weigh(targets: Tensor, atoms: Tensor, gram: Tensor, chosen: Tensor, is_used: Tensor) -> Tensor:
    """Least squares: ``(A A^T) w = A t`` with the atoms ``[b, k]`` that are used as rows; ``gram``
    are the products ``[s, s]`` of all atoms."""
    used = is_used.double()
    products = (atoms[chosen] @ targets.unsqueeze(2)).double() * used.unsqueeze(2)
    own = gram[chosen.unsqueeze(2), chosen.unsqueeze(1)].double()
    own *= used.unsqueeze(2) * used.unsqueeze(1)
    # What is not used has a row of zeros: with a 1 in it its weight is 0.
    own += torch.diag_embed(1.0 - used)
    scale = own.diagonal(dim1=1, dim2=2).mean(dim=1)
    own += torch.diag_embed((1e-10 * scale).unsqueeze(1).expand(-1, own.shape[1]))
    found, _ = torch.linalg.solve_ex(own, products)
    weights: Tensor = found.squeeze(2).float() * is_used
    return weights
