"""What a person finds on the page of a search: the best, the leaderboard, and its course."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.evaluate import merit
from mergeops.report.plots import scores_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mergeops.report.leaderboard import Leaderboard, Row
    from mergeops.tracking.search_run import SearchRun


@dataclass(frozen=True)
class TrialLine:
    """A trial of the search, in the order of trying."""

    label: str
    """Its name on the leaderboard."""
    run_id: str
    registered: str


def log_search(
    log: SearchRun, trials: Sequence[TrialLine], board: Leaderboard, higher_is_better: bool
) -> None:
    """Log curves, pictures, leaderboard and text of a search or sweep that has scored trials.

    Writes steps/trial and steps/best (metrics by step), plots/search.png, plots/scores.png,
    leaderboard.md and leaderboard.json.
    """
    rows = {row.name: row for row in board.rows}
    tried = [rows[trial.label] for trial in trials]
    log.log_steps([row.pooled for row in tried], higher_is_better=higher_is_better)
    log.log_figure(search_figure(tried, board, higher_is_better), "plots/search.png")
    log.log_figure(scores_figure(board), "plots/scores.png")
    log.log_text(board.markdown(), "leaderboard.md")
    log.log_json(board.to_dict(), "leaderboard.json")
    best = max(range(len(tried)), key=lambda i: merit(tried[i].pooled, higher_is_better))
    log.describe(_text(trials[best], tried[best], board, len(trials)))


def _text(best: TrialLine, row: Row, board: Leaderboard, n: int) -> str:
    found = row.difference
    against = (
        f", {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] against the best single "
        f"parent, {board.reference}"
        if found
        else ""
    )
    return (
        f"{n} trials; the best merge is **{best.label}**, {row.estimate} on {board.part}"
        f"{against}: run `{best.run_id}`, `models:/{best.registered}`. It was chosen on these "
        "items, so its score is optimistic; the confirm part decides (`mergeops promote`).\n\n"
        f"{board.markdown()}\n\nCurves: steps/trial and steps/best under Model metrics. Pictures: "
        "plots/search.png, plots/scores.png."
    )


def search_figure(tried: Sequence[Row], board: Leaderboard, higher_is_better: bool) -> Figure:
    """Dev scores in the order of trying, with 95 % intervals, and the best so far.

    Returns:
        A figure without a window.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 2.2 + 0.42 * len(tried)), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = range(1, len(tried) + 1)
    so_far: list[float] = []
    most = -math.inf
    for step, row in zip(steps, tried, strict=True):
        own = merit(row.pooled, higher_is_better)
        leads = math.isfinite(own) and own >= most
        most = max(most, own)
        so_far.append(row.pooled if leads else so_far[-1] if so_far else math.nan)
        colour = "#0072B2" if leads else "#8FB8D4"
        if math.isfinite(row.low) and math.isfinite(row.high):
            axes.plot([step, step], [row.low, row.high], color=colour, lw=2, alpha=0.5)
        axes.plot(step, row.pooled, "o", color=colour, ms=7, mec="white", mew=0.8)
    axes.step(steps, so_far, where="post", color="#0072B2", lw=1.2, label="best so far")
    reference = next((row for row in board.rows if row.name == board.reference), None)
    if reference is not None:
        axes.axhline(
            reference.pooled,
            color="#D55E00",
            lw=1.2,
            ls=(0, (4, 3)),
            label=f"best single parent: {_plain(reference.name)}",
        )
    axes.set_xticks(list(steps), [_plain(row.name) for row in tried], rotation=40, ha="right")
    axes.set_ylabel(f"score over all tasks ({board.part}, {board.rows[0].n} items)")
    axes.tick_params(length=0, labelsize=9)
    axes.grid(axis="y", color="#E3E3E3", lw=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _plain(name: str) -> str:
    # matplotlib reads what stands between two dollar signs as a formula.
    shown = name if len(name) <= 30 else name[:29] + "…"
    return shown.replace("$", r"\$")
