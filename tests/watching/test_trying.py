"""What a candidate is added to, and the space around a merge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mergeops.errors import AwayError
from mergeops.recipe import Recipe
from mergeops.search.space import Space
from mergeops.watching import trying
from mergeops.watching.state import WAITING, Best, SeenRun
from mergeops.watching.trying import WatchBench, around, with_candidate


def candidate(name: str) -> SeenRun:
    return SeenRun(name, name, "finetunes", "FINISHED", WAITING, uri=f"runs:/{name}")


def best(method: Any, **weights: Any) -> Best:
    sources = {name: {"uri": f"runs:/{name}", **own} for name, own in weights.items()}
    recipe = Recipe.from_dict({"base": "base", "method": method, "sources": sources})
    uris = {name: spec.uri for name, spec in recipe.sources.items()}
    return Best(uris, "base", 3, "skills/3", "digest", 0.7, recipe.weights_dict(), True)


def test_a_candidate_has_the_mean_weight_of_the_champions_sources() -> None:
    before = best({"name": "ties", "density": 0.3}, a={"weight": 0.9}, b={"weight": 0.3})
    made = with_candidate(before, candidate("c"))
    assert made.recipe["sources"]["c"] == {"uri": "runs:/c", "weight": pytest.approx(0.6)}
    assert made.recipe["sources"]["a"]["weight"] == 0.9
    assert made.recipe["method"]["density"] == 0.3
    assert made.sources == {"a": "runs:/a", "b": "runs:/b", "c": "runs:/c"}
    # It is another merge: not registered, not scored, and nothing was tried around it.
    assert (made.registered, made.dev, made.is_searched, made.champion) == ("", None, False, 3)
    assert "c" not in before.recipe["sources"]


def test_a_weight_that_the_others_leave_to_the_method_is_left_to_it() -> None:
    made = with_candidate(best("linear", a={}, b={"weight": 0.3}), candidate("c"))
    assert made.recipe["sources"]["c"] == {"uri": "runs:/c"}


def test_a_method_for_two_gives_way_to_equal_weights_by_the_watchs_method() -> None:
    made = with_candidate(best({"name": "slerp", "t": 0.4}, a={}, b={}), candidate("c"))
    assert made.recipe == {} and list(made.sources) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("method", "space"),
    [
        ("linear", {"sources.a.weight": [0.4, 1.2], "sources.b.weight": [0.5, 1.5]}),
        (
            {"name": "ties", "density": 0.8},
            {
                **{"sources.a.weight": [0.4, 1.2], "sources.b.weight": [0.5, 1.5]},
                "method.density": [0.4, 1.0],
            },
        ),
    ],
)
def test_the_space_around_a_merge_is_half_to_one_and_a_half_times_what_it_is(
    method: Any, space: dict[str, Any]
) -> None:
    raw = {"a": {"uri": "a", "weight": 0.8}, "b": {"uri": "b"}}
    recipe = Recipe.from_dict({"base": "base", "method": method, "sources": raw})
    found = around(recipe)
    assert found == {key: pytest.approx(ends) for key, ends in space.items()}
    assert {axis.name for axis in Space.read(recipe, found).axes} == set(space)


def test_a_merge_that_mlflow_did_not_take_is_no_standing_and_the_round_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merit = SimpleNamespace(pooled=0.7)
    kept: Any = SimpleNamespace(name="a + b", scores=merit, merit=0.7, registered="", run_id="")
    monkeypatch.setattr(trying, "run", lambda recipe, tools: kept)
    tools: Any = None
    recipe = Recipe.from_dict({"method": "linear", "sources": {}})
    with pytest.raises(AwayError, match=r"MLflow went away before a \+ b was registered"):
        WatchBench(recipe, tools).merged(Best({"a": "runs:/a", "b": "runs:/b"}, None, None))


def test_around_a_method_without_weights_there_is_no_space() -> None:
    raw = {"a": {"uri": "a"}, "b": {"uri": "b"}}
    assert around(Recipe.from_dict({"method": "karcher", "sources": raw})) == {}
