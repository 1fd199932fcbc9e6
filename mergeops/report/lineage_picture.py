"""The lineage as a picture: boxes in columns, ancestors on the left, as SVG or PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from mergeops.scores import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

WIDTH, HEIGHT = 214, 66
"""Size of a box in pixels of the SVG, which are points of matplotlib."""
GAP, SPACE, MARGIN = 92, 18, 24
"""Between columns, between boxes of a column, around the picture."""
COLOURS = {
    "base": "#6b7280",
    "source": "#d55e00",
    "merge": "#0072b2",
    "version": "#009e73",
    "model": "#7c3aed",
}
STATUS_COLOURS = {
    **dict.fromkeys(("FINISHED", "READY", "champion"), "#15803d"),
    **dict.fromkeys(("FAILED", "deleted", "gone"), "#b91c1c"),
    "KILLED": "#b45309",
    "RUNNING": "#1d4ed8",
}
_DARK, _GREY, _PALE = "#111827", "#6b7280", "#9ca3af"
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mergeops",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
}
"""Texts stay texts, and the same lineage gives the same bytes."""
_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Node:
    """One box."""

    kind: str
    """base, source, merge, version or model: also what the box says at its head."""
    name: str
    detail: str = ""
    """A second line: a run id or a URI."""
    score: Estimate | None = None
    """Beside the name, its interval below it."""
    status: str = ""
    """A word at the box's head, e.g. FAILED or champion."""
    edge: str = ""
    """Written on the line from a source to the merge, e.g. its weight."""


Line = tuple[int, int, str]
"""From the parent's node to the child's, by their positions, and what is written on the way."""


def lineage_svg(
    base: Node | None, sources: Sequence[Node], merge: Node, version: Node | None = None
) -> str:
    """Draw who came from whom.

    Returns:
        A self-contained SVG document; all text is escaped, long names are cut.
    """
    nodes = [*sources, merge]
    made = len(sources)
    lines = [(i, made, source.edge) for i, source in enumerate(sources)]
    if version is not None:
        nodes.append(version)
        lines.append((made, made + 1, "registered"))
    if base is not None:
        nodes.append(base)
        lines += [(len(nodes) - 1, i, "") for i in range(made)]
    return draw_network(nodes, lines, "svg").decode()


def draw_network(
    nodes: Sequence[Node], lines: Sequence[Line], kind: Literal["svg", "png"]
) -> bytes:
    """Draw boxes in columns and lines between them; those from a base are dashed.

    Returns:
        The file's bytes. All text of an SVG is escaped, and it loads nothing from elsewhere.
    """
    from matplotlib import rc_context

    with rc_context(_SETTINGS), io.BytesIO() as file:
        figure = _figure(nodes, lines)
        if kind == "png":
            figure.savefig(file, dpi=144, format="png")
            return file.getvalue()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=no_metadata)
        return _finished(file.getvalue())


def columns(count: int, lines: Sequence[Line]) -> list[list[int]]:
    """The nodes by generation, the oldest first: each as far to the left of its children as its
    longest way down is long. A loop in what MLflow was told is cut where it closes."""
    links = [(parent, child) for parent, child, _ in lines]
    while True:
        order = TopologicalSorter[int]({node: () for node in range(count)})
        for parent, child in links:
            order.add(parent, child)
        try:
            order.prepare()
            break
        except CycleError as error:
            # The nodes of the loop, each one a child of the next.
            child, parent, *_ = error.args[1]
            links.remove((parent, child))
    generations: list[list[int]] = []
    while order.is_active():
        ready = order.get_ready()
        generations.insert(0, sorted(ready))
        order.done(*ready)
    return generations


def _places(generations: Sequence[Sequence[int]]) -> tuple[dict[int, tuple[float, float]], int]:
    """The upper left corner of each box, each column centred, and the picture's height."""
    tallest = max(map(len, generations))
    height = 2 * MARGIN + tallest * (HEIGHT + SPACE) - SPACE
    places: dict[int, tuple[float, float]] = {}
    for i, column in enumerate(generations):
        top = (height - len(column) * (HEIGHT + SPACE) + SPACE) / 2
        for j, node in enumerate(column):
            places[node] = (MARGIN + i * (WIDTH + GAP), top + j * (HEIGHT + SPACE))
    return places, height


def _figure(nodes: Sequence[Node], lines: Sequence[Line]) -> Figure:
    """A figure without a window; a unit of its axes is a point."""
    from matplotlib.figure import Figure

    generations = columns(len(nodes), lines)
    places, height = _places(generations)
    width = 2 * MARGIN + len(generations) * (WIDTH + GAP) - GAP
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for parent, child, label in lines:
        (x0, y0), (x1, y1) = places[parent], places[child]
        start, end = (x0 + WIDTH, y0 + HEIGHT / 2), (x1, y1 + HEIGHT / 2)
        _draw_line(axes, start, end, label, "--" if nodes[parent].kind == "base" else "-")
    for i, node in enumerate(nodes):
        _draw_box(axes, node, *places[i])
    return figure


def _draw_line(
    axes: Any, start: tuple[float, float], end: tuple[float, float], label: str, style: str
) -> None:
    """A curve that leaves and arrives level, with a tip."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2
    way = [start, (middle, y0), (middle, y1), (x1 - 7, y1)]
    curve = Path(way, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(PathPatch(curve, fc="none", ec=_PALE, lw=1.4, ls=style, clip_on=False))
    tip = [(x1 - 1, y1), (x1 - 9, y1 - 4), (x1 - 9, y1 + 4)]
    axes.add_patch(Polygon(tip, fc=_PALE, lw=0, clip_on=False, gid="tip"))
    # Near the start, where lines that meet at the end are still apart; away from where they go.
    side = 15 if y1 < y0 else -6
    _write(axes, x0 + 8, y0 + side, label, 10, "normal", "#4b5563", room=GAP - 14)


def _draw_box(axes: Any, node: Node, x: float, y: float) -> None:
    """The box's texts are cut where there is no room for them; its tooltip says them in full."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    name = _printable(f"box {node.kind}: {node.name} {node.score or ''} {node.detail}")
    style = "round,pad=0,rounding_size=7"
    box = FancyBboxPatch((x, y), WIDTH, HEIGHT, style, fc="white", ec="#d1d5db", gid=name)
    box.set_clip_on(False)
    axes.add_patch(box)
    stripe = Rectangle((x, y), 6, HEIGHT, color=COLOURS[node.kind], lw=0, gid=name)
    axes.add_patch(stripe)
    stripe.set_clip_path(box)
    shade = STATUS_COLOURS.get(node.status, _GREY)
    value = node.score.value_text if node.score else ""
    interval = node.score.interval_text if node.score else ""
    colour = COLOURS[node.kind]
    rows = (
        (18, (node.kind, 10, "bold", colour), (node.status, 10, "bold", shade)),
        (37, (node.name, 12.5, "bold", _DARK), (value, 12.5, "normal", _DARK)),
        (55, (node.detail, 10, "normal", _GREY), (interval, 9.5, "normal", _GREY)),
    )
    left, right = x + 16, x + WIDTH - 11
    for down, start, end in rows:
        taken = _write(axes, right, y + down, *end, ha="right", gid=name)
        _write(axes, left, y + down, *start, room=right - left - taken, gid=name)


def _write(
    axes: Any,
    x: float,
    y: float,
    text: str,
    size: float,
    weight: str,
    colour: str,
    *,
    room: float = WIDTH,
    **how: str,
) -> float:
    """Write a line, cut with an ellipsis where it is wider than the room; gives its width and a
    space."""
    from matplotlib.font_manager import FontProperties

    # No hundred letters fit, however narrow.
    shown = cut = _printable(text)[:100]
    if not text:
        return 0.0
    font = FontProperties(size=size, weight=weight)
    width = _width(shown, font)
    while cut and width > room:
        cut = cut[:-1]
        shown = f"{cut}…"
        width = _width(shown, font)
    # Between two dollar signs stands no formula.
    axes.text(x, y, shown, font=font, color=colour, parse_math=False, **how)
    return width + size / 2


def _width(text: str, font: FontProperties) -> float:
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, font, False)[0])


def _printable(text: str) -> str:
    """The text in one line, without characters that XML forbids."""
    return "".join(filter(str.isprintable, " ".join(text.split())))


def _finished(svg: bytes) -> bytes:
    """matplotlib's document in pixels, with tooltips, and without links to a definition of SVG."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for side in ("width", "height"):
        root.set(side, root.attrib[side].removesuffix("pt"))
    root.set("role", "img")
    root.set("aria-label", "lineage")
    for group in root.iter(f"{{{_SVG}}}g"):
        kind, _, text = group.attrib.pop("id", "").partition(" ")
        if kind == "box":
            group.set("class", kind)
            tooltip = ElementTree.Element(f"{{{_SVG}}}title")
            tooltip.text = text
            group.insert(0, tooltip)
        elif kind == "tip":
            group.set("class", kind)
    return ElementTree.tostring(root, encoding="unicode").encode() + b"\n"
