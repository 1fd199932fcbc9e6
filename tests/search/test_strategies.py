"""Strategies: one file each, checked parameters, plug-ins; the worked example of the documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.user_place import ended, mergeops

from mergeops.cli.main import cli
from mergeops.errors import ConfigError
from mergeops.progress import Progress
from mergeops.recipe import Recipe, compose
from mergeops.recipe.settings import SearchSpec
from mergeops.schema import check_range
from mergeops.search import describe, strategies
from mergeops.search.grid import GridParameters
from mergeops.search.strategies import (
    get,
    parameter_types,
    run_search,
    short_names,
    strategy,
)

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
WORDS = ("base=/b", "sources.a.uri=/a", "method=ties")


@dataclass(frozen=True)
class ToyParameters:
    """Parameters of a strategy that exists in these tests only."""

    trials: int = 3
    """How many."""
    keys: tuple[str, ...] = ("seed",)

    def __post_init__(self) -> None:
        check_range("search.trials", self.trials, 1, 10)


def never(recipe: Recipe, parameters: ToyParameters, tools: Any, log: Any) -> Any:
    raise AssertionError("nothing may run")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strategy ``toy`` for the length of a test."""
    parameter_types()
    monkeypatch.setattr(strategies, "_REGISTRY", dict(strategies._REGISTRY))
    strategy("toy")(never)


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points as installed packages would have them."""
    offered: list[EntryPoint] = []
    monkeypatch.setattr(strategies, "entry_points", lambda group: offered)
    monkeypatch.setattr(strategies, "_REGISTRY", dict(strategies._REGISTRY))
    strategies._discover.cache_clear()
    yield offered
    strategies._discover.cache_clear()


def composed(*words: str) -> Recipe:
    return compose([*WORDS, *words], strategies=parameter_types())


def test_a_strategy_is_a_group_option_with_all_its_parameters(toy: None) -> None:
    assert composed("search=toy").to_dict()["search"] == {
        "strategy": "toy",
        "trials": 3,
        "keys": ["seed"],
    }
    changed = composed("search=toy", "search.trials=5", "search.keys=[a,b]")
    assert changed.search.read(ToyParameters) == ToyParameters(5, ("a", "b"))
    assert Recipe.from_dict(changed.to_dict()).sha256() == changed.sha256()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search=toy", "search.trial=5"], r"unknown key search\.trial; did you mean 'trials'\?"),
        (["search=toy", "search.trials=11"], r"search\.trials is 11; allowed: from 1 to 10"),
        (["search=toy", "search.trials=x"], r"search\.trials is 'x'; it takes a whole number"),
        (["search=grid", "search.grid=5"], r"search\.grid is 5; it takes a mapping"),
        (["search.gird=5"], r"unknown key search\.gird; .*allowed: strategy, grid"),
        (["search=none"], "^strategy is 'none'; there are: greedy_soup, grid.*mergeops strategies"),
        (["search=gird"], "did you mean 'grid'"),
    ],
)
def test_a_parameter_is_refused_when_the_recipe_is_read(
    toy: None, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*words)


def test_a_recipe_of_another_mergeops_is_read_and_its_strategy_asked_for_when_it_searches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A checkout may have more of them.
    shipped = {name: strategies.get(name) for name in ("greedy_soup", "grid")}
    monkeypatch.setattr(strategies, "_REGISTRY", shipped)
    raw = {"method": "linear", "sources": {"a": "/a"}, "search": {"strategy": "gone", "n": 1}}
    recipe = Recipe.from_dict(raw)
    assert recipe.to_dict()["search"] == {"strategy": "gone", "n": 1}
    message = "search.strategy is 'gone'; allowed: greedy_soup, grid$"
    with pytest.raises(ConfigError, match=message):
        run_search(recipe, Progress(quiet=True))


@pytest.mark.parametrize("raw", [None, {}, {"strategy": "grid"}, {"grid": {"seed": [1, 2]}}])
def test_the_first_two_strategies_are_written_with_a_grid(raw: Mapping[str, Any] | None) -> None:
    written = SearchSpec.from_dict(raw).to_dict()
    assert list(written) == ["strategy", "grid"]
    assert written["grid"] == (raw or {}).get("grid", {})
    assert SearchSpec().to_dict() == {"strategy": "greedy_soup", "grid": {}}


def test_the_digest_of_a_recipe_is_the_one_that_names_its_search_in_mlflow() -> None:
    raw = {
        "method": {"name": "ties"},
        "base": "/b",
        "sources": {"a": {"uri": "/a"}},
        "search": {"strategy": "grid", "grid": {"method.density": [0.1, 2], "seed": [1]}},
    }
    recipe = Recipe.from_dict(raw)
    filled = recipe.search.filled(GridParameters)
    assert json.dumps(filled.to_dict()) == json.dumps(recipe.search.to_dict())
    assert recipe.sha256() == DIGEST


# Of mergeops 0.2.0, whose recipes have an executor, a workspace and the settings of chat models.
DIGEST = "f96b35ff1792bc2c1c59f061fdc36681d7f761a8d316679cae15cd72a7fe5974"


def test_a_strategy_without_parameters_of_its_own_is_refused(toy: None) -> None:
    def search(recipe: Recipe, parameters: Any, tools: Any, log: Any) -> strategies.SearchResult:
        raise AssertionError("it is refused before")

    with pytest.raises(TypeError, match="strategy 'other' in .*: annotate its second argument"):
        strategy("other")(search)


def test_two_strategies_of_one_name_are_refused(toy: None) -> None:
    with pytest.raises(TypeError, match="strategy 'toy' is defined in .*test_strategies and in"):
        strategy("toy")(never)


def test_a_plug_in_that_cannot_be_imported_is_named_when_it_is_asked_for(
    plug_ins: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_strategy.py").write_text("raise OSError('no\\nlicence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    plug_ins.append(EntryPoint("broken", "broken_strategy", strategies.PLUG_INS))
    assert composed("search=grid").search.strategy == "grid"
    asked = composed("search=broken", "search.n=1")
    message = "broken_strategy cannot be imported: OSError: no licence$"
    with pytest.raises(ConfigError, match=message):
        get(asked.search.strategy)


def test_the_strategy_of_the_documents_runs_from_a_package_of_its_own(
    place: Path, tmp_path: Path
) -> None:
    [code] = re.findall(
        r'```python title="mergeops/search/interval.py"\n(.*?)```',
        PAGE.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    site = tmp_path / "site"
    metadata = site / "interval_strategy-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "interval_strategy.py").write_text(code)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: interval\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[mergeops.strategies]\ninterval = interval_strategy\n"
    )
    path = f"{site}:{Path(strategies.__file__).parents[2]}"
    words = ("search", "--config-dir", "conf", "recipe=three", "method=ties", "strategy=interval")
    refused = ended(place, *words, "search.trials=1", PYTHONPATH=path)
    assert refused.returncode == ConfigError.exit_code
    assert "search.trials is 1; allowed: from 2 to 100" in refused.stderr
    shown = mergeops(place, *words, "search.trials=2", "--cfg", "job", PYTHONPATH=path)
    assert "search:\n  strategy: interval\n  key: method.density\n  low: 0.2\n" in shown
    found = json.loads(mergeops(place, *words, "search.trials=2", "--json", PYTHONPATH=path))
    assert [row["method.density"] for row in found["steps"]] == [0.2, 0.8]
    assert found["best"]["dev_score"] == max(row["dev"] for row in found["steps"])


def test_strategies_are_described_with_their_parameters() -> None:
    [grid] = describe("grid")
    assert grid["about"].startswith("Grid: every combination")
    [parameter] = grid["parameters"]
    assert (parameter["name"], parameter["default"]) == ("grid", {})
    assert "Override key -> values" in parameter["about"]
    assert {"greedy_soup", "grid"} <= {each["name"] for each in describe()}
    with pytest.raises(ConfigError, match="search.strategy is 'none'"):
        describe("none")


def test_a_trial_is_named_by_what_tells_its_keys_apart() -> None:
    names = short_names(["sources.math.weight", "sources.code.weight", "method.density", "seed"])
    assert list(names.values()) == ["math.weight", "code.weight", "density", "seed"]
    assert short_names(["a.x", "b.a.x"]) == {"a.x": "a.x", "b.a.x": "b.a.x"}


@pytest.mark.parametrize("command", ["inspect", "compare", "open", "history"])
def test_every_command_refuses_an_unknown_key_of_a_strategy(command: str) -> None:
    ran = CliRunner().invoke(cli, [command, "search.gird=5"])
    assert isinstance(ran.exception, ConfigError)
    assert "unknown key search.gird" in str(ran.exception)
