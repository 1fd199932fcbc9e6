"""DC-Merge against the paper's algorithm, written down in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch

from mergeops.errors import ConfigError
from mergeops.methods.steps.whole import merge_tensors

Array = npt.NDArray[np.float64]


def task_vectors(shape: tuple[int, ...], n: int) -> Array:
    """``[n, *shape]``."""
    return np.random.default_rng(0).standard_normal((n, *shape))


def merge(deltas: Array, **parameters: Any) -> Array:
    """The merged change of task vectors."""
    sources = torch.tensor(deltas)
    merged = merge_tensors("dc_merge", sources, torch.zeros_like(sources[0]), parameters)
    return np.asarray(merged)


def expected(
    deltas: Array, kept: int, energy: Any, *, share: float, vote: bool, mask: bool
) -> Array:
    """Algorithm 1; ``energy`` balances singular values."""
    n = len(deltas)
    lefts, rights, balanced = [], [], []
    for delta in deltas:
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        lefts.append(left[:, :kept])
        rights.append(right[:kept])
        balanced.append(left[:, :kept] @ np.diag(energy(values[:kept])) @ right[:kept])
    u = scipy.linalg.polar(np.concatenate(lefts, axis=1))[0]
    v = scipy.linalg.polar(np.concatenate(rights))[0]
    cores = np.stack([u.T @ task @ v.T for task in balanced])
    for core in cores:
        smallest = np.sort(np.abs(core).ravel())[-max(int(share * core.size), 1)]
        core[np.abs(core) < smallest] = 0
    merged = cores.sum(axis=0)
    if vote:
        for i, j in np.ndindex(*merged.shape):
            agreeing = [core[i, j] for core in cores if core[i, j] * merged[i, j] > 0]
            merged[i, j] = np.mean(agreeing) if agreeing else 0.0
    if mask:
        merged *= np.kron(np.eye(n), np.ones((kept, kept)))
    result: Array = u @ merged @ v
    return result


def mean(values: Array) -> Array:
    return np.full_like(values, values.mean())


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (12, 12)])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("vote", [True, False])
def test_tasks_are_merged_in_a_common_basis(shape: tuple[int, int], mask: bool, vote: bool) -> None:
    deltas = task_vectors(shape, 3)
    kept = min(shape) // 3
    for share in (0.001, 0.3, 1.0):
        wanted = expected(deltas, kept, mean, share=share, vote=vote, mask=mask)
        merged = merge(deltas, density=share, vote=vote, mask=mask, scale=0.5)
        assert np.allclose(merged, 0.5 * wanted, atol=1e-12)


def test_singular_values_are_balanced_in_equal_steps_or_left() -> None:
    deltas = task_vectors((12, 12), 3)
    how = {"share": 0.2, "vote": True, "mask": True}

    def falling(values: Array) -> Array:
        # From 5 to 1, or as steep as the values are, in equal steps, of the same sum.
        steps = np.linspace(min(5.0, values[0] / values[-1]), 1.0, len(values))
        return values.sum() * steps / steps.sum()

    steep = deltas * np.array([1.0, 1.0, 10.0])[:, None, None]
    steep[2, :, 0] *= 100
    wanted = expected(steep, 4, falling, **how)
    assert np.allclose(merge(steep, density=0.2, rho=5.0), wanted, atol=1e-9)
    plain = expected(deltas, 4, lambda values: values, **how)
    assert np.allclose(merge(deltas, density=0.2, smooth=False), plain, atol=1e-12)


def test_rank_says_how_many_directions_of_a_task_stay() -> None:
    deltas = task_vectors((12, 9), 2)
    wanted = expected(deltas, 2, mean, share=1.0, vote=True, mask=True)
    assert np.allclose(merge(deltas, rank=2, density=1.0), wanted, atol=1e-12)


def test_loras_keep_their_directions_without_a_rank_set() -> None:
    deltas = task_vectors((12, 2), 2) @ task_vectors((2, 10), 2)
    wanted = expected(deltas, 2, mean, share=1.0, vote=True, mask=True)
    assert np.allclose(merge(deltas, density=1.0), wanted, atol=1e-12)


def test_orthogonal_tasks_of_equal_values_are_all_kept() -> None:
    deltas = np.zeros((2, 8, 8))
    deltas[0, :3, :3] = 2.0 * np.eye(3)
    deltas[1, 3:6, 3:6] = 3.0 * np.eye(3)
    assert np.allclose(merge(deltas, density=1.0), deltas.sum(axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rank", -1, "method.rank is -1"),
        ("rho", 0.5, "method.rho is 0.5"),
        ("density", 1.5, "method.density is 1.5"),
    ],
)
def test_parameters_out_of_range_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge(task_vectors((8, 6), 2), **{key: value})
