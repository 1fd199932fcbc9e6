"""Strict conversion of plain dicts to frozen dataclasses, with errors that name the key.

Nothing is swallowed: an unknown key, a wrong type or a value out of range is a ``ConfigError``
that says the full key, the value and what is allowed.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from mergeops.errors import ConfigError

FOREIGN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What PyYAML raises, besides its own errors, of values that are not what their tag or form says:
the 13th month, ``!!int ''``, a number of 5000 digits."""
MOST_LEVELS, MOST_NODES = 100, 1_000_000


def read_yaml(content: str | bytes) -> Any:
    """The document of a YAML file, by the safe loader.

    Raises:
        ValueError: it is no YAML, or aliases make it endless.
    """
    import yaml

    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, *FOREIGN) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error
    level, count = [document], 0
    for _ in range(MOST_LEVELS):
        count += len(level)
        if not level or count > MOST_NODES:
            break
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError("it is nested too deeply, or too large")
    # A number of more digits than Python writes, as 0xff...f, would end a message.
    repr(document)
    return document


def _inside(outer: Any) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that a double can hold; true and false are none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word that a wrong one is close to, as a question for a message; else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def unknown_key(prefix: str, key: str, known: Iterable[str], method: str = "") -> ConfigError:
    """The error for a key that nobody reads."""
    known = list(known)
    of = f" of {method}" if method else ""
    return ConfigError(
        f"unknown key {prefix}{key}{of}; {did_you_mean(key, known)}"
        f"allowed: {', '.join(known) or 'nothing'}"
    )


def check_choice(where: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not one of the allowed words."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigError(f"{where} is {value!r}; allowed: {', '.join(allowed)}")


def check_range(where: str, value: float, low: float | None, high: float | None) -> None:
    """Refuse a number outside ``[low, high]`` (None: no bound), NaN included."""
    if (
        math.isnan(value)
        or (low is not None and value < low)
        or (high is not None and value > high)
    ):
        if high is None:
            allowed = f"at least {low:g}"
        elif low is None:
            allowed = f"at most {high:g}"
        else:
            allowed = f"from {low:g} to {high:g}"
        raise ConfigError(f"{where} is {value!r}; allowed: {allowed}")


def key_of_field(name: str) -> str:
    """What a user writes for a field; a Python keyword as a key has an underscore behind it."""
    return name.removesuffix("_")


def with_defaults(cls: type[Any]) -> set[str]:
    """The names of a dataclass's fields that have a default."""
    return {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }


def build(cls: type[Any], raw: Any, prefix: str, given: Mapping[str, Any] | None = None) -> Any:
    """Make a dataclass from a plain dict.

    Args:
        cls: a dataclass whose fields are scalars, tuples, mappings or dataclasses.
        raw: the plain dict.
        prefix: the key's path with a trailing dot, for messages.
        given: fields that are already converted.

    Raises:
        ConfigError: unknown key, missing key or wrong type.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} is {raw!r}; it takes a mapping")
    hints = typing.get_type_hints(cls)
    fields = {key_of_field(f.name): f.name for f in dataclasses.fields(cls)}
    values: dict[str, Any] = dict(given or {})
    for key, value in raw.items():
        if key not in fields:
            raise unknown_key(prefix, str(key), fields)
        name = fields[key]
        values[name] = convert(f"{prefix}{key}", value, hints[name])
    optional = with_defaults(cls)
    for key, name in fields.items():
        if name not in values and name not in optional:
            raise ConfigError(f"{prefix}{key} is missing")
    return cls(**values)


def convert(where: str, value: Any, hint: Any) -> Any:
    """Convert one plain value to the annotated type.

    Raises:
        ConfigError: the value does not fit.
    """
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, f"{where}.")
    if origin in (typing.Union, types.UnionType):
        return _convert_union(where, value, hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; it takes a list")
        item = typing.get_args(hint)[0]
        return tuple(convert(f"{where}[{i}]", v, item) for i, v in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}; it takes a mapping")
        item = typing.get_args(hint)[1]
        return {str(k): convert(f"{where}.{k}", v, item) for k, v in value.items()}
    return _convert_scalar(where, value, hint)


def _convert_union(where: str, value: Any, hint: Any) -> Any:
    members = typing.get_args(hint)
    if value is None and type(None) in members:
        return None
    error: ConfigError | None = None
    for member in members:
        if member is type(None):
            continue
        try:
            return convert(where, value, member)
        except ConfigError as caught:
            error = error or caught
    raise error or ConfigError(f"{where} is {value!r}")


def _convert_scalar(where: str, value: Any, hint: Any) -> Any:
    named = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str),
    }
    if not fits[hint]:
        raise ConfigError(f"{where} is {value!r}; it takes {named[hint]}")
    if hint is float and not is_finite(value):
        raise ConfigError(f"{where} is {value!r}; it takes a finite number")
    return hint(value)


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Field name -> the string literal that follows it in the class body, in one line; a dataclass
    also has those of its base classes, for fields that it does not describe itself."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__bases__):
        if dataclasses.is_dataclass(base):
            texts |= attribute_docstrings(base)
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            texts[field.target.id] = " ".join(text.value.value.split())
    return texts
