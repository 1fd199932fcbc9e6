"""A model's family tree: in the terminal, and as a picture with the oldest on the left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.errors import ConfigError
from mergeops.report.console import console
from mergeops.report.lineage import Line, Node, network_svg

if TYPE_CHECKING:
    from rich.tree import Tree

    from mergeops.family import Member

_STYLES = {"merge": "bold cyan", "source": "yellow", "base": "dim", "model": "magenta"}


def print_tree(root: Member) -> None:
    """One line a model, parents below their child."""
    from rich.tree import Tree

    tree = Tree(_line(root), guide_style="dim")
    _grow(tree, root)
    console().print(tree)


def write_svg(root: Member, path: Path) -> None:
    """Draw the tree; a model that is in it several times is one box.

    Raises:
        ConfigError: the file cannot be written.
    """
    drawn = _network(root)
    try:
        path.write_text(network_svg(drawn.columns, drawn.lines), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def write_png(root: Member, path: Path) -> None:
    """The same picture in pixels.

    Raises:
        ConfigError: the file cannot be written.
    """
    from mergeops.report.network_plot import network_figure

    drawn = _network(root)
    try:
        network_figure(drawn.columns, drawn.lines).savefig(path, dpi=150, format="png")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _grow(tree: Tree, member: Member) -> None:
    if not _is_plainly_trained(member):
        for parent in member.parents:
            _grow(tree.add(_line(parent)), parent)


def _is_plainly_trained(member: Member) -> bool:
    """Whether its only parent is a base, which its own line can name."""
    return member.kind == "source" and [p.kind for p in member.parents] == ["base"]


def _line(member: Member) -> str:
    from mergeops.report.console import escape

    style = _STYLES[member.kind]
    parts = [f"[{style}]{escape(member.name)}[/]", member.kind]
    if member.method:
        parts.append(f"by {escape(member.method)}")
    if _is_plainly_trained(member):
        parts.append(f"of {escape(member.parents[0].name)}")
    if member.weight:
        parts.append(f"weight {escape(_short_weight(member.weight))}")
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


@dataclass(frozen=True)
class _Network:
    columns: list[list[Node]]
    lines: list[Line]


def _network(root: Member) -> _Network:
    """Every model once, in the column of its longest way down to the root."""
    members: dict[str, Member] = {}
    edges: dict[tuple[str, str], str] = {}

    for member in root.walk():
        key = _identity(member)
        members.setdefault(key, member)
        for parent in member.parents:
            weight = f"weight {_short_weight(parent.weight)}" if parent.weight else ""
            edges.setdefault((_identity(parent), key), weight)
    depth = _depths(list(members), list(edges))
    deepest = max(depth.values())
    columns: list[list[Node]] = [[] for _ in range(deepest + 1)]
    places: dict[str, tuple[int, int]] = {}
    for key, member in members.items():
        column = deepest - depth[key]
        places[key] = (column, len(columns[column]))
        columns[column].append(_node(member))
    lines = [(places[start], places[end], text) for (start, end), text in edges.items()]
    return _Network(columns, lines)


def _depths(keys: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """Length of each one's longest way down to the root, from (parent, child); a loop in what
    MLflow was told is cut where it closes."""
    children: dict[str, list[str]] = {key: [] for key in keys}
    for parent, child in edges:
        children[parent].append(child)
    depth: dict[str, int] = {}
    on_the_way: set[str] = set()

    def of(key: str) -> int:
        if key not in depth:
            on_the_way.add(key)
            ways = [1 + of(child) for child in children[key] if child not in on_the_way]
            on_the_way.remove(key)
            depth[key] = max(ways, default=0)
        return depth[key]

    for key in keys:
        of(key)
    return depth


def _identity(member: Member) -> str:
    if member.kind == "base":
        # A trainer writes down where its base was, a merge also what it held.
        return f"base {member.uri or member.sha256}"
    return member.run_id or member.model_id or member.sha256 or f"{member.uri} {member.name}"


def _node(member: Member) -> Node:
    champion = any("@champion" in version for version in member.versions)
    is_odd = member.run_status not in ("", "FINISHED")
    detail = member.versions[0] if member.versions else ""
    if not detail:
        detail = f"run {member.run_id[:8]}" if member.run_id else _end(member.uri)
    return Node(
        member.kind,
        member.name,
        detail,
        member.score,
        "champion" if champion else member.run_status if is_odd else "",
    )


def _end(text: str) -> str:
    return text if len(text) <= 29 else "…" + text[-28:]


def _short_weight(weight: str) -> str:
    try:
        return f"{float(weight):g}"
    except ValueError:
        return weight
