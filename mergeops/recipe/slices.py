"""Slices: a merge whose layers are put together from ranges of layers of its sources.

    slices:
      - sources: {a: [0, 16]}                      # layers 0 to 15 of a
      - sources: {a: {layers: [8, 24], weight: 0.3}, b: [8, 24]}
        density: [0.2, 0.8]                        # parameters of this slice
      - sources:                                   # the same source twice
          - {source: a, layers: [22, 23]}
          - {source: a, layers: [23, 24]}

``modules`` says the same for each part of a model with several stacks of layers:

    modules:
      encoder: {sources: {a: {weight: 0.3}, b: {weight: 0.7}}}     # all of its layers
      decoder: {slices: [{sources: {a: [0, 4]}}, {sources: {b: [2, 6]}}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import ConfigError
from mergeops.methods import Method
from mergeops.recipe.values import Setting, plain, read_settings

BASE = "base"


@dataclass(frozen=True)
class SlicePart:
    """What a slice takes from one source."""

    source: str
    """``base`` or the name of a source."""
    layers: tuple[int, int] | None = None
    """From the first to before the second; None: all of them."""
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the result."""

    sources: tuple[SlicePart, ...]
    base: SlicePart | None = None
    """What stands for the base here; None: the same layers of the recipe's base."""
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Module:
    """A part of the model with a stack of layers of its own."""

    slices: tuple[Slice, ...]
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    where: str = "slices"
    """Key of the list of slices, for errors."""


def read_slices(raw: Any, where: str, method: Method, sources: Iterable[str]) -> tuple[Slice, ...]:
    """Check a plain list; a ConfigError has the key, the value and what is allowed."""
    if not isinstance(raw, list | tuple):
        raise ConfigError(f"{where} is {raw!r}; write a list of {{sources: {{NAME: [0, 8]}}}}")
    names = (BASE, *sources)
    return tuple(_slice(item, f"{where}[{i}]", method, names) for i, item in enumerate(raw))


def read_modules(raw: Any, method: Method, sources: Iterable[str]) -> dict[str, Module]:
    """Check a plain mapping; a ConfigError has the key, the value and what is allowed."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"modules is {raw!r}; write {{encoder: {{slices: [...]}}, ...}}")
    names = (BASE, *sources)
    modules = {}
    for name, spec in raw.items():
        where = f"modules.{name}"
        if not isinstance(spec, Mapping) or ("slices" in spec) == ("sources" in spec):
            raise ConfigError(f"{where} is {spec!r}; it needs either slices or sources")
        if "slices" in spec:
            slices = read_slices(spec["slices"], f"{where}.slices", method, names[1:])
            if not slices:
                raise ConfigError(f"{where}.slices is empty; it needs at least one slice")
            parameters = read_settings(
                spec, where, ("slices",), method.tensor_parameters, method.name
            )
        else:
            slices, parameters = (_slice(spec, where, method, names, whole=True),), {}
        modules[str(name)] = Module(slices, parameters, f"{where}.slices")
    return modules


def plain_slices(slices: Iterable[Slice]) -> list[dict[str, Any]]:
    """As ``read_slices`` reads them, in plain types."""
    return [
        {
            "sources": [_plain_part(part) for part in one.sources],
            **({"base": _plain_part(one.base)} if one.base else {}),
            **{key: plain(value) for key, value in one.parameters.items()},
        }
        for one in slices
    ]


def plain_modules(modules: Mapping[str, Module]) -> dict[str, Any]:
    """As ``read_modules`` reads them, in plain types."""
    plain_by_name: dict[str, Any] = {}
    for name, module in modules.items():
        (first, *others) = plain_slices(module.slices)
        is_whole = not others and all(p.layers is None for p in module.slices[0].sources)
        own = {key: plain(value) for key, value in module.parameters.items()}
        plain_by_name[name] = first if is_whole else {"slices": [first, *others], **own}
    return plain_by_name


def _plain_part(part: SlicePart) -> dict[str, Any]:
    layers = {} if part.layers is None else {"layers": list(part.layers)}
    own = {key: plain(value) for key, value in part.parameters.items()}
    return {"source": part.source, **layers, **own}


def _slice(
    raw: Any, where: str, method: Method, names: tuple[str, ...], whole: bool = False
) -> Slice:
    if not isinstance(raw, Mapping) or not raw.get("sources"):
        raise ConfigError(f"{where} is {raw!r}; it needs sources, e.g. {{sources: {{a: [0, 8]}}}}")
    listed = raw["sources"]
    if isinstance(listed, Mapping):
        listed = [_named(name, part, f"{where}.sources.{name}") for name, part in listed.items()]
    if not isinstance(listed, list | tuple):
        raise ConfigError(f"{where}.sources is {listed!r}; write {{NAME: [0, 8]}}, or a list")
    parts = tuple(
        _part(part, f"{where}.sources[{i}]", method, names, whole) for i, part in enumerate(listed)
    )
    base = None
    if raw.get("base") is not None:
        at = f"{where}.base"
        base = _part(_named(BASE, raw["base"], at), at, method, names, whole)
    if not whole:
        _check_lengths(where, [*([base] if base else []), *parts])
    others = ("sources", "base")
    parameters = read_settings(raw, where, others, method.tensor_parameters, method.name)
    return Slice(parts, base, parameters)


def _named(name: Any, part: Any, where: str) -> dict[str, Any]:
    """``[0, 8]`` or ``{layers: [0, 8], ...}`` with its source's name."""
    if isinstance(part, list | tuple):
        part = {"layers": part}
    if not isinstance(part, Mapping | None):
        raise ConfigError(f"{where} is {part!r}; write a range of layers, e.g. [0, 8]")
    return {"source": str(name), **(part or {})}


def _part(raw: Any, where: str, method: Method, names: tuple[str, ...], whole: bool) -> SlicePart:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("source"), str):
        raise ConfigError(f"{where} is {raw!r}; write {{source: NAME, layers: [0, 8]}}")
    if raw["source"] not in names:
        raise ConfigError(
            f"{where}.source is {raw['source']!r}, no source's name; allowed: {', '.join(names)}"
        )
    layers = raw.get("layers")
    if whole and layers is not None:
        raise ConfigError(f"{where}.layers is {layers!r}; ranges of layers belong into slices")
    if not whole and not _is_range(layers):
        raise ConfigError(
            f"{where}.layers is {layers!r}; it takes two whole numbers, the first layer and the "
            "one after the last, e.g. [0, 8]"
        )
    others = ("source", "layers")
    own = read_settings(raw, where, others, method.source_parameters, method.name)
    return SlicePart(raw["source"], tuple(layers) if layers is not None else None, own)


def _is_range(layers: Any) -> bool:
    if not isinstance(layers, list | tuple) or len(layers) != 2:
        return False
    if any(isinstance(n, bool) or not isinstance(n, int) for n in layers):
        return False
    return bool(0 <= layers[0] < layers[1])


def _check_lengths(where: str, parts: list[SlicePart]) -> None:
    lengths = {part.layers[1] - part.layers[0] for part in parts if part.layers is not None}
    if len(lengths) > 1:
        ranges = ", ".join(f"{list(part.layers or ())} of {part.source}" for part in parts)
        raise ConfigError(f"{where} merges ranges of different length: {ranges}")
