"""Shell completion of overrides: keys, and after ``=`` the names and words that a key takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from mergeops.recipe import GROUPS, WORDS, keys, options_of, packaged_conf
from mergeops.search import parameter_types
from mergeops.store import seen

SOURCE_KEY = re.compile(r"base|base_adapter|sources\.[^.=]+(\.uri|\.base)?")
"""Keys whose value is the URI of a checkpoint."""


def complete_overrides(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """What may stand where the cursor is."""
    before = [str(word) for word in ctx.params.get(parameter.name or "") or ()]
    key, equals, value = incomplete.partition("=")
    if equals:
        config_dir = ctx.params.get("config_dir")
        if SOURCE_KEY.fullmatch(key):
            found = seen(_server(before))
        else:
            found = values(key, Path(config_dir) if config_dir else None)
        return [
            CompletionItem(f"{key}={name}", help=about)
            for name, about in found.items()
            if name.startswith(value)
        ]
    marks = "".join(mark for mark in ("~", "++", "+") if incomplete.startswith(mark))[:2]
    wanted = incomplete.removeprefix(marks)
    found_keys = [*keys(_method(before)), "strategy"]
    return [
        CompletionItem(f"{marks}{name}=") for name in found_keys if name.startswith(wanted)
    ] + _recipe_files(incomplete)


def complete_uris(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Runs and versions that commands of this user saw, for an argument that is one."""
    found = seen(_server(map(str, ctx.params.get("overrides") or ())))
    return [
        CompletionItem(uri, help=about)
        for uri, about in found.items()
        if uri.startswith(incomplete)
    ]


def _server(words: Iterable[str]) -> str | None:
    named = [w.removeprefix("tracking.uri=") for w in words if w.startswith("tracking.uri=")]
    return named[-1] if named else None


def values(key: str, config_dir: Path | None) -> dict[str, str]:
    """The values that a key takes by name -> what is said of each."""
    group = "search" if key == "strategy" else key
    if group in GROUPS:
        folders = [packaged_conf(), *([config_dir] if config_dir else [])]
        strategies = parameter_types() if group == "search" else {}
        options = options_of(group, folders, strategies)
        return {name: "packaged" if packaged else "yours" for name, packaged in options.items()}
    return dict.fromkeys(WORDS.get(key, ()), "")


def _method(before: Sequence[str]) -> str | None:
    chosen = [word.removeprefix("method=") for word in before if word.startswith("method=")]
    return chosen[-1] if chosen else None


def _recipe_files(incomplete: str) -> list[CompletionItem]:
    folder, _, start = incomplete.rpartition("/")
    here = Path(folder or ".")
    if not here.is_dir():
        return []
    found = sorted(p for p in here.iterdir() if p.suffix in (".yaml", ".yml"))
    names = [path.name for path in found if path.name.startswith(start)]
    return [CompletionItem(f"{folder}/{name}" if folder else name) for name in names]
