"""What a person finds on a search's page in MLflow: curves, pictures, leaderboard and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeops.report import Leaderboard, Row, board_markdown, scores_figure, search_figure
from mergeops.scores import merit
from mergeops.tracking.searches import SearchRun


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
    log.log_text(board_markdown(board), "leaderboard.md")
    log.log_json(board.to_dict(), "leaderboard.json")
    best = max(range(len(tried)), key=lambda i: merit(tried[i].pooled, higher_is_better))
    log.describe(_text(trials[best], tried[best], board, len(trials)))


def _text(best: TrialLine, row: Row, board: Leaderboard, n: int) -> str:
    against = ""
    if row.difference is not None:
        against = f", {row.difference} against the best single parent, {board.reference}"
    return (
        f"{n} trials; the best merge is **{best.label}**, {row.estimate} on {board.part}"
        f"{against}: run `{best.run_id}`, `models:/{best.registered}`. It was chosen on these "
        "items, so its score is optimistic; the confirm part decides (`mergeops promote`).\n\n"
        f"{board_markdown(board)}\n\n"
        "Curves: steps/trial and steps/best under Model metrics. Pictures: "
        "plots/search.png, plots/scores.png."
    )
