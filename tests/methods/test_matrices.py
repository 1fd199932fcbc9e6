"""Methods that take whole matrices: what their papers promise, by other means than theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from mergeops import methods
from mergeops.methods.steps.whole import merge_tensors

NAMES = [
    "actmat",
    "aswudi",
    "cart",
    "dc_merge",
    "iso_c",
    "iso_cts",
    "svc",
    "swudi",
    "tsv_m",
    "wudi",
]
OF_ONE = ["actmat", "aswudi", "svc", "swudi", "tsv_m", "wudi"]
"""Those that give one source back."""
OF_EQUAL = ["actmat", "cart", "svc", "wudi"]
"""Those that give back what several equal sources are."""


def task_vectors(shape: tuple[int, ...], n: int, seed: int = 0) -> torch.Tensor:
    """``[n, *shape]`` float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, *shape), generator=generator, dtype=torch.float64)


def merge(name: str, deltas: torch.Tensor, **parameters: Any) -> torch.Tensor:
    """The merged change of task vectors."""
    return merge_tensors(name, deltas, torch.zeros_like(deltas[0]), parameters)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (7, 7), (2, 9, 8)])
@pytest.mark.parametrize("name", OF_ONE)
def test_one_task_is_itself(name: str, shape: tuple[int, ...]) -> None:
    deltas = task_vectors(shape, 1)
    assert torch.allclose(merge(name, deltas), deltas[0], atol=1e-9)


@pytest.mark.parametrize("name", OF_EQUAL)
def test_equal_sources_are_counted_once(name: str) -> None:
    delta = task_vectors((8, 6), 1)[0]
    assert torch.allclose(merge(name, torch.stack([delta] * 3)), delta, atol=1e-9)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"cart"}))
def test_a_task_that_changes_nothing_adds_no_direction(name: str) -> None:
    """The null space of its matrix has no basis of its own, so none may be used."""
    deltas = task_vectors((8, 6), 3)
    deltas[1] = 0
    deltas[2, :, 1:] = 0
    merged = merge(name, deltas)
    turned, _ = torch.linalg.qr(task_vectors((8, 8), 1, seed=5)[0])
    # In another basis of the rows, the result is the same in that basis.
    assert torch.allclose(merge(name, turned @ deltas), turned @ merged, atol=1e-8)


def test_tsv_m_makes_the_directions_of_all_tasks_orthogonal() -> None:
    deltas = task_vectors((9, 6), 3)
    lefts, values, rights = [], [], []
    for delta in deltas.numpy():
        left, value, right = np.linalg.svd(delta, full_matrices=False)
        lefts.append(left[:, :2])
        values += value[:2].tolist()
        rights.append(right[:2])
    left, _ = scipy.linalg.polar(np.concatenate(lefts, axis=1))
    right, _ = scipy.linalg.polar(np.concatenate(rights))
    expected = left @ np.diag(values) @ right
    assert np.allclose(merge("tsv_m", deltas), expected)
    assert np.allclose(merge("tsv_m", deltas, scale=0.5), 0.5 * expected)
    # Its singular values are those that the tasks' main directions have.
    assert np.allclose(np.linalg.svd(expected)[1], sorted(values, reverse=True))


def test_iso_c_gives_the_sum_its_mean_length_in_all_directions() -> None:
    deltas = task_vectors((8, 6), 3)
    merged, total = merge("iso_c", deltas), deltas.sum(dim=0)
    lengths = torch.linalg.svdvals(total)
    assert torch.allclose(torch.linalg.svdvals(merged), lengths.mean().expand(6))
    # And is the polar factor of the sum: M^T sum is symmetric and positive.
    product = merged.T @ total
    assert torch.allclose(product, product.T) and torch.linalg.eigvalsh(product).min() > 0


@pytest.mark.parametrize(("common_share", "common"), [(0.8, 3), (0.5, 3), (1.0, 6), (0.0, 0)])
def test_iso_cts_takes_common_directions_and_each_tasks_own(
    common_share: float, common: int
) -> None:
    deltas = task_vectors((8, 6), 3).numpy()
    own = (6 - common) // 3
    left, values, right = np.linalg.svd(deltas.sum(axis=0), full_matrices=False)
    lefts, sizes, rights = [left[:, :common]], values[:common].tolist(), [right[:common]]
    away = np.eye(8) - left[:, :common] @ left[:, :common].T
    for delta in deltas:
        one, value, other = np.linalg.svd(away @ delta, full_matrices=False)
        lefts.append(one[:, :own])
        sizes += value[:own].tolist()
        rights.append(other[:own])
    turned = scipy.linalg.polar(np.concatenate(lefts, axis=1))[0]
    expected = np.mean(sizes) * turned @ scipy.linalg.polar(np.concatenate(rights))[0]
    merged = merge("iso_cts", torch.tensor(deltas), common_share=common_share)
    assert np.allclose(merged, expected)


@pytest.mark.parametrize("shape", [(8, 6), (4, 20), (2, 30)])
@pytest.mark.parametrize("name", ["wudi", "actmat"])
def test_wudi_is_where_its_loss_has_no_slope(name: str, shape: tuple[int, ...]) -> None:
    deltas = task_vectors(shape, 3)
    deltas[1] *= 3
    merged = merge(name, deltas).requires_grad_()
    lengths = deltas.square().sum(dim=(1, 2)) if name == "wudi" else torch.ones(3)
    losses = ((merged - deltas) @ deltas.transpose(1, 2)).square().sum(dim=(1, 2)) / lengths
    (slope,) = torch.autograd.grad(losses.sum(), merged)
    scale = float((deltas[1] @ deltas[1].T @ deltas[1]).abs().max())
    assert float(slope.abs().max()) < 1e-10 * scale


def test_swudi_without_a_filter_is_wudi_and_with_all_of_it_the_sum() -> None:
    deltas = task_vectors((8, 6), 3)
    exact = merge("wudi", deltas)
    assert torch.allclose(merge("swudi", deltas, time=1e9, rank_share=1.0), exact)
    assert torch.allclose(merge("swudi", deltas, rank_share=0.0), deltas.sum(dim=0))
    assert torch.allclose(merge("swudi", deltas, time=0.0), deltas.sum(dim=0))


def test_swudi_and_aswudi_solve_for_the_largest_directions() -> None:
    deltas = task_vectors((8, 6), 3)
    lengths = deltas.square().sum(dim=(1, 2))[:, None, None]
    c = (deltas.transpose(1, 2) @ deltas / lengths).sum(dim=0)
    d = (deltas @ deltas.transpose(1, 2) @ deltas / lengths).sum(dim=0)
    values, vectors = torch.linalg.eigh(c)
    effective = int(torch.ceil(values.sqrt().sum() ** 2 / values.sum()))
    for name, parameters, rank, shares in (
        ("swudi", {"time": 2.0, "rank_share": 0.5}, 3, 1 - torch.exp(-2.0 * values)),
        ("aswudi", {}, effective, torch.ones(6, dtype=torch.float64)),
    ):
        shares = shares.where(torch.arange(6) >= 6 - rank, 0.0)
        solved = vectors @ torch.diag(shares) @ vectors.T
        inverse = vectors @ torch.diag(shares / values) @ vectors.T
        total = deltas.sum(dim=0)
        assert torch.allclose(
            merge(name, deltas, **parameters), total - total @ solved + d @ inverse
        )


def test_svc_shrinks_what_several_tasks_count() -> None:
    deltas = task_vectors((8, 6), 3).numpy()
    left, values, right = np.linalg.svd(deltas.sum(axis=0), full_matrices=False)
    for least in (0.5, 1.0):
        expected = np.zeros((8, 6))
        for r in range(6):
            responses = []
            for delta in deltas:
                own, summed = left[:, r] @ delta, left[:, r] @ deltas.sum(axis=0)
                responses.append(max(least, float(summed @ own) / float(own @ own)))
            expected += 3 / sum(responses) * values[r] * np.outer(left[:, r], right[r])
        assert np.allclose(merge("svc", torch.tensor(deltas), least_response=least), expected)


def test_cart_adds_the_main_directions_around_the_mean() -> None:
    weights = task_vectors((8, 6), 3)
    mean = weights.mean(dim=0)
    expected = mean.clone()
    for weight in weights:
        left, values, right = torch.linalg.svd(weight - mean, full_matrices=False)
        expected += 2.0 * values[0] * torch.outer(left[:, 0], right[0])
    merged = merge_tensors("cart", weights, None, {"scale": 2.0, "rank_share": 0.2})
    assert torch.allclose(merged, expected)
    # All directions of all differences add up to nothing.
    assert torch.allclose(merge_tensors("cart", weights, None, {"rank_share": 1.0}), mean)
    assert merge_tensors("cart", weights, None, {"rank_share": 0.0}).equal(
        merge_tensors("cart", weights.flatten(1), None).view(8, 6)
    )


@pytest.mark.parametrize("name", NAMES)
def test_experts_are_matrices_of_their_own(name: str) -> None:
    weights = task_vectors((4, 9, 8), 3)
    base = torch.zeros_like(weights[0]) if methods.get(name).needs_base else None
    merged = merge_tensors(name, weights, base)
    assert merged.equal(merge_tensors(name, weights, base, chunk=72))
    for expert in range(4):
        of_expert = base[expert] if base is not None else None
        alone = merge_tensors(name, weights[:, expert], of_expert)
        assert torch.allclose(merged[expert], alone, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_matrix_gets_the_mean(name: str) -> None:
    method = methods.get(name)
    for shape, has_token_rows in (((6,), False), ((9, 5, 4), False), ((9, 5), True)):
        place = methods.MethodView(
            numel=torch.Size(shape).numel(),
            per_source={"weight": (1.0, 1.0)},
            shape=shape,
            has_token_rows=has_token_rows,
        )
        weights = task_vectors(shape, 2).flatten(1)
        merged = method.merge(torch.zeros_like(weights[0]), weights, method.parameters(), place)
        assert torch.allclose(merged, weights.mean(dim=0))
        assert method.chunk_length(method.parameters(), place, 16) == 16


def test_consensus_keeps_what_two_tasks_care_for() -> None:
    #                   both    one alone  against each other
    deltas = torch.tensor([[1.0, 1.0, 1.0], [0.8, 0.1, -0.9], [0.0, 0.0, 0.0]]).double()
    merged = merge("consensus", deltas, threshold=0.4, scale=0.5)
    assert torch.allclose(merged, torch.tensor([0.9, 0.0, 0.05]).double())


def test_magmax_takes_the_largest_change_and_the_positive_one_of_equal_ones() -> None:
    deltas = torch.tensor([[1.0, -2.0, -3.0, 0.0], [-2.0, 1.0, 3.0, 0.0]]).double()
    assert merge("magmax", deltas).tolist() == [-2.0, -2.0, 3.0, 0.0]
    assert merge("magmax", deltas, scale=0.5).tolist() == [-1.0, -1.0, 1.5, 0.0]


def test_costs_say_what_a_merge_computes() -> None:
    costs = {name: methods.get(name).cost for name in ("linear", "ties", "tsv_m")}
    assert costs == {"linear": "element-wise", "ties": "statistics", "tsv_m": "matrices"}


@pytest.mark.parametrize("name", sorted({*NAMES} - {"cart"}))
def test_what_rounding_adds_to_a_lora_is_no_direction(name: str) -> None:
    """A base with a LoRA is read as float32: its task vector is of low rank but for rounding."""
    base = 0.05 * task_vectors((96, 80), 1)[0]
    base[:, 3] *= 100  # As models have it.
    base = base.float().double()
    left, right = task_vectors((96, 4), 2, seed=1), task_vectors((4, 80), 2, seed=2)
    deltas = 2e-4 * left @ right
    exact = merge_tensors(name, base + deltas, base) - base
    rounded = merge_tensors(name, (base + deltas).float(), base.float()).double() - base
    assert float((rounded - exact).norm() / exact.norm()) < 2e-3


def test_tsv_m_of_loras_is_what_it_is_in_their_core_space() -> None:
    """Panariello et al. 2025, https://arxiv.org/abs/2509.17786: in the bases of all B and all A."""
    b, a = task_vectors((40, 3), 4, seed=1).numpy(), task_vectors((3, 30), 4, seed=2).numpy()
    base = task_vectors((40, 30), 1, seed=3)[0]
    rows = np.linalg.svd(np.concatenate(b, axis=1), full_matrices=False)[0]
    columns = np.linalg.svd(np.concatenate(a), full_matrices=False)[2]
    cores = torch.tensor(np.stack([rows.T @ x @ y @ columns.T for x, y in zip(b, a, strict=True)]))
    assert cores.shape == (4, 12, 12)
    expected = rows @ merge("tsv_m", cores).numpy() @ columns
    models = [(base + torch.tensor(x @ y)).float() for x, y in zip(b, a, strict=True)]
    merged = merge_tensors("tsv_m", models, base.float()).double() - base
    assert np.allclose(merged, expected, atol=1e-5)
