"""Rows of docs/mergekit_methods_differences.md, on tensors: what mergekit's kernel does, and ours.

Expected values are worked out by hand; a row that other files show is named in test_rows.py.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.mergekit_oracle import PYTHON, run_there

from mergeops.errors import ConfigError
from mergeops.methods import merge_tensors

pytestmark = pytest.mark.parity

KERNELS = Path(__file__).parent / "run_kernels.py"
THIRD = [[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]
"""Three directions that cancel."""


@dataclass(frozen=True)
class Kernel:
    """One tensor that both merge."""

    method: str
    tensors: list[Any]
    base: list[Any] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    """In mergekit's words."""
    ours: dict[str, Any] | None = None
    """In ours, where they are others."""
    weights: list[float] | None = None
    dtype: str = "float32"
    seed: int = 0

    def job(self) -> dict[str, Any]:
        """As run_kernels.py takes it."""
        names = ("method", "tensors", "base", "parameters", "weights", "dtype", "seed")
        return {name: getattr(self, name) for name in names}

    def merged(self) -> torch.Tensor:
        """What mergeops makes of it."""
        dtype = getattr(torch, self.dtype)
        sources = [_tensor(said, dtype) for said in self.tensors]
        weights = {"weight": self.weights} if self.weights else None
        return merge_tensors(
            self.method,
            sources,
            None if self.base is None else _tensor(self.base, dtype),
            self.parameters if self.ours is None else self.ours,
            weights,
            compute=torch.float32,
        )


def _tensor(said: Any, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(said, dict):
        generator = torch.Generator().manual_seed(said["seed"])
        return torch.randn(said["shape"], generator=generator).to(dtype)
    return torch.tensor(said, dtype=dtype)


def dropping(epsilon: float, tensors: list[Any], density: float = 0.5, **more: Any) -> Kernel:
    """della on one source, without rescaling unless ``more`` says so."""
    shape = torch.tensor(tensors[0]).shape
    zeros = torch.zeros(shape).tolist()
    parameters = {"density": density, "epsilon": epsilon, "rescale": False, **more}
    return Kernel("della", tensors, zeros, {**parameters, "weight": 1.0})


EQUAL = [[[1.0] * 2000]]
LARGER = [[[1.0] * 5000, [2.0] * 5000]]
RISING = [[float(i) for i in range(1, 1001)]]
MANY = 100_001
KERNELS_OF: dict[str, Kernel] = {
    "trimmed to equal": Kernel("ties", [[1.0] * 4], [0.0] * 4, {"density": 0.5, "weight": 1.0}),
    "trimmed to equal, outliers": Kernel(
        "breadcrumbs", [[1.0] * 4], [0.0] * 4, {"density": 0.5, "weight": 1.0}
    ),
    "trimmed to none": Kernel("ties", [[1.0, 2.0]], [0.0] * 2, {"density": 0.3, "weight": 1.0}),
    "trimmed to none, outliers": Kernel(
        "breadcrumbs", [[1.0, 2.0]], [0.0] * 2, {"density": 0.3, "weight": 1.0}
    ),
    "small norm": Kernel(
        "ties", [[1e-8, 3e-8]], [0.0] * 2, {"density": 0.5, "weight": 1.0, "rescale": True}
    ),
    "large norm": Kernel(
        "ties",
        [[64.0] * 4096],
        [0.0] * 4096,
        {"density": 0.5, "weight": 1.0, "rescale": True},
        dtype="float16",
    ),
    "rescaled": dropping(0.4, [RISING], rescale=True, normalize=False),
    "one entry a row": dropping(0.1, [[[1.0]]]),
    "epsilon too large": dropping(0.15, [[[1.0] * 4]], density=0.9),
    "epsilon at density 1": dropping(0.15, [[[1.0] * 4]], density=1.0),
    "equal ranks": dropping(0.4, EQUAL),
    "ranks in 16 bits": dataclasses.replace(
        dropping(0.4, [[[float(i % 251) for i in range(4096)]]]), dtype="bfloat16"
    ),
    "three dimensions": dropping(0.49, [LARGER]),
    "weights of no sum": Kernel("nuslerp", [[1.0, 0.0], [0.0, 1.0]], weights=[1.0, -1.0]),
    "weights of zero": Kernel("nuslerp", [[1.0, 0.0], [0.0, 1.0]], weights=[0.0, 0.0]),
    "a zero vector": Kernel("nuslerp", [[0.0, 0.0], [0.0, 1.0]], weights=[1.0, 1.0]),
    "nearly opposite": Kernel("nuslerp", [[1.0, 5e-4, 0.2], [-1.0, 0.0, -0.2]], weights=[1.0, 1.0]),
    "two cancel": Kernel("multislerp", [[1.0, 0.0], [-1.0, 0.0]], weights=[1.0, 1.0]),
    "three cancel": Kernel("multislerp", THIRD, weights=[1.0, 1.0, 1.0]),
    "multislerp of no sum": Kernel("multislerp", [[1.0, 0.0], [0.0, 1.0]], weights=[1.0, -1.0]),
    "a small norm": Kernel("karcher", [[1e-6, 0.0], [0.0, 1.0]]),
    "karcher cancels": Kernel("karcher", [[1.0, 0.0], [-1.0, 0.0]]),
    "one opposite": Kernel("karcher", [[1.0, 0.2], [1.0, 0.2], [-1.0, -0.2]]),
    "small task vectors": Kernel("model_stock", [[1e-4, 0.0], [1e-4, 0.0]], [0.0, 0.0]),
    "at the pole": Kernel("model_stock", [[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0]),
    "beside the pole": Kernel("model_stock", [[1.0, 0.0], [-0.9, 0.436]], [0.0, 0.0]),
    "small changes": Kernel("sce", [[5e-4], [1e-4]], [0.0]),
    "small weight": Kernel("sce", [[1.0, 0.0], [0.0, 1e-4]], [0.0, 0.0]),
    "equal variances": Kernel("sce", [[1.0] * 4, [0.0] * 4], [0.0] * 4, {"select_topk": 0.5}),
    "counted": Kernel(
        "sce",
        [{"seed": 1, "shape": [MANY]}, {"seed": 2, "shape": [MANY]}],
        {"seed": 0, "shape": [MANY]},  # type: ignore[arg-type]
        {"select_topk": 0.999},
    ),
    "sampled once": Kernel(
        "arcee_fusion",
        [{"seed": 1, "shape": [1100, 1000]}],
        {"seed": 0, "shape": [1100, 1000]},  # type: ignore[arg-type]
    ),
    "sampled twice": Kernel(
        "arcee_fusion",
        [{"seed": 1, "shape": [1100, 1000]}],
        {"seed": 0, "shape": [1100, 1000]},  # type: ignore[arg-type]
        seed=1,
    ),
    "small difference": Kernel("nearswap", [[1e-7]], [0.0], {"t": 1e-8}),
    "negative t": Kernel("nearswap", [[1.0]], [0.0], {"t": -0.1}),
    "nothing unique": Kernel(
        "ramplus_tl", [[1.0, 1.0], [3.0, 1.0]], [0.0, 0.0], {"r": 0.1, "alpha": 0.2}
    ),
    "fusion in 16 bits": Kernel("arcee_fusion", [[[1.0, 2.0]]], [[0.0, 0.0]], dtype="bfloat16"),
    "ramplus in 16 bits": Kernel("ramplus_tl", [[1.0, 2.0]], [0.0, 0.0], dtype="bfloat16"),
    "a vote against": Kernel("ties", [[0.0], [1.0]], [0.0], {"density": 1.0}, weights=[1.0, -0.4]),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What mergekit makes of every kernel, all in one process."""
    file = tmp_path_factory.mktemp("kernels") / "jobs.json"
    names = [f"m{i}" for i in range(12)]
    file.write_text(json.dumps([*(k.job() for k in KERNELS_OF.values()), {"models": names}]))
    run_there(PYTHON, KERNELS, file)
    answers = json.loads(Path(f"{file}.out").read_text())
    return dict(zip([*KERNELS_OF, "order"], answers, strict=True))


@pytest.mark.parametrize(
    ("name", "mergekit", "mergeops"),
    [
        ("trimmed to none", [0.0, 2.0], [0.0, 0.0]),
        ("trimmed to none, outliers", [0.0, 0.0], [0.0, 0.0]),
        ("small norm", [0.0, 3e-8], [0.0, 4e-8]),
        ("a zero vector", [0.0, 0.5**0.5], [0.0, 0.5]),
        ("weights of zero", [0.5**0.5, 0.5**0.5], [0.5**0.5, 0.5**0.5]),
        ("two cancel", [0.0, 0.0], [0.0, 0.0]),
        ("a small norm", [0.0, 0.5], [0.125**0.5, 0.125**0.5]),
        ("karcher cancels", [1.0, 0.0], [0.0, 0.0]),
        # cos = 1e-8 / 1e-6, so the ratio is 0.02 / 1.01.
        ("small task vectors", [1e-4 * 0.02 / 1.01, 0.0], [1e-4, 0.0]),
        ("at the pole", [0.0, 0.0], [0.0, 0.0]),
        ("small changes", [3e-4], [(25 * 5e-4 + 1e-4) / 26]),
        ("small weight", [1.0, 1e-6], [1.0, 1e-4]),
        ("small difference", [1e-9], [1e-8]),
        ("nothing unique", [2.0, 1.0], [2.0, 1.0]),
        ("a vote against", [1.0], [-1.0]),
    ],
)
def test_both_give_what_the_page_says(
    theirs: dict[str, Any], name: str, mergekit: list[float], mergeops: list[float]
) -> None:
    found = torch.tensor(theirs[name]["values"])
    torch.testing.assert_close(found, torch.tensor(mergekit), rtol=1e-4, atol=1e-12)
    ours = KERNELS_OF[name].merged()
    largest = float(ours.abs().max())
    torch.testing.assert_close(ours, torch.tensor(mergeops), rtol=1e-4, atol=1e-7 * largest)


TIES = ("trimmed to equal", "trimmed to equal, outliers", "equal variances")


@pytest.mark.parametrize("name", TIES)
def test_of_equal_entries_the_first_stay_here_and_some_in_mergekit(
    theirs: dict[str, Any], name: str
) -> None:
    assert sorted(theirs[name]["values"]) == [0.0, 0.0, 1.0, 1.0]
    assert KERNELS_OF[name].merged().tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one entry a row", "RuntimeError: Expected p_in >= 0"),
        ("epsilon too large", "ValueError: Epsilon must be chosen such"),
        ("three cancel", "ValueError: The weighted sum of the input tensors is zero"),
    ],
)
def test_what_stops_mergekit_is_merged(theirs: dict[str, Any], name: str, said: str) -> None:
    assert theirs[name]["error"].startswith(said)
    assert KERNELS_OF[name].merged().isfinite().all()


@pytest.mark.parametrize(
    ("name", "mergekit"),
    [
        ("weights of no sum", [0.5**0.5, 0.5**0.5]),
        ("multislerp of no sum", [float("nan"), float("nan")]),
        ("negative t", [0.0]),
    ],
)
def test_what_mergekit_takes_in_silence_is_refused(
    theirs: dict[str, Any], name: str, mergekit: list[float]
) -> None:
    found, expected = torch.tensor(theirs[name]["values"]), torch.tensor(mergekit)
    torch.testing.assert_close(found, expected, equal_nan=True)
    with pytest.raises(ConfigError):
        KERNELS_OF[name].merged()


def test_a_norm_beyond_the_format_is_summed_in_a_larger_one(theirs: dict[str, Any]) -> None:
    assert torch.tensor(theirs["large norm"]["values"]).isnan().any()
    assert set(KERNELS_OF["large norm"].merged().tolist()) == {0.0, 128.0}


def test_what_della_keeps_is_divided_by_its_own_probability(theirs: dict[str, Any]) -> None:
    full = torch.tensor(RISING[0], dtype=torch.float64)
    matched = torch.tensor(theirs["rescaled"]["values"])
    torch.testing.assert_close(float(matched.abs().sum()), float(full.sum()), rtol=1e-4, atol=0)
    kept = (ours := KERNELS_OF["rescaled"].merged().flatten().double()) != 0
    probability = 0.1 + 0.8 * (full - 1) / 999
    torch.testing.assert_close(ours[kept], (full / probability)[kept], rtol=1e-4, atol=0)


def test_mergekit_ignores_epsilon_at_density_1(theirs: dict[str, Any]) -> None:
    assert theirs["epsilon at density 1"]["values"] == [1.0] * 4
    assert KERNELS_OF["epsilon at density 1"].merged().tolist() == [[1.0] * 4]


def test_equal_entries_share_a_rank(theirs: dict[str, Any]) -> None:
    halves = torch.tensor(theirs["equal ranks"]["values"]).view(2, 1000).mean(1)
    assert abs(float(halves[0] - halves[1])) > 0.3
    halves = KERNELS_OF["equal ranks"].merged().view(2, 1000).mean(1)
    # Six standard deviations of the difference of two means of 1000 draws.
    assert abs(float(halves[0] - halves[1])) < 0.14


def test_ranks_in_16_bits_run_into_one_another(theirs: dict[str, Any]) -> None:
    """Equal entries have ranks of their own in mergekit, so 4096 would differ."""
    assert theirs["ranks in 16 bits"]["probabilities"] < 704
    assert theirs["equal ranks"]["probabilities"] == 2000


def test_rows_lie_along_the_last_dimension(theirs: dict[str, Any]) -> None:
    kept = (torch.tensor(theirs["three dimensions"]["values"]).view(2, 5000) != 0).double()
    assert kept.mean(1).tolist() == pytest.approx([0.01, 0.99], abs=0.02)
    kept = (KERNELS_OF["three dimensions"].merged().view(2, 5000) != 0).double()
    assert kept.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_nearly_opposite_vectors_get_the_straight_line(theirs: dict[str, Any]) -> None:
    straight = torch.tensor([0.0, 2.5e-4, 0.0])
    assert (torch.tensor(theirs["nearly opposite"]["values"]) - straight).abs().max() > 0.1
    torch.testing.assert_close(KERNELS_OF["nearly opposite"].merged(), straight)


def test_a_source_opposite_to_the_mean_does_not_pull(theirs: dict[str, Any]) -> None:
    right = torch.tensor([1.0, 0.2])
    assert (torch.tensor(theirs["one opposite"]["values"]) - right).abs().max() > 0.1
    torch.testing.assert_close(KERNELS_OF["one opposite"].merged(), right)


def test_the_ratio_beside_the_pole_is_bounded(theirs: dict[str, Any]) -> None:
    mean = torch.tensor([0.05, 0.218])
    assert (torch.tensor(theirs["beside the pole"]["values"]) / mean < -10).all()
    torch.testing.assert_close(KERNELS_OF["beside the pole"].merged(), -mean)


def test_entries_are_counted_in_decimals(theirs: dict[str, Any]) -> None:
    base = _tensor(KERNELS_OF["counted"].base, torch.float32)
    changed = torch.tensor(theirs["counted"]["values"]) - base
    # 0.999 of 100001 is 99900.999.
    assert int((changed.abs() > 1e-7).sum()) == 99_901
    assert int(((KERNELS_OF["counted"].merged() - base).abs() > 1e-7).sum()) == 99_900


def test_quantiles_of_large_tensors_are_not_sampled(theirs: dict[str, Any]) -> None:
    assert theirs["sampled once"]["values"] != theirs["sampled twice"]["values"]
    assert KERNELS_OF["sampled once"].merged().equal(KERNELS_OF["sampled twice"].merged())


@pytest.mark.parametrize("name", ["fusion in 16 bits", "ramplus in 16 bits"])
def test_two_methods_of_mergekit_leave_16_bits(theirs: dict[str, Any], name: str) -> None:
    assert theirs[name]["dtype"] == "float32"
    assert KERNELS_OF[name].merged().dtype == torch.bfloat16


def test_mergekit_goes_through_a_set_of_models(theirs: dict[str, Any], tmp_path: Path) -> None:
    from mergeops.recipe.composition import compose

    names = [f"m{i}" for i in range(12)]
    found = theirs["order"]["values"]
    assert sorted(found) == sorted(names) and found != names
    models = "".join(f"  - {{model: {n}, parameters: {{weight: 1.0}}}}\n" for n in names)
    (tmp_path / "config.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    assert list(compose([], recipe_file=tmp_path / "config.yml").sources) == names
