"""What ``mergeops strategies`` shows: the strategies of a search, or one with its parameters."""

from __future__ import annotations

from typing import Any

import click

from mergeops.cli.console import console, escape, table
from mergeops.cli.options import AS_JSON, Call, options
from mergeops.search import describe


@click.command()
@click.argument("name", required=False)
@options(AS_JSON)
def strategies(call: Call, name: str | None) -> None:
    """List the strategies of a search, or explain one with its parameters."""
    call.show(describe(name), print_strategies)


def print_strategies(described: list[dict[str, Any]]) -> None:
    """The table of strategies, or the page of a single one."""
    out = console()
    if len(described) > 1:
        rows = [(each["name"], each["about"]) for each in described]
        out.print(table(("strategy", "what it does"), rows, ruled=False))
        out.print("\n[dim]mergeops strategies NAME explains one and its parameters[/]")
        return
    [one] = described
    out.print(f"[bold]{one['name']}[/]  {escape(one['about'])}")
    out.print(f"mergeops search strategy={one['name']} ...\n", style="dim")
    rows = [
        (f"search.{each['name']}", str(each["default"]), each["about"])
        for each in one["parameters"]
    ]
    if rows:
        out.print(table(("write", "default", "meaning"), rows, ruled=False))
