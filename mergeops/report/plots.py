"""The leaderboard as a picture: scores on the left, paired differences on the right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mergeops.report.leaderboard import Leaderboard, Row

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


def scores_figure(leaderboard: Leaderboard) -> Figure:
    """Draw a leaderboard, best model on top.

    Left: the score over all tasks with its 95 % interval. Right: the difference to the reference,
    paired by item; left out where there is no reference.

    Returns:
        A figure without a window; ``figure.savefig(path, dpi=150)`` writes it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = leaderboard.rows
    has_difference = leaderboard.reference is not None and len(rows) > 1
    height = 1.75 + 0.34 * len(rows)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)
    figure = Figure(figsize=(9.6 if has_difference else 6.4, height), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        1,
        2 if has_difference else 1,
        sharey=True,
        squeeze=False,
        width_ratios=(5, 4)[: 1 + has_difference],
    )[0]

    _draw_scores(axes[0], leaderboard)
    if has_difference:
        _draw_differences(axes[1], leaderboard)
    for axis in axes:
        _tidy(axis, len(rows))
    axes[0].set_yticks(range(len(rows)), [_short(row.name) for row in rows], color=_TEXT)
    for label, row in zip(axes[0].get_yticklabels(), rows, strict=True):
        label.set_color(_STYLES[row.kind][0])
        label.set_fontweight("bold" if row.kind == "merge" else "normal")

    tasks = leaderboard.tasks
    where = ", ".join(tasks) if len(tasks) <= 6 else f"{len(tasks)} tasks"
    figure.suptitle(
        f"{leaderboard.part} part, {rows[0].n} items: {where}",
        x=0.015,
        ha="left",
        fontsize=11,
        color=_TEXT,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9
    )
    return figure


def _draw_scores(axis: Any, leaderboard: Leaderboard) -> None:
    seen: set[str] = set()
    for place, row in enumerate(leaderboard.rows):
        colour, marker, label = _STYLES[row.kind]
        _dot(
            axis,
            row.pooled,
            row.low,
            row.high,
            place,
            colour,
            marker,
            None if label in seen else label,
        )
        seen.add(label)
    reference = _named(leaderboard, leaderboard.reference)
    if reference is not None:
        axis.axvline(
            reference.pooled, color=_STYLES[reference.kind][0], lw=1, ls=(0, (4, 3)), zorder=1
        )
    axis.set_xlabel("score over all tasks, 95 % interval", color=_TEXT)


def _draw_differences(axis: Any, leaderboard: Leaderboard) -> None:
    axis.axvline(0, color=_TEXT, lw=1, zorder=1)
    for place, row in enumerate(leaderboard.rows):
        colour, marker, _ = _STYLES[row.kind]
        found = row.difference
        if found is None:
            axis.annotate(
                "reference",
                (0, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_STYLES[row.kind][0],
            )
            continue
        _dot(axis, found.difference, found.low, found.high, place, colour, marker, None)
    axis.set_xlabel(f"difference to {_short(leaderboard.reference or '')}, paired", color=_TEXT)


def _dot(
    axis: Any,
    value: float,
    low: float,
    high: float,
    place: int,
    colour: str,
    marker: str,
    label: str | None,
) -> None:
    if math.isfinite(low) and math.isfinite(high):
        axis.plot(
            [low, high],
            [place, place],
            color=colour,
            lw=2,
            alpha=0.45,
            solid_capstyle="round",
            zorder=2,
        )
    axis.plot(
        value,
        place,
        marker=marker,
        ms=7,
        ls="",
        color=colour,
        mec="white",
        mew=0.8,
        label=label,
        zorder=3,
    )


def _tidy(axis: Any, n: int) -> None:
    axis.set_ylim(n - 0.4, -0.6)
    axis.grid(axis="x", color=_GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.locator_params(axis="x", nbins=6)
    axis.tick_params(axis="both", length=0, labelsize=9, labelcolor=_TEXT)
    axis.xaxis.label.set_size(9)
    for side in axis.spines.values():
        side.set_visible(False)


def _named(leaderboard: Leaderboard, name: str | None) -> Row | None:
    return next((row for row in leaderboard.rows if row.name == name), None)


def _short(name: str) -> str:
    # matplotlib reads what stands between two dollar signs as a formula.
    shown = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return shown.replace("$", r"\$")
