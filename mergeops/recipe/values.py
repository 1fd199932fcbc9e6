"""Parameter values as a recipe writes them: numbers, gradients over depth, choices by name.

0.5                                       a number
[0.0, 0.5, 1.0]                           a gradient, evenly spaced over the layers
[{match: "*.mlp.*", value: 0.3}, 0.7]     the first that matches the tensor's name decides
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError
from mergeops.schema import is_finite, unknown_key

Value = float | tuple[float, ...]
"""One number, or a gradient over the layers, linearly interpolated."""


@dataclass(frozen=True)
class MatchedValue:
    """A value for the tensors whose name matches."""

    match: str
    """A glob over tensor names."""
    value: Value


Setting = Value | tuple[MatchedValue, ...]
"""What a source, a slice or a module may set a parameter to."""


def read_value(where: str, value: Any) -> Value:
    """A number or a gradient.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | list | tuple):
        raise ConfigError(f"{where} is {value!r}; it takes a number, or a list as gradient")
    if isinstance(value, list | tuple):
        if not value or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
            raise ConfigError(f"{where} is {value!r}; a gradient is a list of numbers")
        if not all(map(is_finite, value)):
            raise ConfigError(f"{where} is {value!r}; a gradient is a list of finite numbers")
        return tuple(map(float, value))
    if not is_finite(value):
        raise ConfigError(f"{where} is {value!r}; it takes a finite number")
    return float(value)


def read_setting(where: str, value: Any) -> Setting:
    """A number, a gradient, or choices by name.

    Raises:
        ConfigError: it is none of them.
    """
    if not isinstance(value, list | tuple) or not any(isinstance(v, Mapping) for v in value):
        return read_value(where, value)
    choices = []
    for i, item in enumerate(value):
        at = f"{where}[{i}]"
        if not isinstance(item, Mapping):
            item = {"value": item}
        for key in item:
            if key not in ("match", "value"):
                raise unknown_key(f"{at}.", str(key), ("match", "value"))
        match = item.get("match", "*")
        if not isinstance(match, str):
            raise ConfigError(f"{at}.match is {match!r}; it takes a glob over tensor names")
        choices.append(MatchedValue(match, read_value(f"{at}.value", item.get("value"))))
    return tuple(choices)


def read_settings(
    raw: Mapping[Any, Any], where: str, others: tuple[str, ...], allowed: tuple[str, ...], of: str
) -> dict[str, Setting]:
    """The parameters in a mapping that has other keys, too.

    Args:
        raw: the mapping.
        where: its key.
        others: keys that are no parameters.
        allowed: names of parameters.
        of: the method that has them.

    Raises:
        ConfigError: a key is neither, or a value is none that ``read_setting`` takes.
    """
    settings = {}
    for key, value in raw.items():
        if key in others:
            continue
        if key not in allowed:
            raise unknown_key(f"{where}.", str(key), (*others, *allowed), method=of)
        settings[str(key)] = read_setting(f"{where}.{key}", value)
    return settings


def plain(setting: Setting) -> Any:
    """As ``read_setting`` reads it, in plain types."""
    if isinstance(setting, tuple):
        return [dataclasses.asdict(v) if isinstance(v, MatchedValue) else v for v in setting]
    return setting


def numbers(setting: Setting) -> Iterator[float]:
    """Every number that a setting holds."""
    for value in setting if isinstance(setting, tuple) else (setting,):
        if isinstance(value, MatchedValue):
            yield from numbers(value.value)
        else:
            yield value


def choose(setting: Setting | None, tensor: str) -> Value | None:
    """The value for a tensor; None where no choice matches its name."""
    if not isinstance(setting, tuple) or not isinstance(setting[0], MatchedValue):
        return setting
    for choice in setting:
        assert isinstance(choice, MatchedValue)
        if fnmatch.fnmatchcase(tensor, choice.match):
            return choice.value
    return None


def interpolate(value: Value, depth: float) -> float:
    """A number is itself; a list is a gradient, evenly spaced over the depth 0 to 1."""
    if not isinstance(value, tuple):
        return value
    # Linear interpolation between the two values of the list that are nearest to the depth.
    position = depth * (len(value) - 1)
    left = min(int(position), max(len(value) - 2, 0))
    right = min(left + 1, len(value) - 1)
    share = position - left
    return value[left] * (1.0 - share) + value[right] * share
