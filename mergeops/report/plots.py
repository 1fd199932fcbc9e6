"""The leaderboard and the course of a search as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergeops.report.leaderboard import Leaderboard, Row
from mergeops.scores import merit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; the shapes differ as well.
_STYLES = {
    "merge": ("#0072B2", "o", "merge"),
    "source": ("#D55E00", "s", "source (a fine-tuning run)"),
    "base": ("#6E6E6E", "D", "base"),
}
_GRID = "#E3E3E3"
_TEXT = "#333333"
_LONGEST_NAME = 38
_LONGEST_BELOW = 30
"""Characters of a name on the left of a plot, and below it."""


def scores_figure(leaderboard: Leaderboard) -> Figure:
    """Draw a leaderboard, best model on top.

    Left: the score over all tasks with its 95 % interval. Right: the difference to the reference,
    paired by item; left out where there is no reference.

    Returns:
        A figure without a window; ``figure.savefig(path, dpi=150)`` writes it.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = leaderboard.rows
    has_difference = leaderboard.reference is not None and len(rows) > 1
    height = 1.75 + 0.34 * len(rows)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)
    figure = Figure(figsize=(9.6 if has_difference else 6.4, height), layout=layout)
    widths = (5, 4)[: 1 + has_difference]
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    _draw_scores(panels[0], leaderboard)
    if has_difference:
        _draw_differences(panels[1], leaderboard)
    for axes in panels:
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.label.set_size(9)
        tidy(axes, grid="x", labelsize=9, labelcolor=_TEXT)
    names = [plain_label(row.name, _LONGEST_NAME) for row in rows]
    panels[0].set_yticks(range(len(rows)), names, color=_TEXT)
    for label, row in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_color(_STYLES[row.kind][0])
        label.set_fontweight("bold" if row.kind == "merge" else "normal")

    tasks = leaderboard.tasks
    where = ", ".join(tasks) if len(tasks) <= 6 else f"{len(tasks)} tasks"
    title = f"{leaderboard.part} part, {rows[0].n} items: {where}"
    figure.suptitle(title, x=0.015, ha="left", fontsize=11, color=_TEXT)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9
    )
    return figure


def search_figure(tried: Sequence[Row], board: Leaderboard, higher_is_better: bool) -> Figure:
    """Dev scores in the order of trying, with 95 % intervals, and the best so far.

    Returns:
        A figure without a window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 2.2 + 0.42 * len(tried)), 4.8), layout="constrained")
    axes = figure.subplots()
    steps = range(1, len(tried) + 1)
    best, best_merit = math.nan, -math.inf
    so_far: list[float] = []
    for step, row in zip(steps, tried, strict=True):
        own_merit = merit(row.pooled, higher_is_better)
        leads = math.isfinite(own_merit) and own_merit >= best_merit
        best_merit = max(best_merit, own_merit)
        if leads:
            best = row.pooled
        so_far.append(best)
        colour = "#0072B2" if leads else "#8FB8D4"
        if math.isfinite(row.low) and math.isfinite(row.high):
            axes.plot([step, step], [row.low, row.high], color=colour, lw=2, alpha=0.5)
        axes.plot(step, row.pooled, "o", color=colour, ms=7, mec="white", mew=0.8)
    axes.step(steps, so_far, where="post", color="#0072B2", lw=1.2, label="best so far")
    if board.reference_row is not None:
        label = f"best single parent: {plain_label(board.reference_row.name, _LONGEST_BELOW)}"
        line: dict[str, Any] = {"color": "#D55E00", "lw": 1.2, "ls": (0, (4, 3))}
        axes.axhline(board.reference_row.pooled, label=label, **line)
    names = [plain_label(row.name, _LONGEST_BELOW) for row in tried]
    axes.set_xticks(list(steps), names, rotation=40, ha="right")
    axes.set_ylabel(f"score over all tasks ({board.part}, {board.rows[0].n} items)")
    tidy(axes, grid="y", labelsize=9)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def tidy(axes: Any, *, grid: str | None = None, **ticks: Any) -> None:
    """Leave out frame and tick marks; ``grid`` is the axis, x or y, whose lines are drawn."""
    if grid is not None:
        axes.grid(axis=grid, color=_GRID, lw=0.8)
        axes.set_axisbelow(True)
    axes.tick_params(length=0, **ticks)
    for side in axes.spines.values():
        side.set_visible(False)


def plain_label(name: str, longest: int | None = None) -> str:
    """A name as a plot shows it: cut, and not read as a formula between two dollar signs."""
    if longest is not None and len(name) > longest:
        name = name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def _draw_scores(axes: Any, leaderboard: Leaderboard) -> None:
    in_legend: set[str] = set()
    for place, row in enumerate(leaderboard.rows):
        label = None if row.kind in in_legend else _STYLES[row.kind][2]
        in_legend.add(row.kind)
        _dot(axes, place, row.kind, (row.low, row.pooled, row.high), label)
    reference = leaderboard.reference_row
    if reference is not None:
        colour = _STYLES[reference.kind][0]
        axes.axvline(reference.pooled, color=colour, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.set_xlabel("score over all tasks, 95 % interval", color=_TEXT)


def _draw_differences(axes: Any, leaderboard: Leaderboard) -> None:
    axes.axvline(0, color=_TEXT, lw=1, zorder=1)
    for place, row in enumerate(leaderboard.rows):
        d = row.difference
        if d is not None:
            _dot(axes, place, row.kind, (d.low, d.difference, d.high))
            continue
        axes.annotate(
            "reference",
            (0, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_STYLES[row.kind][0],
        )
    reference = plain_label(leaderboard.reference or "", _LONGEST_NAME)
    axes.set_xlabel(f"difference to {reference}, paired", color=_TEXT)


def _dot(
    axes: Any,
    place: int,
    kind: str,
    interval: tuple[float, float, float],
    label: str | None = None,
) -> None:
    """A model's value at its height, with a bar from the low to the high end of its interval."""
    colour, marker, _ = _STYLES[kind]
    low, value, high = interval
    if math.isfinite(low) and math.isfinite(high):
        bar = {"lw": 2, "alpha": 0.45, "solid_capstyle": "round", "zorder": 2}
        axes.plot([low, high], [place, place], color=colour, **bar)
    dot = {"ms": 7, "ls": "", "mec": "white", "mew": 0.8, "zorder": 3}
    axes.plot(value, place, marker=marker, color=colour, label=label, **dot)
