"""A model's family tree as a picture with the oldest on the left."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mergeops.errors import ConfigError
from mergeops.lineage.family import Member, short_weight
from mergeops.report import Line, Node, draw_network


def write_picture(root: Member, path: Path, kind: Literal["svg", "png"]) -> None:
    """Draw the tree; a model that is in it several times is one box.

    Raises:
        ConfigError: the file cannot be written.
    """
    picture = draw_network(*network(root), kind)
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def network(root: Member) -> tuple[list[Node], list[Line]]:
    """Every model once, and every parent's line to its child once."""
    positions: dict[str, int] = {}
    nodes: list[Node] = []
    labels: dict[tuple[int, int], str] = {}

    def place(member: Member) -> int:
        key = _identity(member)
        if key not in positions:
            positions[key] = len(nodes)
            nodes.append(_node(member))
        return positions[key]

    for member in root.walk():
        child = place(member)
        for parent in member.parents:
            label = f"weight {short_weight(parent.weight)}" if parent.weight else ""
            labels.setdefault((place(parent), child), label)
    return nodes, [(parent, child, label) for (parent, child), label in labels.items()]


def _identity(member: Member) -> str:
    if member.kind == "base":
        # A trainer writes down where its base was, a merge also what it held.
        return f"base {member.uri or member.sha256}"
    return member.run_id or member.model_id or member.sha256 or f"{member.uri} {member.name}"


def _node(member: Member) -> Node:
    detail = member.versions[0] if member.versions else ""
    if not detail:
        detail = f"run {member.run_id[:8]}" if member.run_id else _end(member.uri)
    status = ""
    if any("@champion" in version for version in member.versions):
        status = "champion"
    elif member.run_status != "FINISHED":
        status = member.run_status
    return Node(member.kind, member.name, detail, member.score, status)


def _end(text: str) -> str:
    return text if len(text) <= 29 else "…" + text[-28:]
