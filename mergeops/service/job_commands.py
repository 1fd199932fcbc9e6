"""The commands that may be jobs, and what words each may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """What words a job of a command may have."""

    valued: tuple[str, ...] = ()
    """Options that take a value."""
    flags: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Options whose value is a path."""
    names: int = 0
    """At most so many words before the overrides, that name a model or a watch."""
    places: int = 0
    """So many words before the overrides that are directories, files or URIs."""
    is_composed: bool = True
    """Whether its overrides make a recipe."""


COMMANDS: Mapping[str, Command] = {
    "adopt": Command(
        ("--experiment", "--filter", "--register"), ("--dry-run",), ("--recipe",), is_composed=False
    ),
    "compare": Command(("--experiment", "--part", "--reference")),
    "controls": Command(("--version", "--only"), names=1),
    "extract": Command(
        ("--rank", "--energy", "--max-rank", "--others"), places=3, is_composed=False
    ),
    "inspect": Command((), ("--no-rank",), ("--plot",)),
    "lineage": Command((), (), ("--svg", "--png"), places=1),
    "merge": Command(("--device", "--seed"), places=2),
    "moe": Command(("--seed", "--device"), places=2, is_composed=False),
    "promote": Command(("--version", "--expect-current"), names=1),
    "recover": Command((), ("--dry-run",), ("--base",), places=2, is_composed=False),
    "run": Command((), ("-m", "--multirun", "--dry-run")),
    "search": Command((), ("--dry-run",)),
    "sync": Command((), ("--dry-run",)),
    "transplant": Command(("--method", "--k", "--device"), places=3, is_composed=False),
    "verify": Command(places=1, is_composed=False),
    "watch run": Command(("--round",), names=1, is_composed=False),
}
"""Commands that may be jobs. Those that decide over @champion are not: people do, by name."""
