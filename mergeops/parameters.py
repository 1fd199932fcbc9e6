"""From a recipe's numbers, lists and rules to each tensor's own parameters."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.architecture import layer_depths
from mergeops.errors import ConfigError
from mergeops.methods import Method
from mergeops.recipe import Recipe, Value


@dataclass(frozen=True)
class TensorParameters:
    """What one tensor is merged with."""

    shared: Mapping[str, float]
    """Global parameters that a rule may set."""
    per_source: Mapping[str, tuple[float, ...]]
    """Source parameters, in recipe order."""


def interpolate(value: Value, depth: float) -> float:
    """A number is itself; a list is a gradient, evenly spaced over the depth 0 to 1."""
    if not isinstance(value, tuple):
        return value
    position = depth * (len(value) - 1)
    left = min(int(position), max(len(value) - 2, 0))
    right = min(left + 1, len(value) - 1)
    share = position - left
    return value[left] * (1.0 - share) + value[right] * share


def resolve_parameters(
    recipe: Recipe, method: Method, names: Iterable[str]
) -> dict[str, TensorParameters]:
    """Apply sources' values and rules to every tensor.

    A rule wins over the source's own value, and that over the method's global parameter; of
    several rules that set a parameter for a tensor, the first wins.

    Raises:
        ConfigError: a value is out of range, a rule matches no tensor, or the method refuses a
            combination.
    """
    names = list(names)
    p = recipe.method.parameters
    _check_values(recipe, method)
    _check_matches(recipe, names)
    depths = layer_depths(names)
    shared_keys = [k for k in method.tensor_parameters if k not in method.source_parameters]
    resolved: dict[str, TensorParameters] = {}
    checked: set[tuple[Any, ...]] = set()
    for name in names:
        rules = [r.parameters for r in recipe.rules if fnmatch.fnmatchcase(name, r.match)]
        shared = {
            key: interpolate(
                next((r[key] for r in rules if key in r), getattr(p, key)),  # type: ignore[arg-type]
                depths[name],
            )
            for key in shared_keys
        }
        per_source = {
            key: tuple(
                interpolate(_of_source(recipe, rules, key, source), depths[name])
                for source in recipe.sources
            )
            for key in method.source_parameters
        }
        combination = (*shared.values(), *per_source.values())
        if method.check is not None and combination not in checked:
            checked.add(combination)
            _check(method, name, dataclasses.replace(p, **shared), per_source)
        resolved[name] = TensorParameters(shared, per_source)
    return resolved


def _of_source(recipe: Recipe, rules: list[Mapping[str, Any]], key: str, source: str) -> Value:
    for rule in rules:
        value = rule.get(key)
        if isinstance(value, Mapping):
            value = value.get(source)
        if value is not None:
            found: Value = value
            return found
    default: Value = getattr(recipe.method.parameters, key)
    return recipe.sources[source].parameters.get(key, default)


def _check_values(recipe: Recipe, method: Method) -> None:
    for name, source in recipe.sources.items():
        for key, value in source.parameters.items():
            _check_range(recipe.method.parameters, key, value, f"sources.{name}.")
    for i, rule in enumerate(recipe.rules):
        for key, given in rule.parameters.items():
            values = given.values() if isinstance(given, Mapping) else [given]
            for value in values:
                _check_range(recipe.method.parameters, key, value, f"rules[{i}].")


def _check_range(p: Any, key: str, value: Value, prefix: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        try:
            dataclasses.replace(p, **{key: number})
        except ConfigError as error:
            raise ConfigError(str(error).replace("method.", prefix, 1)) from error


def _check_matches(recipe: Recipe, names: list[str]) -> None:
    for i, rule in enumerate(recipe.rules):
        if not any(fnmatch.fnmatchcase(name, rule.match) for name in names):
            raise ConfigError(
                f"rules[{i}].match is {rule.match!r}, which matches no tensor; names look like "
                f"{names[len(names) // 2]}"
            )


def _check(method: Method, name: str, p: Any, per_source: Mapping[str, tuple[float, ...]]) -> None:
    assert method.check is not None
    try:
        method.check(per_source, p)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
