"""The lineage picture in pixels, with the places and colours of the SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergeops.report.lineage import (
    COLOURS,
    HEIGHT,
    STATUS_COLOURS,
    WIDTH,
    Line,
    Node,
    cut,
    layout,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 100


def network_figure(columns: Sequence[Sequence[Node]], lines: Sequence[Line]) -> Figure:
    """Draw boxes in columns and lines between them.

    Returns:
        A figure without a window; ``figure.savefig(path, dpi=150)`` writes it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places, width, height = layout(columns)
    figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for start, end, label in lines:
        x0, y0 = places[start[0]][start[1]]
        x1, y1 = places[end[0]][end[1]]
        _draw_line(
            axes,
            (x0 + WIDTH, y0 + HEIGHT / 2),
            (x1, y1 + HEIGHT / 2),
            label,
            "--" if columns[start[0]][start[1]].kind == "base" else "-",
        )
    for column, spots in zip(columns, places, strict=True):
        for node, (x, y) in zip(column, spots, strict=True):
            _draw_box(axes, node, x, y)
    return figure


def _draw_line(
    axes: Any, start: tuple[float, float], end: tuple[float, float], label: str, style: str
) -> None:
    from matplotlib.patches import FancyArrowPatch, PathPatch
    from matplotlib.path import Path

    middle = (start[0] + end[0]) / 2
    way = [start, (middle, start[1]), (middle, end[1]), end]
    path = Path(way, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    grey = {"edgecolor": "#9ca3af", "linewidth": 1.1}
    axes.add_patch(PathPatch(path, facecolor="none", linestyle=style, **grey))
    axes.add_patch(
        FancyArrowPatch(
            (end[0] - 8, end[1]), end, arrowstyle="-|>", mutation_scale=8, color="#9ca3af"
        )
    )
    side = 15 if end[1] < start[1] else -6
    _write(axes, start[0] + 8, start[1] + side, cut(label, 13), 7, "#4b5563")


def _draw_box(axes: Any, node: Node, x: float, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    colour = COLOURS[node.kind]
    axes.add_patch(
        FancyBboxPatch(
            (x + 4, y + 4),
            WIDTH - 8,
            HEIGHT - 8,
            boxstyle="round,pad=4",
            facecolor="white",
            edgecolor="#d1d5db",
        )
    )
    axes.add_patch(Rectangle((x, y + 5), 5, HEIGHT - 10, color=colour))
    _write(axes, x + 16, y + 17, node.kind, 7, colour, weight="bold")
    shade = STATUS_COLOURS.get(node.status, "#6b7280")
    _write(axes, x + WIDTH - 12, y + 17, node.status, 7, shade, ha="right", weight="bold")
    _write(axes, x + 16, y + 37, node.short_name, 9, "#111827", weight="bold")
    _write(axes, x + WIDTH - 12, y + 37, node.value, 9, "#111827", ha="right")
    _write(axes, x + 16, y + 55, node.short_detail, 7.5, "#6b7280")
    _write(axes, x + WIDTH - 12, y + 55, node.interval, 7, "#6b7280", ha="right")


def _write(axes: Any, x: float, y: float, text: str, size: float, colour: str, **how: str) -> None:
    # matplotlib reads what stands between two dollar signs as a formula.
    axes.text(x, y, text.replace("$", r"\$"), fontsize=size, color=colour, **how)
