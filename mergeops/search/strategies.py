"""What a search strategy is, and the registry that fills itself from files here and plug-ins."""

from __future__ import annotations

import importlib
import math
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from mergeops.errors import ConfigError
from mergeops.extraction import check_low_rank
from mergeops.pipeline import log_search_page
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.schema import attribute_docstrings, with_defaults
from mergeops.scores import Scores, estimate
from mergeops.search.beforehand import Forecast, cost, forecast
from mergeops.store import connect_to_server
from mergeops.tools import Tools
from mergeops.tracking import SearchRun, Trial, search_run

PLUG_INS = "mergeops.strategies"
"""The entry point group of modules that register strategies when they are imported."""


@dataclass(frozen=True)
class SearchResult:
    """What a search ended with."""

    best: Trial | None
    """The best merge, or None where a single source was not beaten."""
    best_source: str | None
    """The single source that no merge beat, where that is the result."""
    trials: list[Trial]
    rows: list[dict[str, Any]]
    """One row a step, for the table and the search run's artifact."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Pages in MLflow: ``search``; empty where none serves any."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """What the strategy says beside, as JSON types."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for ``--json``."""
        return {
            "best": self.best.to_dict() if self.best else None,
            "best_source": self.best_source,
            "steps": self.rows,
            "links": dict(self.links),
            "trials": [trial.to_dict() for trial in self.trials],
            **self.report,
        }


SearchFunction = Callable[[Recipe, Any, Tools, SearchRun], SearchResult]
"""``search(recipe, parameters, tools, log)``."""


CountFunction = Callable[[Recipe, Any], int | None]
"""``trials(recipe, parameters)``; None where these do not say."""


class Strategy(NamedTuple):
    """A registered strategy."""

    search: SearchFunction
    parameters: type[Any]
    """A frozen dataclass; every field has a default."""
    trials: CountFunction | None = None
    """How many merges it makes at most, before it begins; None where that is not known."""


_REGISTRY: dict[str, Strategy] = {}


def strategy(
    name: str, *, trials: CountFunction | None = None
) -> Callable[[SearchFunction], SearchFunction]:
    """Register a search function; the annotation of its second argument names its parameters.

    Args:
        trials: says how many merges there will be at most, so that a search can say what it takes.
    """

    def register(search: SearchFunction) -> SearchFunction:
        if name in _REGISTRY:
            other = _REGISTRY[name].search.__module__
            raise TypeError(f"strategy {name!r} is defined in {other} and in {search.__module__}")
        parameters = list(typing.get_type_hints(search).values())[1]
        is_described: bool = is_dataclass(parameters)
        if not is_described:
            raise TypeError(
                f"strategy {name!r} in {search.__module__}: annotate its second argument with the "
                "frozen dataclass of its parameters"
            )
        missing = {f.name for f in fields(parameters)} - with_defaults(parameters)
        if missing:
            raise TypeError(f"{parameters.__name__} has no default for {sorted(missing)}")
        _REGISTRY[name] = Strategy(search, parameters, trials)
        return search

    return register


def with_strategy(overrides: Sequence[str]) -> list[str]:
    """Overrides in which ``strategy=NAME`` stands for ``search=NAME``."""
    return [
        f"search={word.removeprefix('strategy=')}" if word.startswith("strategy=") else word
        for word in overrides
    ]


def get(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        ConfigError: there is none; says what there is, and which plug-in cannot be imported.
    """
    broken = _discover()
    if name not in _REGISTRY:
        reasons = [f"search.strategy is {name!r}; allowed: {', '.join(sorted(_REGISTRY))}"]
        raise ConfigError("; ".join([*reasons, *broken.values()]))
    return _REGISTRY[name]


def parameter_types() -> dict[str, type[Any] | None]:
    """Strategy -> the dataclass of its parameters; None for a plug-in that cannot be imported."""
    broken = _discover()
    return {**dict.fromkeys(broken), **{name: _REGISTRY[name].parameters for name in _REGISTRY}}


def describe(name: str | None = None) -> list[dict[str, Any]]:
    """All strategies, or the named one, with their parameters, as JSON types.

    Raises:
        ConfigError: there is none of that name.
    """
    broken = _discover()
    chosen = {name: get(name)} if name else _REGISTRY
    assert not set(chosen) & set(broken), "what cannot be imported is not registered"
    return [
        {
            "name": each,
            "about": (sys.modules[found.search.__module__].__doc__ or "").split("\n\n")[0].strip(),
            "parameters": [
                {"name": f.name, "default": default, "about": texts.get(f.name, "")}
                for texts in [attribute_docstrings(found.parameters)]
                for f, default in zip(
                    fields(found.parameters), asdict(found.parameters()).values(), strict=True
                )
            ],
        }
        for each, found in sorted(chosen.items())
    ]


@cache
def _discover() -> Mapping[str, str]:
    """Import every strategy once; name and error of each plug-in where that fails."""
    for module in pkgutil.iter_modules(sys.modules[__package__].__path__):
        importlib.import_module(f"mergeops.search.{module.name}")
    broken = {}
    for plug_in in entry_points(group=PLUG_INS):
        try:
            plug_in.load()
        # A plug-in may fail in any way, and other strategies work without it.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            broken[plug_in.name] = f"the plug-in {plug_in.value} cannot be imported: {reason}"
    return broken


def completed(recipe: Recipe) -> Recipe:
    """The recipe with every parameter of its strategy, also those that depend on the recipe.

    A strategy's dataclass may have ``completed(recipe)``, which returns it with those filled in.

    Raises:
        ConfigError: an unknown strategy or parameter, or what the strategy refuses.
    """
    parameters = recipe.search.read(get(recipe.search.strategy).parameters)
    if hasattr(parameters, "completed"):
        parameters = parameters.completed(recipe)
    return replace(recipe, search=replace(recipe.search, parameters=asdict(parameters)))


def run_search(recipe: Recipe, progress: Progress, tools: Tools | None = None) -> SearchResult:
    """Run the recipe's search strategy below one MLflow run; an interrupted one goes on.

    Args:
        recipe: what it varies, and how.
        progress: is told what happens.
        tools: of a caller who has some; None makes them.

    Raises:
        ConfigError: unknown strategy, no tasks to choose by, or what the strategy refuses.
    """
    name, chosen, recipe = _prepared(recipe)
    tools = tools or Tools(recipe, progress)
    if recipe.output.is_adapter:
        check_low_rank(recipe, tools.resolve(recipe))
    if (expected := _forecast(recipe, chosen, tools)) is not None:
        progress.step(str(expected))
    title = f"{name} over {len(recipe.sources)} sources"
    settings = recipe.search.to_dict() | {"sources": ", ".join(recipe.sources)}
    with search_run(tools.tracking, title, recipe.sha256(), settings) as log:
        result = chosen.search(recipe, recipe.search.read(chosen.parameters), tools, log)
        log.log_json(result.rows, "steps.json")
        if result.best is not None and result.best.scores is not None:
            log.log_best(result.best.run_id, result.best.scores)
        log_search_page(log, result.trials)
    progress.step(cost(tools.spent))
    page = tools.tracking.run_page(log.run_id)
    return replace(result, links={"search": page}) if page else result


def forecast_search(recipe: Recipe, progress: Progress) -> Forecast | None:
    """What a search will take; None where its strategy does not know how many merges it makes.

    Raises:
        MergeopsError: as ``run_search`` before its first merge.
    """
    _, chosen, recipe = _prepared(recipe)
    # No experiment is made: nothing is to be written.
    tools = Tools(recipe, progress, tracking=connect_to_server(recipe.tracking))
    if recipe.output.is_adapter:
        check_low_rank(recipe, tools.resolve(recipe))
    return _forecast(recipe, chosen, tools)


def _prepared(recipe: Recipe) -> tuple[str, Strategy, Recipe]:
    name, recipe = recipe.search.strategy, completed(recipe)
    if not recipe.evaluate.tasks:
        raise ConfigError(
            "a search chooses by scores, but evaluate.tasks is empty; name some tasks"
        )
    return name, get(name), recipe


def _forecast(recipe: Recipe, chosen: Strategy, tools: Tools) -> Forecast | None:
    if chosen.trials is None:
        return None
    parameters = recipe.search.read(chosen.parameters)
    merges = chosen.trials(recipe, parameters)
    # Candidates of a study are no files, but for those that it keeps.
    kept = getattr(parameters, "keep", None)
    return None if merges is None else forecast(recipe, tools, merges, kept)


def dev_columns(scores: Scores | None) -> dict[str, Any]:
    """Of a step's row: the pooled dev score and its 95 % interval; None where there is none."""
    if scores is None or not math.isfinite(scores.pooled):
        return {"dev": None, "dev_interval": None}
    dev = estimate(scores)
    return {"dev": dev.value, "dev_interval": list(dev.interval) if dev.interval else None}


def with_values(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced, e.g. ``{"method.density": 0.5}``.

    Raises:
        ConfigError: a key or a value that the schema refuses.
    """
    raw = recipe.to_dict()
    for key, value in point.items():
        *parents, last = key.split(".")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(
                    f"search.{recipe.search.strategy} has {key}, but {parent} holds no keys of its "
                    "own"
                )
        node[last] = value
    changes = ", ".join(f"{name}={point[key]}" for key, name in short_names(point).items())
    raw["name"] = f"{recipe.name or raw['method']['name']} {changes}"
    return Recipe.from_dict(raw)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Key -> the last of its dotted parts, and as many before it as tell it from the others:
    ``method.density`` is density, and of two sources' weights one is math.weight."""
    parts = {key: key.split(".") for key in keys}
    names = {}
    for key, own in parts.items():
        length = 1
        while length < len(own) and any(
            other != key and of[-length:] == own[-length:] for other, of in parts.items()
        ):
            length += 1
        names[key] = ".".join(own[-length:])
    return names
