"""mergekit's parameters, level by level, as settings of a native recipe.

In mergekit the first level that has a value for a tensor decides: the model's own, the slice's, the
module's, the config's. Choices fall through to the next level where no filter matches; so levels
that are joined into one list mean the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mergeops import methods
from mergeops.errors import ConfigError
from mergeops.recipe.mergekit.document import FilteredValue, Parameters
from mergeops.recipe.mergekit.method_table import (
    IGNORED,
    METHODS,
    PARAMETERS,
    REQUIRED,
    Default,
    Described,
    ours,
)
from mergeops.recipe.yaml_items import YamlItem

NORM_MATCHED = ("dare_linear", "dare_ties", "della", "della_linear")
"""Methods whose rescale is the paper's here, and a matching of L1 norms in mergekit."""


class Settings:
    """Reads one document's parameters.

    Args:
        method: mergekit's name, which is ours.
        compat: whether mergekit's numbers are wanted where ours differ by choice.
    """

    def __init__(self, method: str, *, compat: bool) -> None:
        self.method = method
        self.described: Described = METHODS[method]
        self._compat = compat
        self._native = methods.get(method)
        self._types = {p.name: p.type for p in self._native.describe()}
        self.filters: dict[str, YamlItem] = {}
        """``match:GLOB`` -> where the filter stands, for those that were read."""
        self.notes: list[str] = []
        """What the config says without effect."""

    def check_names(self, parameters: Parameters, *, of_model: bool) -> None:
        """Refuse parameters that no method has, or this one not at this level; note those of other
        methods, which mergekit ignores.
        """
        shared, own = self.described.shared, self.described.per_model
        allowed = own if of_model else {**own, **shared}
        for name, choices in parameters.items():
            item = choices[0].value
            if name in IGNORED and name not in own:
                continue
            if of_model and name in shared:
                raise item.error(
                    f"is given for one model, but {name} of {self.method} is one value for all; "
                    "move it to the parameters of the slice, the module or the whole merge"
                )
            if name in allowed:
                continue
            if name not in PARAMETERS:
                shown = dict.fromkeys((*allowed, *IGNORED))
                raise item.unknown(name, shown, f" of {self.method}")
            self.notes.append(f"{item.place}: {self.method} has no {name}, so it has no effect")

    def method_values(self, config: Parameters) -> dict[str, Any]:
        """The native method's own parameters: those with one value for the whole merge."""
        values: dict[str, Any] = {}
        for name, native, default in self._native_names(per_model=True, shared=True):
            choices = config.get(name, ())
            single = self._single(choices)
            if single is not None:
                values[native] = self._scalar(native, single)
            elif self._types[native] != "float" and choices:
                raise self._one_value(name, choices[0].value)
            elif default is not REQUIRED:
                values[native] = default
        if self.method in NORM_MATCHED and self._compat and values.get("rescale"):
            values["match_norm"] = True
        return values

    def model_values(
        self, where: YamlItem, levels: Iterable[Parameters], config: Parameters
    ) -> dict[str, Any]:
        """A source's settings.

        ``levels`` are its own parameters, then those of slice and module. The whole merge's,
        ``config``, are left out where ``method_values`` has them.
        """
        levels = list(levels)
        values = {}
        for name, native, default in self._native_names(per_model=True):
            own = [choice for level in levels for choice in level.get(name, ())]
            every = [*own, *config.get(name, ())]
            if default is REQUIRED and not any(choice.filter is None for choice in every):
                needs = f"{self.method} needs {name} for every model"
                if not every:
                    raise where.error(f"has no parameters.{name}; {needs}")
                raise every[-1].value.error(f"has no value where no filter matches; {needs}")
            if own or (every and self._single(every) is None):
                values[native] = self._setting(native, every)
        return values

    def slice_values(self, levels: Iterable[Parameters], config: Parameters) -> dict[str, Any]:
        """A slice's settings of what is one value for all sources."""
        levels = list(levels)
        values = {}
        for name, native, _ in self._native_names(shared=True):
            own = [choice for level in levels for choice in level.get(name, ())]
            if own and self._types[native] == "float":
                values[native] = self._setting(native, [*own, *config.get(name, ())])
        return values

    def common_values(
        self, slices: Iterable[Sequence[Parameters]], config: Parameters
    ) -> dict[str, Any]:
        """What slices and modules set that is one value for the whole merge: they must agree.

        Args:
            slices: for each slice its own parameters and its module's.
            config: the whole merge's.
        """
        slices = list(slices)
        values = {}
        for name, native, default in self._native_names(shared=True):
            is_set = any(name in level for levels in slices for level in levels)
            if self._types[native] == "float" or not is_set:
                continue
            per_slice: list[tuple[Any, YamlItem | None]] = []
            for levels in slices:
                choices = [c for level in (*levels, config) for c in level.get(name, ())]
                single = self._single(choices)
                if single is None and choices:
                    raise self._one_value(name, choices[0].value)
                value = self._scalar(native, single) if single else default
                per_slice.append((value, single))
            value, first = per_slice[0]
            for other, item in per_slice:
                if other != value:
                    at = item or first
                    assert at is not None
                    raise self._one_value(name, at)
            values[native] = value
        return values

    def rules(self, config: Parameters, decided: Iterable[str]) -> list[dict[str, Any]]:
        """Rules for what is one value for all sources but differs between tensors.

        Native names that slices set are ``decided``, with the config's choices behind theirs.
        """
        decided = set(decided)
        rules = []
        for name, native, _ in self._native_names(shared=True):
            choices = config.get(name, ())
            if native in decided or self._single(choices) is not None:
                continue
            rules += [
                {"match": self._glob(choice), native: self._value(native, choice.value)}
                for choice in _reachable(choices)
            ]
        return rules

    def check_required(self, item: YamlItem, config: Parameters, decided: Iterable[str]) -> None:
        """Refuse a config that leaves a required shared parameter open."""
        decided = set(decided)
        for name, default in self.described.shared.items():
            choices = config.get(name, ())
            if default is not REQUIRED or name in decided:
                continue
            if not any(choice.filter is None for choice in choices):
                missing = "has no value where no filter matches" if choices else "is missing"
                at = choices[-1].value if choices else item
                raise at.error(
                    f"{'' if choices else f'parameters.{name} '}{missing}; {self.method} needs it"
                )

    def _native_names(
        self, *, per_model: bool = False, shared: bool = False
    ) -> Iterator[tuple[str, str, Default]]:
        """mergekit's name, ours and mergekit's default, of parameters that have an effect."""
        described = self.described.per_model if per_model else {}
        for name, default in {**described, **(self.described.shared if shared else {})}.items():
            native = ours(self.method, name)
            if native is not None:
                yield name, native, default

    def _single(self, choices: Iterable[FilteredValue]) -> YamlItem | None:
        """The one value for all tensors; None where there are several, or a gradient."""
        reachable = _reachable(choices)
        if len(reachable) == 1 and reachable[0].filter is None and not reachable[0].value.is_list:
            return reachable[0].value
        return None

    def _setting(self, native: str, choices: Iterable[FilteredValue]) -> Any:
        reachable = _reachable(choices)
        if len(reachable) == 1 and reachable[0].filter is None:
            return self._value(native, reachable[0].value)
        return [
            {"match": self._glob(choice), "value": self._value(native, choice.value)}
            for choice in reachable
        ]

    def _glob(self, choice: FilteredValue) -> str:
        pattern = glob(choice.filter)
        self.filters.setdefault(f"match:{pattern}", choice.at)
        return pattern

    def _value(self, native: str, item: YamlItem) -> Any:
        if not item.is_list:
            return self._scalar(native, item)
        if not item.items(""):
            raise item.error("is an empty list; a gradient has numbers")
        return [self._scalar(native, one) for one in item.items("")]

    def _scalar(self, native: str, item: YamlItem) -> Any:
        kind = self._types[native]
        value: Any
        if kind == "bool":
            value = item.truth()
        elif kind == "int":
            value = item.whole()
        else:
            value = item.number()
        try:
            dataclasses.replace(self._native.parameters(), **{native: value})
        except ConfigError as error:
            # "method.density is 2.0; allowed: ..." after the YAML's own name for it.
            raise item.error(str(error).removeprefix(f"method.{native} ")) from error
        return value

    def _one_value(self, name: str, item: YamlItem) -> ConfigError:
        return item.error(
            f"differs between tensors, but {name} of {self.method} is one value for the whole "
            "merge; write one value into the parameters of the whole merge"
        )


def glob(word: str | None) -> str:
    """mergekit's filter, a part of the name, as a glob."""
    if word is None:
        return "*"
    escaped = "".join(f"[{c}]" if c in "*?[" else c for c in word)
    return f"*{escaped}*"


def _reachable(choices: Iterable[FilteredValue]) -> list[FilteredValue]:
    """Choices up to the first that takes every tensor."""
    reachable = []
    for choice in choices:
        reachable.append(choice)
        if choice.filter is None:
            break
    return reachable


def names_of(settings: Iterable[Mapping[str, Any]]) -> set[str]:
    """All keys of several settings."""
    return {key for one in settings for key in one}
