"""What several commands share: options, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mergeops.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

OVERRIDES = click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[OVERRIDES]...")
CONFIG_DIR = click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    help="Your own config directory; its files win over the packaged ones.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
SHOW = click.option("--cfg", type=click.Choice(["job"]), help="Print the recipe and do nothing.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
# main() looks for it, so that it works wherever the error arises.
DEBUG = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
)


def options(*wanted: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several option decorators as one, shown in the order given."""

    def add(command: Command) -> Command:
        decorators: list[Callable[[Any], Any]] = [*wanted, DEBUG]
        for option in reversed(decorators):
            command = option(command)
        return command

    return add


def pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """``OLD=NEW`` words as a dict.

    Raises:
        ConfigError: a word without an equals sign.
    """
    for value in values:
        if "=" not in value:
            raise ConfigError(f"{option} is {value!r}; write OLD=NEW")
    return dict(value.split("=", 1) for value in values)


def name_first(name: str | None, overrides: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """NAME may be left out, so the first word may be an override already."""
    if name is not None and ("=" in name or name.startswith("~")):
        return None, (name, *overrides)
    return name, overrides


def show_recipe(recipe: Any) -> None:
    """Print a recipe as YAML."""
    import yaml

    click.echo(yaml.safe_dump(recipe.to_dict(), sort_keys=False), nl=False)


def print_result(result: Any, as_json: bool) -> None:
    """Print a command's result to stdout."""
    click.echo(json.dumps(result, indent=2) if as_json else result)
