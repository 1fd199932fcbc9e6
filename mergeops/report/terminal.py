"""What the terminal shows of a result; all of it on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mergeops.confirm import Outcome
    from mergeops.pipeline import Trial
    from mergeops.report.leaderboard import Leaderboard
    from mergeops.search import Found


def print_leaderboard(board: Leaderboard) -> None:
    """The leaderboard alone."""
    _console().print(board.table())


def print_trials(trials: Sequence[Trial]) -> None:
    """What was merged, where it is, and how it stands among its parents."""
    from mergeops.pipeline import joint_leaderboard

    console = _console()
    scored = any(trial.scores is not None for trial in trials)
    if scored:
        console.print(joint_leaderboard(trials).table())
    for trial in trials:
        console.print(f"[bold]{_escape(trial.name)}[/]")
        console.print(f"  registered  models:/{trial.registered}")
        console.print(f"  MLflow run  {trial.run_id}")
        console.print(f"  checkpoint  {trial.checkpoint}")
    if scored:
        name = trials[0].registered.rsplit("/", 1)[0]
        console.print(f"\nnext: mergeops compare, then mergeops promote {name}", style="dim")


def print_search(strategy: str, found: Found) -> None:
    """The steps of a search, and what it ended with."""
    console = _console()
    if found.rows:
        console.print(_table(found.rows[0], ([_shown(v) for v in r.values()] for r in found.rows)))
    if found.best is not None:
        best = found.best
        console.print(
            f"{strategy}: the best is [bold]{_escape(best.name)}[/], {best.dev_score:.3f} on dev, "
            f"models:/{best.registered}"
        )
    else:
        console.print(
            f"{strategy}: no merge beats the source [bold]{found.best_source}[/] on dev; it stays "
            "the best"
        )


def print_promotion(outcome: Outcome) -> None:
    """Every check of the gate with its numbers, and the verdict."""
    console = _console()
    console.print(_table(("the merge must be", "difference", "rule", "outcome"), _checks(outcome)))
    label = f"version {outcome.version} of {outcome.name}"
    if outcome.change is None:
        console.print(f"[bold red]{outcome.verdict.decision}[/]: {label} stays a candidate")
        for reason in outcome.verdict.reasons:
            console.print(f"  - {_escape(reason)}")
        return
    before = outcome.change.came_from
    was = f"was version {before}" if before is not None else "the first one"
    forced = f", forced: {outcome.change.reason}" if outcome.change.forced else ""
    console.print(
        f"[bold green]promoted[/]: models:/{outcome.name}@champion is version {outcome.version} "
        f"({was}{_escape(forced)})"
    )


def _checks(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    rows = []
    for check in outcome.verdict.checks:
        if check.kind == "better":
            what = f"better than {check.reference} on {check.n} items"
            rule = f"p = {check.p_value:.3g}, allowed {check.threshold:g}"
        else:
            what = f"not worse on {check.tasks[0]} ({check.n} items)"
            rule = f"low > {check.threshold:+.3f}"
        interval = f"{check.difference:+.3f} [{check.low:+.3f}, {check.high:+.3f}]"
        rows.append((what, interval, rule, check.outcome))
    return rows


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_escape(cell) for cell in row))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
