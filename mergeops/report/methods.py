"""What ``mergeops methods`` shows: the registry as a table, or one method with its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergeops import methods
from mergeops.report.console import console

if TYPE_CHECKING:
    from rich.console import Console


def describe(name: str | None) -> list[dict[str, Any]]:
    """All methods, or the named one, as JSON types.

    Raises:
        ConfigError: there is no method of that name.
    """
    return [_plain(methods.get(n)) for n in ([name] if name else methods.names())]


def _plain(method: methods.Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "about": method.documentation,
        "paper": method.paper,
        "needs_base": method.needs_base,
        "sources": {"min": method.min_sources, "max": method.max_sources},
        "random": method.is_random,
        "parameters": [
            {
                "name": parameter.name,
                "type": parameter.type,
                "default": parameter.default,
                "per_source": parameter.name in method.source_parameters,
                "about": parameter.text,
            }
            for parameter in method.describe()
        ],
    }


def print_page(described: list[dict[str, Any]]) -> None:
    """Print the table of methods, or the page of a single one, on stdout."""
    out = console()
    if len(described) == 1:
        _print_one(out, described[0])
    else:
        _print_all(out, described)


def _print_all(out: Console, described: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("method", "sources", "base", "what it does"):
        table.add_column(column)
    for method in described:
        base = "needed" if method["needs_base"] else "-"
        table.add_row(method["name"], _count(method["sources"]), base, method["about"])
    out.print(table)
    out.print("\n[dim]mergeops methods NAME explains one and its parameters[/]")


def _print_one(out: Console, method: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    out.print(f"[bold]{method['name']}[/]  {escape(method['about'])}")
    out.print(method["paper"], style="dim")
    base = "a base" if method["needs_base"] else "no base"
    chance = "; random, by the recipe's seed" if method["random"] else ""
    out.print(f"takes {_count(method['sources'])} sources and {base}{chance}\n")
    table = Table(box=None, pad_edge=False)
    for column in ("write", "default", "meaning"):
        table.add_column(column)
    for parameter in method["parameters"]:
        keys = [f"method.{parameter['name']}"]
        if parameter["per_source"]:
            keys.append(f"sources.NAME.{parameter['name']}")
        table.add_row("\n".join(keys), str(parameter["default"]), escape(parameter["about"]))
    out.print(table)


def _count(sources: dict[str, Any]) -> str:
    low, high = sources["min"], sources["max"]
    if high is None:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"
