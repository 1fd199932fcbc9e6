"""From a recipe's numbers, gradients, choices and rules to each tensor's own parameters."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError
from mergeops.methods import Method
from mergeops.pieces import Ingredient, Piece
from mergeops.recipe import Recipe
from mergeops.values import Choice, Setting, Value, choose, interpolate, numbers
from mergeops.views import HEADS


@dataclass(frozen=True)
class TensorParameters:
    """What one tensor is merged with."""

    shared: Mapping[str, float]
    """Global parameters that a rule may set."""
    per_source: Mapping[str, tuple[float, ...]]
    """Source parameters, in the order of the tensor's sources."""


def resolve_parameters(
    recipe: Recipe, method: Method, pieces: Iterable[Piece]
) -> dict[str, TensorParameters]:
    """Apply rules and all settings to every tensor.

    A rule wins over what a part of a slice sets, that over the source, the slice, the module, and
    all over the method's global parameter; of several rules or choices, the first that matches.
    Rules and what is one value for all go by the tensor's name in the result, the others by its
    name in the source.

    Raises:
        ConfigError: a value is out of range, a rule matches no tensor, or the method refuses a
            combination.
    """
    pieces = list(pieces)
    p = recipe.method.parameters
    _check_values(recipe, method)
    _check_matches(recipe, pieces)
    shared_keys = [k for k in method.tensor_parameters if k not in method.source_parameters]
    resolved: dict[str, TensorParameters] = {}
    checked: set[tuple[Any, ...]] = set()
    for piece in pieces:
        rules = [r.parameters for r in recipe.rules if fnmatch.fnmatchcase(piece.name, r.match)]
        shared = {
            key: interpolate(_shared(p, piece, rules, key), piece.depth) for key in shared_keys
        }
        per_source = {
            key: tuple(
                interpolate(_of_source(recipe, piece, rules, key, source), piece.depth)
                for source in piece.sources
            )
            for key in method.source_parameters
        }
        combination = (*shared.values(), *per_source.values())
        if method.check is not None and combination not in checked and not piece.is_taken:
            checked.add(combination)
            _check(method, piece.name, dataclasses.replace(p, **shared), per_source)
        resolved[piece.name] = TensorParameters(shared, per_source)
    return resolved


def _shared(p: Any, piece: Piece, rules: list[Mapping[str, Any]], key: str) -> Value:
    for rule in rules:
        if key in rule:
            decided: Value = rule[key]
            return decided
    for settings in piece.parameters:
        value = choose(settings.get(key), piece.name)
        if value is not None:
            return value
    default: Value = getattr(p, key)
    return default


def _of_source(
    recipe: Recipe, piece: Piece, rules: list[Mapping[str, Any]], key: str, source: Ingredient
) -> Value:
    for rule in rules:
        value = rule.get(key)
        if isinstance(value, Mapping):
            value = value.get(source.source)
        if value is not None:
            decided: Value = value
            return decided
    own = recipe.sources[source.source].parameters if source.source in recipe.sources else {}
    for settings in (source.parameters, own, *piece.parameters):
        found = choose(settings.get(key), source.stored.name)
        if found is not None:
            return found
    default: Value = getattr(recipe.method.parameters, key)
    return default


def _check_values(recipe: Recipe, method: Method) -> None:
    for where, parameters in _sliced(recipe):
        for key, value in parameters.items():
            _check_range(recipe.method.parameters, key, value, where)
    for name, source in recipe.sources.items():
        for key, value in source.parameters.items():
            _check_range(recipe.method.parameters, key, value, f"sources.{name}.")
    for i, rule in enumerate(recipe.rules):
        for key, given in rule.parameters.items():
            values = given.values() if isinstance(given, Mapping) else [given]
            for value in values:
                _check_range(recipe.method.parameters, key, value, f"rules[{i}].")


def _sliced(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Setting]]]:
    """Everything that slices and modules set, with where it stands."""
    stacks = [("", recipe.slices)] if recipe.slices else []
    stacks += [(f"modules.{name}.", module.slices) for name, module in recipe.modules.items()]
    for name, module in recipe.modules.items():
        yield f"modules.{name}.", module.parameters
    for prefix, slices in stacks:
        for i, one in enumerate(slices):
            yield f"{prefix}slices[{i}].", one.parameters
            for j, part in enumerate(one.sources):
                yield f"{prefix}slices[{i}].sources[{j}].", part.parameters


def _check_range(p: Any, key: str, value: Setting, prefix: str) -> None:
    for number in numbers(value):
        try:
            dataclasses.replace(p, **{key: number})
        except ConfigError as error:
            raise ConfigError(str(error).replace("method.", prefix, 1)) from error


def _check_matches(recipe: Recipe, pieces: Sequence[Piece]) -> None:
    """Every glob takes a tensor, or would if the output head were not tied to the embeddings."""
    names = {piece.name: None for piece in pieces}
    parts = {ingredient.stored.name: None for piece in pieces for ingredient in piece.sources}
    globs = [(f"rules[{i}].match", rule.match, names) for i, rule in enumerate(recipe.rules)]
    own = [(f"sources.{name}.", source.parameters) for name, source in recipe.sources.items()]
    for prefix, settings in [*own, *_sliced(recipe)]:
        for key, setting in settings.items():
            for i, choice in enumerate(setting if isinstance(setting, tuple) else ()):
                if isinstance(choice, Choice):
                    globs.append((f"{prefix}{key}[{i}].match", choice.match, names | parts))
    checked: set[str] = set()
    for key, glob, candidates in globs:
        if glob in checked or fnmatch.filter([*candidates, *HEADS], glob):
            checked.add(glob)
            continue
        plain = list(names)
        written = f"match:{glob}"
        if written in recipe.origins:
            # There a filter is a part of the name.
            message = f"is {glob[1:-1]!r}, which is in no tensor's name"
        else:
            message = f"{key} is {glob!r}, which matches no tensor"
            written = key
        raise ConfigError(f"{message}; names look like {plain[len(plain) // 2]}", at=written)


def _check(method: Method, name: str, p: Any, per_source: Mapping[str, tuple[float, ...]]) -> None:
    assert method.check is not None
    try:
        method.check(per_source, p)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}", at="method") from error
