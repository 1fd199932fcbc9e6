"""What several commands share: options, and how results are printed."""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
import yaml

from mergeops.cli.console import echo
from mergeops.errors import ConfigError
from mergeops.progress import MODES, Progress
from mergeops.recipe import Recipe, compose


def completed_by(function: str) -> Callable[[click.Context, click.Parameter, str], Any]:
    """What a shell asks for; imported then, since it knows the strategies of all searches."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Any:
        module = importlib.import_module("mergeops.cli.completion")
        return getattr(module, function)(ctx, parameter, incomplete)

    return complete


PATH = click.Path(path_type=Path)
OVERRIDES = click.argument(
    "overrides",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[OVERRIDES]...",
    shell_complete=completed_by("complete_overrides"),
)
CONFIG_DIR = click.option(
    "--config-dir",
    type=PATH,
    help="Your own config directory; its files win over the packaged ones.",
)
URIS = completed_by("complete_uris")
SEARCHES = re.compile(r"[+~]*search\b|.*\.ya?ml$")
"""Words that may set what a strategy takes."""
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
SHOW = click.option("--cfg", type=click.Choice(["job"]), help="Print the recipe and do nothing.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="The same as --progress=none.")
_PROGRESS = click.option(
    "--progress",
    "progress_mode",
    type=click.Choice(MODES),
    default="auto",
    envvar="MERGEOPS_PROGRESS",
    show_envvar=True,
    help="On stderr; auto: bars on a terminal, elsewhere a line each half minute.",
)


def progress_options(command: Any) -> Any:
    """How progress is shown, or not at all."""
    return _PROGRESS(_QUIET(command))


# main() looks for it, so that it works wherever the error arises.
DEBUG = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
)


def composed(
    words: Sequence[str], config_dir: Path | None, recipe_file: Path | None = None, **settings: Any
) -> Recipe:
    """The recipe that overrides and settings make, for a command that searches nothing.

    A strategy's parameters are checked where the user may have written some: to know them takes
    all that a search imports.
    """
    types: Mapping[str, type[Any] | None] = {}
    if config_dir is not None or any(SEARCHES.match(word) for word in words):
        types = importlib.import_module("mergeops.search").parameter_types()
    return compose(
        words,
        config_dir=config_dir,
        recipe_file=recipe_file,
        strategies=types,
        settings=settings,
    )


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the user said by the shared options and arguments of a command."""

    overrides: tuple[str, ...] = ()
    config_dir: Path | None = None
    cfg: str | None = None
    as_json: bool = False
    quiet: bool = False
    progress_mode: str = "auto"

    @property
    def progress(self) -> Progress:
        """On stderr, unless the command is quiet."""
        return Progress(self.progress_mode, quiet=self.quiet)

    def recipe(self, *more: str, recipe_file: Path | None = None, **settings: Any) -> Recipe:
        """The recipe that the overrides, then ``more`` of them, and settings make."""
        return composed([*self.overrides, *more], self.config_dir, recipe_file, **settings)

    def show(self, result: Any, text: str | Callable[[Any], None]) -> None:
        """Print a result on stdout: as JSON, or as text, or by what prints it as text."""
        if self.as_json:
            print_json(result)
        elif isinstance(text, str):
            echo(text)
        else:
            text(result)


def options(*wanted: Callable[[Any], Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Several option decorators as one, shown in the order given; the command gets a ``Call``
    first, and then its own options by name."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**values: Any) -> None:
            shared = {f.name: values.pop(f.name) for f in fields(Call) if f.name in values}
            command(Call(**shared), **values)

        decorated: Callable[..., None] = called
        for option in (DEBUG, *reversed(wanted)):
            decorated = option(decorated)
        return decorated

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


def show_recipe(recipe: Recipe) -> None:
    """Print a recipe as YAML."""
    echo(yaml.safe_dump(recipe.to_dict(), sort_keys=False), nl=False)


def print_json(result: Any) -> None:
    """Print JSON types, or results that are or hold a ``to_dict`` or plain fields, on stdout."""
    echo(json.dumps(result, indent=2, default=_plain))


def _plain(result: Any) -> Any:
    return result.to_dict() if hasattr(result, "to_dict") else asdict(result)
