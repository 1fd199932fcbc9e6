"""``mergeops lineage``: where a model comes from, as a tree and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeops.cli.console import console, escape
from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, PATH, URIS, Call, options
from mergeops.errors import ConfigError
from mergeops.lineage import Member, find_family, short_weight, write_picture
from mergeops.store import connect_to_server

if TYPE_CHECKING:
    from rich.tree import Tree


@click.command()
@click.argument("model", metavar="URI", shell_complete=URIS)
@OVERRIDES
@click.option("--svg", type=PATH, metavar="FILE", help="Also draw the tree, as SVG.")
@click.option("--png", type=PATH, metavar="FILE", help="Also draw the tree, as PNG.")
@options(CONFIG_DIR, AS_JSON)
def lineage(call: Call, model: str, svg: Path | None, png: Path | None) -> None:
    """The family tree of a model, back to its training runs and bases.

    URI is models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/ID.
    """
    for option, path in (("--svg", svg), ("--png", png)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{option} is {path}; name a file in a directory that exists")
    root = find_family(connect_to_server(call.recipe().tracking), model)
    if svg is not None:
        write_picture(root, svg, "svg")
    if png is not None:
        write_picture(root, png, "png")
    call.show(root, print_tree)


_STYLES = {"merge": "bold cyan", "source": "yellow", "base": "dim", "model": "magenta"}


def print_tree(root: Member) -> None:
    """One line a model, parents below their child."""
    from rich.tree import Tree

    tree = Tree(_line(root), guide_style="dim")
    _grow(tree, root)
    console().print(tree)


def _grow(tree: Tree, member: Member) -> None:
    if not _is_plainly_trained(member):
        for parent in member.parents:
            _grow(tree.add(_line(parent)), parent)


def _is_plainly_trained(member: Member) -> bool:
    """Whether its only parent is a base, which its own line can name."""
    return member.kind == "source" and [p.kind for p in member.parents] == ["base"]


def _line(member: Member) -> str:
    style = _STYLES[member.kind]
    parts = [f"[{style}]{escape(member.name)}[/]", member.kind]
    if member.method:
        parts.append(f"by {escape(member.method)}")
    if _is_plainly_trained(member):
        parts.append(f"of {escape(member.parents[0].name)}")
    if member.weight:
        parts.append(f"weight {escape(short_weight(member.weight))}")
    if member.score is not None:
        parts.append(f"{member.score} on dev")
    parts += [escape(f"models:/{version}") for version in member.versions]
    if member.run_id:
        status = "" if member.run_status == "FINISHED" else f" {member.run_status}"
        parts.append(f"[dim]run {escape(member.run_id[:8])}[/]{status}")
    elif member.uri:
        parts.append(f"[dim]{escape(member.uri)}[/]")
    notes = "".join(f" [red]({escape(note)})[/]" for note in member.notes)
    return "  ".join(parts) + notes
