"""The space of a study: what a user writes, what a trial draws, what recipe it makes."""

from __future__ import annotations

from typing import Any

import pytest

from mergeops.errors import ConfigError
from mergeops.recipe import Recipe
from mergeops.search.space import Space, default_space, label_of

RAW: dict[str, Any] = {
    "base": "/base",
    "method": {"name": "ties", "density": 0.3},
    "sources": {"math": {"uri": "/m", "weight": 0.5}, "code": "/c", "law": "/l"},
}

ALL = dict.fromkeys(RAW["sources"], 1.0)


def space(raw: dict[str, Any] | None = None, **recipe: Any) -> Space:
    return Space.read(Recipe.from_dict({**RAW, **recipe}), raw or {})


def names(of: Space) -> list[str]:
    return [axis.name for axis in of.axes]


def test_a_recipe_with_a_base_gets_methods_weights_and_density() -> None:
    own = space()
    assert own.axes[0].choices == ("linear", "task_arithmetic", "ties", "dare_ties")
    weights = ["sources.math.weight", "sources.code.weight", "sources.law.weight"]
    assert names(own) == ["method", *weights, "method.density"]
    assert own.axes[-1].methods == {"ties", "dare_ties"}
    assert own.axes == space(default_space(Recipe.from_dict(RAW))).axes


def test_without_a_base_only_weights_vary() -> None:
    own = space(base=None, method="linear", sources={"a": "/a", "b": "/b"})
    assert names(own) == ["sources.a.weight", "sources.b.weight"]


def test_a_trial_draws_density_only_for_a_method_that_has_it() -> None:
    class Drawn:
        def __init__(self, method: str) -> None:
            self.method = method

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            return self.method

        def suggest_float(self, name: str, low: float, high: float, log: bool) -> float:
            return high

    assert "method.density" in space().drawn(Drawn("ties"))
    assert "method.density" not in space().drawn(Drawn("linear"))


def test_another_method_keeps_of_the_recipe_what_it_reads_and_was_set() -> None:
    own = space({"method": ["ties", "dare_ties", "linear"], "sources.law.weight": [0.0, 1.0]})
    dare = own.made({"method": "dare_ties", "sources.law.weight": 0.7})
    assert dare.method.parameters.density == 0.3
    assert dare.sources["math"].parameters == {"weight": 0.5}
    assert dare.sources["law"].parameters == {"weight": 0.7}
    linear = own.made({"method": "linear", "sources.law.weight": 0.7})
    # 0.4 is the default weight of task arithmetic, 1.0 that of linear: neither was asked for.
    assert linear.method.parameters.weight == 1.0


def test_a_source_whose_weight_is_in_the_lowest_tenth_takes_no_part() -> None:
    own = space({"sources.*.weight": [0.0, 2.0]})
    weights = {"sources.math.weight": 1.0, "sources.code.weight": 0.19, "sources.law.weight": 0.2}
    assert list(own.made(weights).sources) == ["math", "law"]
    nothing = dict.fromkeys(weights, 0.0) | {"sources.law.weight": 0.1}
    assert list(own.made(nothing).sources) == ["law"], "the strongest stays"
    away = space({"sources.*.weight": [0.05, 2.0]})
    assert len(away.made(dict.fromkeys(weights, 0.06)).sources) == 3, "0 is not in the range"


def test_a_depth_makes_each_weight_a_gradient_over_the_layers() -> None:
    own = space({"sources.*.weight": [0.0, 1.0], "depth": 2})
    assert names(own)[:2] == ["sources.math.weight#0", "sources.math.weight#1"]
    values = {name: i / 10 for i, name in enumerate(names(own), 2)}
    [rule] = own.made(values).rules
    assert rule.match == "*"
    assert rule.parameters == {
        "weight": {"math": (0.2, 0.3), "code": (0.4, 0.5), "law": (0.6, 0.7)}
    }


def test_whole_numbers_words_and_logarithmic_ranges() -> None:
    own = space(
        {
            "seed": [1, 9],
            "dtype.save": ["bfloat16", "float32"],
            "method.density": {"low": 0.01, "high": 1.0, "log": True},
        }
    )
    seed, dtype, density = own.axes
    assert seed.is_whole and dtype.choices == ("bfloat16", "float32") and density.is_log
    made = own.made({"seed": 4, "dtype.save": "float32", "method.density": 0.1})
    assert (made.seed, made.dtype.save, made.method.parameters.density) == (4, "float32", 0.1)


def test_what_needs_no_search_has_its_place_in_the_space() -> None:
    own = space()
    soup = own.at("linear", ALL)
    assert soup is not None and soup["method"] == "linear" and soup["sources.law.weight"] == 1.0
    assert own.at("ties", ALL) is None, "its density would have to be made up"
    assert space({"sources.*.weight": [0.5, 0.9]}).at("ties", ALL) is None
    assert space({"sources.*.weight": [0.5, 1.0]}).at("linear", ALL) is None
    two = own.at("linear", ALL | {"math": 0.0})
    assert two is not None and list(own.made(two).sources) == ["code", "law"]


def test_a_label_is_short() -> None:
    values = {"method": "ties", "sources.math.weight": 0.123, "method.density": 0.5, "seed": 3}
    assert label_of(values) == "ties math=0.12 density=0.50 seed=3"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"sources.lwa.weight": [0, 1]}, r"'sources\.lwa\.weight' names no source.* math, code"),
        ({"method.densty": [0.1, 1]}, r"none of ties reads 'method\.densty'; did you mean"),
        ({"method": ["linear"], "method.density": [0.1, 1]}, "none of linear reads"),
        ({"method": ["tise"]}, "'tise' is no method; did you mean 'ties'"),
        ({"method": []}, "it takes a list of methods"),
        ({"sources.*.weight": [1, 0]}, "the range from 1 to 0 is empty"),
        ({"sources.*.weight": [0.5, 0.5]}, "the range from 0.5 to 0.5 is empty"),
        ({"sources.*.weight": []}, r"it takes \[LOW, HIGH\] or a list of choices"),
        ({"sources.*.weight": 0.5}, r"it takes \[LOW, HIGH\] or a list of choices"),
        ({"method.density": {"low": 0.0, "high": 1.0, "log": True}}, "starts above 0, not at 0"),
        ({"method.density": {"low": 0.1}}, r"it takes \{low: , high: , log: true\}"),
        ({"method.density": [0.1, 1.5]}, r"method\.density is 1\.5; allowed: from 0 to 1"),
        ({"depth": 0, "sources.*.weight": [0.0, 1.0]}, "depth is 0; it takes the points"),
        ({"depth": 3}, "holds no key"),
        ({"nonsense": [1, 2]}, "unknown key nonsense"),
    ],
)
def test_a_space_that_cannot_be_is_refused_with_its_key(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.space.*" + message):
        space(raw)


def test_a_method_that_needs_a_base_is_refused_without_one() -> None:
    with pytest.raises(ConfigError, match="ties needs a base, and base is null"):
        space({"method": ["linear", "ties"]}, base=None, method="linear")


def test_methods_that_read_prompts_read_the_same_ones() -> None:
    read = {"name": "regmean", "prompts": "p.txt"}
    own = space({"method": ["regmean", "fisher", "linear"]}, method=read, sources={"a": "/a"})
    assert own.made({"method": "fisher"}).method.prompts == "p.txt"
    assert own.made({"method": "linear"}).method.prompts is None
