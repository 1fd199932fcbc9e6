"""Recipe files: native or mergekit's, read and written."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe.mergekit.convert import Converted
from mergeops.recipe.mergekit.read import is_mergekit, read_mergekit, refuse_other_configs
from mergeops.recipe.recipe import Recipe
from mergeops.recipe.yaml_items import YamlItem, read_documents

GROUPS = ("recipe", "method", "evaluate", "search", "tracking", "promote", "executor")
MERGEKIT = "mergekit"
PACKAGE = "# @package _global_"
"""First line of a recipe that ``recipe=NAME`` finds: Hydra layers its keys at the top."""


def is_written(path: Path, text: str) -> bool:
    """Whether a file holds this text already."""
    return path.is_file() and path.read_bytes() == text.encode()


def read_recipe_file(path: Path, compat: Any = None) -> Converted:
    """A recipe file, native or mergekit's YAML, as a plain dict, and where its keys stand there.

    Args:
        path: the file.
        compat: ``mergekit`` asks for mergekit's numbers where ours differ by choice.

    Raises:
        ConfigError: it cannot be read; what mergekit's YAML says is checked with line numbers.
    """
    if not path.is_file():
        raise ConfigError(f"recipe file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        if is_mergekit(text, str(path)):
            return read_mergekit(path, compat=compat == MERGEKIT)
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe file {path} is not YAML: {one_line(error)}") from error
    items = read_documents(text, f"recipe file {path}")
    if len(items) > 1:
        raise items[1].error(f"begins a second of {len(items)} documents; a recipe is one")
    if not items or not items[0].is_mapping:
        raise ConfigError(f"recipe file {path} holds no mapping; it needs method and sources")
    content = items[0].plain()
    refuse_other_configs(items[0], path)
    _check_kinds(items[0])
    return Converted(_with_method(content), {})


def converted_text(converted: Converted, origin: str) -> str:
    """The text of a recipe file; its first lines name the mergekit config that it comes from."""
    import yaml

    body = yaml.safe_dump(dict(converted.recipe), sort_keys=False, allow_unicode=True, width=100)
    head = f"# Converted from mergekit's {origin}; run it with: mergeops merge THIS_FILE OUT"
    return f"{PACKAGE}\n{head}\n{body}"


def read_mapping(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that a program wrote, in the shape of a recipe file; paths become texts.

    Raises:
        ConfigError: a value is of no kind that YAML has, or not of the kind that its key takes.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(content), default=os.fspath))
    except TypeError as error:
        raise ConfigError(f"the recipe is no mapping of plain values: {error}") from error
    for key, value in plain.items():
        shape = _shape(key, is_named=isinstance(value, str))
        if value is not None and shape is not None and not isinstance(value, shape):
            raise ConfigError(f"{key} is {value!r}; it takes a {_SHAPES[shape]}")
    return _with_method(plain)


def _with_method(content: dict[str, Any]) -> dict[str, Any]:
    """``method: NAME`` stands for a method with its defaults."""
    if isinstance(content.get("method"), str):
        content["method"] = {"name": content["method"]}
    return content


_SHAPES: dict[type, str] = {dict: "mapping", list: "list"}


def _shape(key: str, *, is_named: bool) -> type | None:
    """What a key of a recipe takes: a mapping, a list, or (None) what the schema checks.

    Args:
        key: of the recipe.
        is_named: the value is a text; a group may be named by one.
    """
    hint = typing.get_type_hints(Recipe).get(key) if key in Recipe.keys() else None  # noqa: SIM118
    origin = typing.get_origin(hint)
    if key in GROUPS:
        return None if is_named else dict
    if origin is Mapping or dataclasses.is_dataclass(hint):
        return dict
    return list if origin is tuple else None


def _check_kinds(recipe: YamlItem) -> None:
    """Refuse a list for a mapping and the like, which Hydra could not layer over the defaults.

    Raises:
        ConfigError: with the line.
    """
    for key, item in recipe.entries("method and sources").items():
        shape = _shape(key, is_named=not item.is_list and not item.is_mapping)
        if item.is_null or shape is None or (item.is_mapping if shape is dict else item.is_list):
            continue
        raise item.error(f"is {item.shown()}; it takes a {_SHAPES[shape]}")


def one_line(error: BaseException) -> str:
    """The message and its causes, which Hydra keeps apart, in one line without repeats."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        # What follows is where Hydra looked, a line for each directory.
        for line in str(current).partition("Config search path")[0].splitlines():
            line = line.strip()
            if line and line not in parts and not line.startswith(("full_key", "object_type")):
                parts.append(line)
        current = current.__cause__
    return "; ".join(parts).replace(":;", ":")
