"""The lineage as a picture: base, sources, merge and registered version, left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mergeops.evaluate.intervals import Estimate

WIDTH, HEIGHT = 214, 66
"""Size of a box in pixels."""
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
    "FINISHED": "#15803d",
    "READY": "#15803d",
    "champion": "#15803d",
    "FAILED": "#b91c1c",
    "KILLED": "#b45309",
    "RUNNING": "#1d4ed8",
    "deleted": "#b91c1c",
    "gone": "#b91c1c",
}
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


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

    @property
    def value(self) -> str:
        """The score alone; empty where there is none."""
        return "" if self.score is None else self.score.value_text

    @property
    def interval(self) -> str:
        """The score's interval; empty where there is none."""
        return "" if self.score is None else self.score.interval_text

    @property
    def short_name(self) -> str:
        """The name as there is room for it."""
        return cut(self.name, 21 - len(self.value) if self.value else 25)

    @property
    def short_detail(self) -> str:
        """The second line as there is room for it."""
        return cut(self.detail, 30 - len(self.interval) if self.interval else 29)


Line = tuple[tuple[int, int], tuple[int, int], str]
"""From the box at (column, row) to the one at (column, row), and what is written on the way."""


def lineage_svg(
    base: Node | None, sources: Sequence[Node], merge: Node, version: Node | None = None
) -> str:
    """Draw who came from whom.

    Returns:
        A self-contained SVG document; all text is escaped, long names are cut.
    """
    columns = [list(sources), [merge], *([[version]] if version else [])]
    first = 0
    lines: list[Line] = []
    if base is not None:
        columns.insert(0, [base])
        first = 1
        lines += [((0, 0), (1, i), "") for i in range(len(sources))]
    lines += [((first, i), (first + 1, 0), source.edge) for i, source in enumerate(sources)]
    if version is not None:
        lines.append(((first + 1, 0), (first + 2, 0), "registered"))
    return network_svg(columns, lines)


def network_svg(columns: Sequence[Sequence[Node]], lines: Sequence[Line]) -> str:
    """Draw boxes in columns and lines between them; those from a base are dashed.

    Returns:
        A self-contained SVG document; all text is escaped, long names are cut.
    """
    places, width, height = layout(columns)
    drawn = [
        _line(
            places[start[0]][start[1]],
            places[end[0]][end[1]],
            label,
            dashed=columns[start[0]][start[1]].kind == "base",
        )
        for start, end, label in lines
    ]
    boxes = [
        _box(node, place)
        for column, spots in zip(columns, places, strict=True)
        for node, place in zip(column, spots, strict=True)
    ]
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
            f"viewBox='0 0 {width} {height}' role='img' aria-label='lineage'>",
            f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
            "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            "markerHeight='7' orient='auto'><path d='M0,0.5 L7.5,4 L0,7.5 Z' fill='#9ca3af'/>"
            "</marker></defs>",
            *drawn,
            *boxes,
            "</svg>",
            "",
        ]
    )


def layout(
    columns: Sequence[Sequence[Node]],
) -> tuple[list[list[tuple[float, float]]], int, int]:
    """The upper left corner of each box, and the picture's width and height, in pixels."""
    tallest = max(len(column) for column in columns)
    inner = tallest * HEIGHT + (tallest - 1) * SPACE
    places = [
        _column(MARGIN + i * (WIDTH + GAP), len(column), inner) for i, column in enumerate(columns)
    ]
    width = 2 * MARGIN + len(columns) * WIDTH + (len(columns) - 1) * GAP
    return places, width, 2 * MARGIN + inner


def _column(x: float, n: int, height: float) -> list[tuple[float, float]]:
    # Upper left corners of n boxes, centred in the height.
    top = MARGIN + (height - n * (HEIGHT + SPACE) + SPACE) / 2
    return [(x, top + j * (HEIGHT + SPACE)) for j in range(n)]


def _box(node: Node, place: tuple[float, float]) -> str:
    x, y = place
    colour = COLOURS[node.kind]
    head = _text(x + 16, y + 17, node.kind, 10, colour, weight=600, spacing=True)
    status = ""
    if node.status:
        shade = STATUS_COLOURS.get(node.status, "#6b7280")
        status = _text(x + WIDTH - 12, y + 17, node.status, 10, shade, weight=600, anchor="end")
    score = _text(x + WIDTH - 12, y + 37, node.value, 13.5, "#111827", anchor="end")
    score += _text(x + WIDTH - 12, y + 55, node.interval, 10, "#6b7280", anchor="end")
    title = f"{node.kind}: {node.name} {node.score or ''} {node.detail}"
    return (
        f"<g><title>{escape(title)}</title>"
        f"<rect x='{x}' y='{y:g}' width='{WIDTH}' height='{HEIGHT}' rx='7' fill='#ffffff' "
        f"stroke='#d1d5db'/>"
        f"<path d='M{x + 7},{y:g} h-0 a7,7 0 0 0 -7,7 v{HEIGHT - 14} a7,7 0 0 0 7,7 z' "
        f"fill='{colour}'/>"
        f"{head}{status}"
        f"{_text(x + 16, y + 37, node.short_name, 13.5, '#111827', weight=600)}"
        f"{score}"
        f"{_text(x + 16, y + 55, node.short_detail, 11, '#6b7280')}</g>"
    )


def _line(
    start: tuple[float, float], end: tuple[float, float], label: str, *, dashed: bool = False
) -> str:
    x0, y0 = start[0] + WIDTH, start[1] + HEIGHT / 2
    x1, y1 = end[0] - 2, end[1] + HEIGHT / 2
    middle = (x0 + x1) / 2
    dash = " stroke-dasharray='4 4'" if dashed else ""
    path = (
        f"<path d='M{x0},{y0:g} C{middle:g},{y0:g} {middle:g},{y1:g} {x1},{y1:g}' fill='none' "
        f"stroke='#9ca3af' stroke-width='1.5' marker-end='url(#tip)'{dash}/>"
    )
    if not label:
        return path
    # Near the start, where lines that meet at the end are still apart; away from where they go.
    side = 15 if y1 < y0 else -6
    return path + _text(x0 + 8, y0 + side, cut(label, 13), 10.5, "#4b5563")


def _text(
    x: float,
    y: float,
    text: str,
    size: float,
    colour: str,
    *,
    weight: int = 400,
    anchor: str = "start",
    spacing: bool = False,
) -> str:
    extra = " letter-spacing='0.6'" if spacing else ""
    return (
        f"<text x='{x:g}' y='{y:g}' {_FONT} font-size='{size}' font-weight='{weight}' "
        f"fill='{colour}' text-anchor='{anchor}'{extra}>{escape(text)}</text>"
    )


def cut(text: str, limit: int) -> str:
    """The text in at most ``limit`` characters, with an ellipsis where some went."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
