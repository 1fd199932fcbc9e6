"""What the terminal shows of a result; all of it on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergeops.evaluate.intervals import Estimate, estimate
from mergeops.report.console import console as _console
from mergeops.report.console import escape as _escape
from mergeops.report.console import table as _table

if TYPE_CHECKING:
    from pathlib import Path

    from mergeops.compare import Compared
    from mergeops.pipeline import Trial
    from mergeops.search import Found


def print_compared(compared: Compared, html: Path | None) -> None:
    """The leaderboard, who is not on it, and where the page is."""
    console = _console()
    console.print(compared.board.table())
    for one in compared.left_out:
        console.print(f"left out: {_escape(one.name)}, it {_escape(one.reason)}", style="dim")
    if html is not None:
        console.print(f"page: {_escape(str(html))}")


def print_trials(trials: Sequence[Trial]) -> None:
    """What was merged, where it is, and how it stands among its parents."""
    from mergeops.pipeline import joint_leaderboard

    console = _console()
    scored = any(trial.scores is not None for trial in trials)
    if scored:
        console.print(joint_leaderboard(trials).table())
    for trial in trials:
        console.print(f"[bold]{_escape(trial.name)}[/]")
        if trial.registered:
            console.print(f"  registered  models:/{trial.registered}")
            console.print(f"  MLflow run  {trial.run_id}")
        else:
            console.print("  not logged  `mergeops sync` logs it when the server is there")
        console.print(f"  checkpoint  {trial.checkpoint}")
    if scored and trials[0].registered:
        name = trials[0].registered.rsplit("/", 1)[0]
        console.print(f"\nnext: mergeops compare, then mergeops promote {name}", style="dim")


def print_search(strategy: str, found: Found) -> None:
    """The steps of a search, and what it ended with."""
    console = _console()
    if found.rows:
        columns = [column for column in found.rows[0] if column != "dev_interval"]
        rows = [[_cell(row, column) for column in columns] for row in found.rows]
        console.print(_table(columns, rows))
    if found.best is not None:
        best = found.best
        shown = estimate(best.scores) if best.scores else "not scored"
        console.print(
            f"{strategy}: the best is [bold]{_escape(best.name)}[/], {_escape(str(shown))} on dev, "
            f"models:/{best.registered}"
        )
    else:
        console.print(
            f"{strategy}: no merge beats the source [bold]{found.best_source}[/] on dev; it stays "
            "the best"
        )


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if value is None:
        return "-"
    if column == "dev":
        return str(Estimate(value, row["dev_interval"]))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
