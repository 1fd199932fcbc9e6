"""PCB-Merging against the paper's formula, written down in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mergeops.errors import ConfigError
from mergeops.kernels import BLOCK
from mergeops.methods.steps.selection import number, signed_keys
from mergeops.methods.steps.whole import merge_tensors

Array = npt.NDArray[np.float64]


def task_vectors(n: int, size: int) -> Array:
    """``[n, size]``, as a fine-tune changes weights."""
    return np.random.default_rng(1).standard_t(3, (n, size)) * 1e-3


def merge(deltas: Array, weights: list[float] | None = None, **parameters: Any) -> Array:
    """The merged change of task vectors."""
    sources = torch.tensor(deltas)
    per_source = {"weight": weights} if weights else None
    base = torch.zeros_like(sources[0])
    return np.asarray(merge_tensors("pcb", sources, base, parameters, per_source))


def expected(deltas: Array, weights: list[float], share: float, scale: float) -> Array:
    """What the entries of all tasks are averaged to."""
    n, size = deltas.shape
    magnitudes = np.sort(np.abs(deltas), axis=1)
    low = magnitudes[:, int(size * 0.0001), None]
    high = magnitudes[:, int(size * (1 - 0.0001) - 1), None]
    clipped = np.clip(np.abs(deltas), low, high)
    own = np.exp(n * ((clipped - low) / (high - low)) ** 2)
    balance = own * np.tanh(deltas * deltas.sum(axis=0))
    floor = np.sort(balance, axis=1)[:, int(size * (1 - share)), None]
    stakes = np.clip(balance, floor, None) - floor
    stakes /= stakes.max(axis=1, keepdims=True)
    numerator = (np.array(weights)[:, None] * np.sign(deltas) * clipped * stakes).sum(axis=0)
    result: Array = scale * numerator / np.clip(stakes.sum(axis=0), 1e-12, None)
    return result


@pytest.mark.parametrize(("n", "share"), [(2, 0.05), (3, 0.1), (5, 0.6), (3, 1.0)])
def test_entries_are_averaged_by_their_stakes(n: int, share: float) -> None:
    deltas = task_vectors(n, 30_000)
    weights = [1.0, 0.8, 1.3, 1.0, 0.5][:n]
    wanted = expected(deltas, weights, share, 1.1)
    assert np.allclose(merge(deltas, weights, density=share, scale=1.1), wanted, atol=1e-12)


def test_defaults_are_the_authors() -> None:
    deltas = task_vectors(3, 2000)
    assert np.allclose(merge(deltas), expected(deltas, [1.0] * 3, 0.1, 1.2), atol=1e-12)


def test_weights_in_float32_are_merged_as_in_float64() -> None:
    deltas = task_vectors(3, 2 * BLOCK + 9).astype(np.float32)
    merged = merge_tensors("pcb", torch.tensor(deltas), torch.zeros(2 * BLOCK + 9))
    assert np.allclose(merged, expected(deltas.astype(np.float64), [1.0] * 3, 0.1, 1.2), atol=1e-7)


def test_a_task_that_changes_nothing_has_no_stake() -> None:
    deltas = task_vectors(2, 4000)
    deltas[1] = 0.0
    merged = merge(deltas, density=0.3, scale=1.0)
    decided = np.flatnonzero(merged)
    # The largest is at the floor of 0.01 % of the entries that is clipped.
    longest = np.sort(np.abs(deltas[0]))[-2]
    assert len(decided) == 0.3 * 4000 - 1
    assert np.allclose(merged[decided], np.clip(deltas[0], -longest, longest)[decided])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_order_like_numbers_of_both_signs(dtype: torch.dtype) -> None:
    numbers = [-1e30, -3.5, -1.0, -1e-30, 0.0, 1e-30, 1.0, 3.5, 1e30]
    values = torch.tensor(numbers, dtype=dtype)
    keys = signed_keys(values).tolist()
    assert keys == sorted(set(keys)) and keys[0] >= 0
    found = torch.tensor([number(key, dtype) for key in keys], dtype=dtype)
    assert torch.allclose(found, values, rtol=2 * torch.finfo(dtype).eps, atol=1e-40)


def test_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.density is 1.5"):
        merge(task_vectors(2, 10), density=1.5)
