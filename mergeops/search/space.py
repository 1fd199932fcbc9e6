"""The space of a study: which keys of the recipe its trials choose, and from what.

    {method: [linear, ties], "sources.*.weight": [0.0, 1.0], method.density: [0.1, 1.0], depth: 3}

Two numbers are a range, any other list is a choice, and ``{low: ..., high: ..., log: true}`` is a
range on a logarithmic scale. A ``*`` stands for every source. ``depth: k`` makes each weight a
gradient of k points over the layers. A source whose weights all lie in the lowest tenth of a range
from 0 takes no part, so that a trial also chooses among the sources.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from mergeops.errors import ConfigError, MergeopsError
from mergeops.methods import Method, get, names
from mergeops.recipe import Recipe
from mergeops.schema import did_you_mean, is_finite

DEFAULT_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")
"""What a study tries by itself where there is a base; without one, the first."""
LEFT_OUT = 0.1
"""Of a weight's upper end: a source whose weights are all below takes no part."""
_METHOD, _DEPTH = "method", "depth"
Values = Mapping[str, Any]
"""Of a trial: axis -> what was drawn."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One number or word that a trial draws."""

    name: str
    """The recipe's dotted key; of a gradient with the point's index, ``sources.a.weight#1``."""
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    """Instead of a range."""
    is_log: bool = False
    methods: frozenset[str] | None = None
    """Those that have the key; None where all do."""

    @property
    def key(self) -> str:
        """The recipe's key."""
        return self.name.partition("#")[0]

    @property
    def is_whole(self) -> bool:
        """Whether the range is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, trial: Any) -> Any:
        """What an Optuna trial takes of it."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        suggest = trial.suggest_int if self.is_whole else trial.suggest_float
        return suggest(self.name, self.low, self.high, log=self.is_log)

    def holds(self, value: Any) -> bool:
        """Whether a trial could draw the value."""
        if self.choices:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high


class Choices(Protocol):
    """What a study chooses from."""

    @property
    def recipe(self) -> Recipe:
        """What its candidates vary."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What a candidate draws."""

    def drawn(self, trial: Any) -> dict[str, Any]:
        """What an Optuna trial draws."""

    def at(self, method: str, weights: Mapping[str, float]) -> dict[str, Any] | None:
        """The values of a merge with these weights by source; None where there are none."""

    def made(self, values: Values) -> Recipe:
        """The recipe of a trial; raises ConfigError where it is none."""


@dataclass(frozen=True)
class Space:
    """All axes of a study over one recipe."""

    recipe: Recipe
    axes: tuple[Axis, ...]
    """``method`` first, where it is one."""

    @classmethod
    def read(cls, recipe: Recipe, raw: Mapping[str, Any]) -> Space:
        """The space that a user wrote, checked by making the recipes at its corners.

        Args:
            recipe: what the trials vary.
            raw: as the module says; empty takes ``default_space``.

        Raises:
            ConfigError: an unknown key, source or method, an empty range, or a value that the
                recipe refuses.
        """
        raw = dict(raw or default_space(recipe))
        depth = _depth(raw.pop(_DEPTH, 1))
        tried = _methods(raw.pop(_METHOD, None), recipe)
        axes = [Axis(name=_METHOD, choices=tried)] if len(tried) > 1 else []
        for key, value in raw.items():
            methods = frozenset(name for name in tried if _has(get(name), key))
            if not methods:
                raise _nobody_reads(key, tried)
            whose = None if len(methods) == len(tried) else methods
            for full in _expanded(key, recipe):
                points = depth if _is_weight(full) else 1
                labels = [full] if points == 1 else [f"{full}#{i}" for i in range(points)]
                axes += [_axis(key, label, value, whose) for label in labels]
        fixed = recipe if len(tried) > 1 else _with_method(recipe, tried[0])
        space = cls(fixed, tuple(axes))
        if not axes:
            raise ConfigError("search.space holds no key; it takes KEY: [LOW, HIGH] or [CHOICES]")
        for method, pick in itertools.product(tried, (0, -1)):
            corner = {a.name: (a.choices or (a.low, a.high))[pick] for a in space.axes}
            try:
                space.made(corner | ({_METHOD: method} if len(tried) > 1 else {}))
            except MergeopsError as error:
                raise ConfigError(f"search.space: {error}") from error
        return space

    def drawn(self, trial: Any) -> dict[str, Any]:
        """What an Optuna trial draws: the axes that its method has."""
        values: dict[str, Any] = {}
        for axis in self.axes:
            if axis.methods is None or values[_METHOD] in axis.methods:
                values[axis.name] = axis.draw(trial)
        return values

    def at(self, method: str, weights: Mapping[str, float]) -> dict[str, Any] | None:
        """The values of a merge with these weights by source; None where the space has none."""
        values: dict[str, Any] = {}
        for axis in self.axes:
            if axis.methods is not None and method not in axis.methods:
                continue
            if axis.name == _METHOD:
                values[axis.name] = method
            elif _is_weight(axis.key):
                values[axis.name] = weights[axis.key.split(".")[1]]
            if axis.name not in values or not axis.holds(values[axis.name]):
                return None
        return values if method in (values.get(_METHOD), self.recipe.method.name) else None

    def made(self, values: Values) -> Recipe:
        """The recipe of a trial.

        Raises:
            ConfigError: the recipe refuses a value.
        """
        recipe = self.recipe
        if _METHOD in values:
            recipe = _with_method(recipe, values[_METHOD])
        raw = recipe.to_dict()
        gradients: dict[str, list[Any]] = {}
        for axis in self.axes:
            if axis.name == _METHOD or axis.name not in values:
                continue
            if axis.methods is not None and raw[_METHOD]["name"] not in axis.methods:
                continue
            if axis.name != axis.key:
                gradients.setdefault(axis.key.split(".")[1], []).append(values[axis.name])
                continue
            *parents, last = axis.key.split(".")
            node = raw
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = values[axis.name]
        for name in self._absent(values):
            del raw["sources"][name]
            gradients.pop(name, None)
        if gradients:
            # After the user's own rules, which win.
            raw["rules"].append({"match": "*", "weight": gradients})
        return Recipe.from_dict(raw)

    def _absent(self, values: Values) -> list[str]:
        """The sources that take no part: at least as many as the method needs stay."""
        shares: dict[str, float] = {}
        for axis in self.axes:
            if not _is_weight(axis.key) or axis.low != 0 or axis.name not in values:
                continue
            assert axis.high is not None
            name = axis.key.split(".")[1]
            shares[name] = max(shares.get(name, 0.0), values[axis.name] / axis.high)
        method = get(values.get(_METHOD, self.recipe.method.name))
        needed = self.recipe.tokenizer.source
        weak = sorted((share, name) for name, share in shares.items() if share < LEFT_OUT)
        most = len(self.recipe.sources) - max(method.min_sources, 1)
        return [name for _, name in weak if name != needed][: max(most, 0)]


def default_space(recipe: Recipe) -> dict[str, Any]:
    """What a study varies where nothing else is asked for: method, weights and density."""
    tried = [name for name in DEFAULT_METHODS if recipe.base or not get(name).needs_base]
    space: dict[str, Any] = {_METHOD: tried, "sources.*.weight": [0.0, 1.0]}
    if any(_has(get(name), "method.density") for name in tried):
        space["method.density"] = [0.1, 1.0]
    return space | {_DEPTH: 1}


def label_of(values: Values) -> str:
    """A trial's values in few words."""
    words = []
    for name, value in values.items():
        short = name.removeprefix("sources.").removeprefix("method.").replace(".weight", "")
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        words.append(text if name == _METHOD else f"{short}={text}")
    return " ".join(words)


def _with_method(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another method and what of its settings that method has."""
    if recipe.method.name == name:
        return recipe
    method, raw = get(name), recipe.to_dict()
    own = {f.name for f in dataclasses.fields(method.parameters)}
    # A value that the recipe does not set is another method's default, not a wish.
    defaults = recipe.method.parameters.__class__()
    wished = {k: v for k, v in raw["method"].items() if k in own and v != getattr(defaults, k)}
    prompts = {"prompts": recipe.method.prompts} if method.activations else {}
    raw["method"] = {"name": name, **prompts, **wished}
    kept = ("uri", "base", *(["prompts"] if method.activations else []), *method.source_parameters)
    raw["sources"] = {
        source: {k: v for k, v in spec.items() if k in kept}
        for source, spec in raw["sources"].items()
    }
    tunable = ("match", *method.tensor_parameters)
    raw["rules"] = [{k: v for k, v in rule.items() if k in tunable} for rule in raw["rules"]]
    return Recipe.from_dict(raw)


def _is_weight(key: str) -> bool:
    return key.startswith("sources.") and key.endswith(".weight")


def _depth(raw: Any) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= 16:
        raise ConfigError(
            f"search.space.depth is {raw!r}; it takes the points of a gradient over the layers, a "
            "whole number from 1 to 16"
        )
    return raw


def _methods(raw: Any, recipe: Recipe) -> tuple[str, ...]:
    if raw is None:
        return (recipe.method.name,)
    wanted = [raw] if isinstance(raw, str) else raw
    if not isinstance(wanted, Sequence) or not wanted:
        raise ConfigError(f"search.space.method is {raw!r}; it takes a list of methods")
    for name in wanted:
        if name not in names():
            raise ConfigError(
                f"search.space.method: {name!r} is no method; {did_you_mean(str(name), names())}"
                f"allowed: {', '.join(names())}"
            )
        if get(name).needs_base and recipe.base is None:
            raise ConfigError(f"search.space.method: {name} needs a base, and base is null")
    return tuple(dict.fromkeys(wanted))


def _has(method: Method, key: str) -> bool:
    """Whether a method reads a key of the recipe; keys of other parts are everybody's."""
    part, _, rest = key.partition(".")
    if part == "method":
        return rest in {f.name for f in dataclasses.fields(method.parameters)}
    if part == "sources":
        return rest.rpartition(".")[2] in method.source_parameters
    return True


def _nobody_reads(key: str, tried: Sequence[str]) -> ConfigError:
    known = sorted(
        {f"method.{f.name}" for name in tried for f in dataclasses.fields(get(name).parameters)}
        | {f"sources.*.{p}" for name in tried for p in get(name).source_parameters}
    )
    return ConfigError(
        f"search.space: none of {', '.join(tried)} reads {key!r}; {did_you_mean(key, known)}"
        f"they read {', '.join(known)}"
    )


def _expanded(key: str, recipe: Recipe) -> list[str]:
    """A key with its glob put in words; the glob stands for names of sources."""
    part, _, rest = key.partition(".")
    if part != "sources":
        return [key]
    pattern, _, last = rest.rpartition(".")
    matching = [name for name in recipe.sources if fnmatchcase(name, pattern)]
    if not matching:
        raise ConfigError(
            f"search.space: {key!r} names no source of the recipe; they are: "
            f"{', '.join(recipe.sources)}"
        )
    return [f"sources.{name}.{last}" for name in matching]


def _axis(key: str, name: str, value: Any, methods: frozenset[str] | None) -> Axis:
    """One line of the space.

    Raises:
        ConfigError: no list and no range, or a range that is empty.
    """
    where = f"search.space.{key}"
    if isinstance(value, Mapping):
        if not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
            raise ConfigError(f"{where} is {dict(value)}; it takes {{low: , high: , log: true}}")
        low, high, is_log = value["low"], value["high"], bool(value.get("log", False))
    elif isinstance(value, list | tuple) and len(value) == 2 and all(map(is_finite, value)):
        (low, high), is_log = value, False
    elif isinstance(value, list | tuple) and value:
        choices = tuple(dict.fromkeys(value))
        return Axis(name=name, choices=choices, methods=methods)
    else:
        raise ConfigError(f"{where} is {value!r}; it takes [LOW, HIGH] or a list of choices")
    if not (is_finite(low) and is_finite(high) and low < high):
        raise ConfigError(f"{where}: the range from {low!r} to {high!r} is empty")
    if is_log and low <= 0:
        raise ConfigError(f"{where}: a logarithmic range starts above 0, not at {low!r}")
    if not (isinstance(low, int) and isinstance(high, int)) or "weight" in key:
        low, high = float(low), float(high)
    return Axis(name=name, low=low, high=high, is_log=is_log, methods=methods)
