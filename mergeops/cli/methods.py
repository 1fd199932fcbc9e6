"""What ``mergeops methods`` shows: the registry as a table, or one method with its parameters."""

from __future__ import annotations

from typing import Any

import click

from mergeops.cli.console import console, echo, escape, table
from mergeops.cli.options import AS_JSON, Call, options
from mergeops.errors import ConfigError
from mergeops.methods import Method, get, names

COSTS = {
    "element-wise": "one pass over the bytes",
    "statistics": "looks at each tensor before it merges it, from one to a few passes more",
    "matrices": "holds each matrix whole and decomposes it in float64: seconds to minutes each",
}
"""What the cost classes of ``Method.cost`` mean."""
PROMPTS = "each source reads a file of prompts once, before it is merged"
"""What a method costs besides that asks for activations."""


def describe(name: str | None) -> list[dict[str, Any]]:
    """All methods, or the named one, as JSON types.

    A plug-in's method that cannot be loaded is left out of all, with a warning.

    Raises:
        ConfigError: there is no method of that name, or it cannot be loaded.
    """
    if name:
        return [_plain(get(name))]
    described = []
    for each in names():
        try:
            described.append(_plain(get(each)))
        except ConfigError as error:
            echo(f"mergeops: warning: {error}", err=True)
    return described


def _plain(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "about": method.documentation,
        "paper": method.paper,
        "needs_base": method.needs_base,
        "sources": {"min": method.min_sources, "max": method.max_sources},
        "random": method.is_random,
        "cost": method.cost,
        "prompts": method.activations or None,
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
    if len(described) == 1:
        return _print_one(described[0])
    rows = [
        (
            method["name"],
            _count(method["sources"]),
            "needed" if method["needs_base"] else "-",
            f"{method['cost']}, prompts" if method["prompts"] else method["cost"],
            method["about"],
        )
        for method in described
    ]
    out = console()
    out.print(table(("method", "sources", "base", "cost", "what it does"), rows, ruled=False))
    for cost, about in COSTS.items():
        out.print(f"[dim]{cost}: {about}[/]")
    out.print(f"[dim]prompts: {PROMPTS}[/]")
    out.print("\n[dim]mergeops methods NAME explains one and its parameters[/]")


def _print_one(method: dict[str, Any]) -> None:
    out = console()
    out.print(f"[bold]{method['name']}[/]  {escape(method['about'])}")
    out.print(method["paper"], style="dim")
    base = "a base" if method["needs_base"] else "no base"
    chance = "; random, by the recipe's seed" if method["random"] else ""
    out.print(f"takes {_count(method['sources'])} sources and {base}{chance}")
    out.print(f"cost: {method['cost']}, {COSTS[method['cost']]}")
    rows = []
    if method["prompts"]:
        out.print(f"prompts: {PROMPTS}")
        about = "The file of texts (.txt, .jsonl), for all sources or each; has to be given."
        rows.append(("method.prompts\nsources.NAME.prompts", "-", about))
    out.print()
    for parameter in method["parameters"]:
        keys = f"method.{parameter['name']}"
        if parameter["per_source"]:
            keys += f"\nsources.NAME.{parameter['name']}"
        rows.append((keys, str(parameter["default"]), parameter["about"]))
    out.print(table(("write", "default", "meaning"), rows, ruled=False))


def _count(sources: dict[str, Any]) -> str:
    low, high = sources["min"], sources["max"]
    if high is None:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"


@click.command()
@click.argument("name", required=False)
@options(AS_JSON)
def methods(call: Call, name: str | None) -> None:
    """List the merge methods, or explain one with its parameters and paper."""
    call.show(describe(name), print_page)
