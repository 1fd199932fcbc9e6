"""What the terminal shows of a result; all of it on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergeops.report.console import console as _console
from mergeops.report.console import escape as _escape
from mergeops.report.console import table as _table

if TYPE_CHECKING:
    from pathlib import Path

    from mergeops.pipeline import Trial
    from mergeops.report.leaderboard import Leaderboard
    from mergeops.search import Found
    from mergeops.sources.adopt import Adoption


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
        from mergeops.evaluate.intervals import mean_interval

        best = found.best
        shown = mean_interval(best.scores) if best.scores else "not scored"
        console.print(
            f"{strategy}: the best is [bold]{_escape(best.name)}[/], {_escape(str(shown))} on dev, "
            f"models:/{best.registered}"
        )
    else:
        console.print(
            f"{strategy}: no merge beats the source [bold]{found.best_source}[/] on dev; it stays "
            "the best"
        )


def print_adoption(adoption: Adoption, recipe_path: Path | None) -> None:
    """Every run, what it left, and which can be merged together."""
    console = _console()
    columns = ("run", "status", "checkpoint", "kind", "size", "eval loss", "merges with the others")
    rows = []
    for row in adoption.rows():
        verdict = row["problem"] or row["not_with_the_largest"] or "yes"
        rows.append(
            (
                row["run_name"],
                row["status"],
                f"step {row['step']}" if row["step"] is not None else "-",
                row["kind"] or "-",
                _size(row["size_bytes"]),
                _shown(row["metrics"].get("eval_loss")),
                verdict,
            )
        )
    console.print(_table(columns, rows))
    new = sum(one.is_new for one in adoption.adopted)
    console.print(
        f"{len(adoption.adopted)} of {len(adoption.found)} runs left a checkpoint to merge; "
        f"{new} new in MLflow, nothing copied"
    )
    if recipe_path is not None:
        console.print(f"recipe: {recipe_path}")


def _size(n: int | None) -> str:
    return "-" if n is None else f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
