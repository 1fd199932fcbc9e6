"""From a recipe's numbers, gradients, choices and rules to each tensor's own parameters."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError
from mergeops.methods import Method
from mergeops.planning.pieces import Ingredient, Piece
from mergeops.planning.views import HEADS
from mergeops.recipe import MatchedValue, Recipe, Setting, choose, interpolate, numbers


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
    _check_values(recipe)
    _check_matches(recipe, pieces)
    shared_keys = [k for k in method.tensor_parameters if k not in method.source_parameters]
    resolved: dict[str, TensorParameters] = {}
    checked: set[tuple[Any, ...]] = set()
    for piece in pieces:
        rules = [r.parameters for r in recipe.rules if fnmatch.fnmatchcase(piece.name, r.match)]
        shared = {key: _decide(recipe, rules, piece, key) for key in shared_keys}
        per_source = {
            key: tuple(_decide(recipe, rules, piece, key, source) for source in piece.sources)
            for key in method.source_parameters
        }
        combination = (*shared.values(), *per_source.values())
        if method.check is not None and combination not in checked and not piece.is_taken:
            checked.add(combination)
            try:
                method.check(per_source, dataclasses.replace(p, **shared))
            except ConfigError as error:
                raise ConfigError(f"{piece.name}: {error}", at="method") from error
        resolved[piece.name] = TensorParameters(shared, per_source)
    return resolved


def _decide(
    recipe: Recipe,
    rules: Sequence[Mapping[str, Any]],
    piece: Piece,
    key: str,
    source: Ingredient | None = None,
) -> float:
    """A parameter for a tensor, or for one of its sources.

    Every level may hold a number or a gradient, which is read off at the tensor's depth.
    """
    for rule in rules:
        value = rule.get(key)
        if isinstance(value, Mapping):
            value = value.get(source.source) if source else None
        if value is not None:
            return interpolate(value, piece.depth)
    tensor, levels = piece.name, piece.parameters
    if source is not None:
        named = recipe.sources.get(source.source)
        own = named.parameters if named else {}
        tensor, levels = source.stored.name, (source.parameters, own, *levels)
    for settings in levels:
        value = choose(settings.get(key), tensor)
        if value is not None:
            return interpolate(value, piece.depth)
    return interpolate(getattr(recipe.method.parameters, key), piece.depth)


def _check_values(recipe: Recipe) -> None:
    for prefix, settings in [*_sliced(recipe), *_of_sources(recipe)]:
        for key, value in settings.items():
            _check_range(recipe.method.parameters, key, value, prefix)
    for i, rule in enumerate(recipe.rules):
        for key, decided in rule.parameters.items():
            for value in decided.values() if isinstance(decided, Mapping) else [decided]:
                _check_range(recipe.method.parameters, key, value, f"rules[{i}].")


def _of_sources(recipe: Recipe) -> list[tuple[str, Mapping[str, Setting]]]:
    """What every source sets, with where it stands."""
    return [(f"sources.{name}.", source.parameters) for name, source in recipe.sources.items()]


def _sliced(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Setting]]]:
    """Everything that slices and modules set, with where it stands."""
    stacks = {"": recipe.slices}
    for name, module in recipe.modules.items():
        yield f"modules.{name}.", module.parameters
        stacks[f"modules.{name}."] = module.slices
    for prefix, slices in stacks.items():
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
    both = names | {part.stored.name: None for piece in pieces for part in piece.sources}
    globs = [(f"rules[{i}].match", rule.match, names) for i, rule in enumerate(recipe.rules)]
    for prefix, settings in [*_of_sources(recipe), *_sliced(recipe)]:
        for key, setting in settings.items():
            for i, choice in enumerate(setting if isinstance(setting, tuple) else ()):
                if isinstance(choice, MatchedValue):
                    globs.append((f"{prefix}{key}[{i}].match", choice.match, both))
    checked: set[str] = set()
    for key, glob, candidates in globs:
        if glob in checked or fnmatch.filter([*candidates, *HEADS], glob):
            checked.add(glob)
            continue
        example = list(names)[len(names) // 2]
        at, message = key, f"{key} is {glob!r}, which matches no tensor"
        if f"match:{glob}" in recipe.origins:
            # A filter of mergekit's is a part of the name.
            at, message = f"match:{glob}", f"is {glob[1:-1]!r}, which is in no tensor's name"
        raise ConfigError(f"{message}; names look like {example}", at=at)
