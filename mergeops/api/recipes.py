"""What the functions of the API take as a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe import Recipe, compose
from mergeops.search import parameter_types

RecipeLike = Recipe | Mapping[str, Any] | str | os.PathLike[str]
"""A recipe, a mapping of its keys, a recipe file, or the name of one in the config directory."""
ConfigDir = str | os.PathLike[str] | None


def as_recipe(recipe: RecipeLike | None, overrides: Sequence[str], config_dir: ConfigDir) -> Recipe:
    """Read what an API function was given as a recipe.

    Args:
        recipe: None takes the config directory's defaults alone, for commands about models.
        overrides: those of the command line.
        config_dir: the directory whose files win over the packaged ones.

    Raises:
        ConfigError: a key or value is wrong, or a ``Recipe`` comes with overrides.
    """
    if isinstance(recipe, Recipe):
        if overrides or config_dir is not None:
            raise ConfigError(
                "overrides and config_dir change a recipe as it is read; a Recipe is read already: "
                "use dataclasses.replace, or give the file, the name or a mapping"
            )
        return recipe
    read = partial(
        compose,
        config_dir=None if config_dir is None else Path(config_dir),
        strategies=parameter_types(),
    )
    if recipe is None:
        return read(overrides)
    if isinstance(recipe, Mapping):
        return read(overrides, content=recipe)
    if Path(recipe).suffix in (".yaml", ".yml"):
        return read(overrides, recipe_file=Path(recipe))
    return read([f"recipe={os.fspath(recipe)}", *overrides])
