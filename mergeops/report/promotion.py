"""What the terminal shows of promotions: the gate's numbers, the history, the controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeops.gate import INCONCLUSIVE
from mergeops.gate_checks import BETTER, FLOOR, RISE, Check
from mergeops.report.console import console, escape, table

if TYPE_CHECKING:
    from mergeops.audit import Change
    from mergeops.confirm import Outcome
    from mergeops.controls import Controls
    from mergeops.history import History


def print_promotion(outcome: Outcome) -> None:
    """Every check of the gate with its numbers, and the verdict."""
    out = console()
    columns = ("the merge must be", "difference", "rule", "outcome")
    out.print(table(columns, [_row(check) for check in outcome.verdict.checks]))
    label = f"version {outcome.version} of {outcome.name}"
    out.print(
        f"use {outcome.use.number} of the confirm part, level {outcome.use.level:.3g}", style="dim"
    )
    if outcome.change is None:
        decision = outcome.verdict.decision
        now = "stays a candidate" if decision == INCONCLUSIVE else "is marked as rejected"
        out.print(f"[bold red]{decision}[/]: {label} {now}")
        for reason in outcome.verdict.reasons:
            out.print(f"  - {escape(reason)}")
        return
    forced = f", forced: {outcome.change.reason}" if outcome.change.forced else ""
    if not outcome.promoted:
        out.print(
            f"[bold yellow]proposed[/]: {label} is @challenger and waits for approval by another "
            f"user than {escape(outcome.change.by + forced)}: mergeops approve {outcome.name}"
        )
        return
    print_change(outcome.change)


def print_change(change: Change) -> None:
    """A promotion in one line."""
    was = f"was version {change.came_from}" if change.came_from is not None else "the first one"
    forced = f", forced: {change.reason}" if change.forced else ""
    approved = f", proposed by {change.proposed_by}" if change.proposed_by else ""
    console().print(
        f"[bold green]promoted[/]: models:/{change.name}@champion is version {change.to} "
        f"({was}{escape(approved + forced)})"
    )


def print_history(found: History) -> None:
    """One line an event, oldest first, and where the aliases are."""
    out = console()
    rows = [
        (event.at[:19].replace("T", " "), event.what, str(event.version), event.by, event.about)
        for event in found.events
    ]
    out.print(table(("UTC", "what", "version", "by", "about"), rows))
    named = {
        "champion": found.champion,
        "previous": found.previous,
        "challenger": found.challenger,
    }
    said = [f"@{alias} is version {version}" for alias, version in named.items() if version]
    out.print(f"{found.name}: {', '.join(said) or 'no champion yet'}")
    if found.unfinished is not None:
        out.print(
            f"a {found.unfinished.kind} of version {found.unfinished.to} was cut off; the next "
            "promote, approve, reject or rollback completes it"
        )


def print_controls(found: Controls) -> None:
    """What each source contributes, and what a random one would have."""
    out = console()
    out.print(table(found.COLUMNS, found.rows()))
    out.print(found.footnote(), style="dim")


def _row(check: Check) -> tuple[str, str, str, str]:
    items = f"({check.n} items)"
    if check.kind == BETTER:
        what = f"better than {check.reference} on {check.n} items"
        rule = f"p = {check.p_value:.3g}, allowed {check.threshold:.3g}"
    elif check.kind == FLOOR:
        what, rule = f"as good as its floor on {check.tasks[0]} {items}", check.rule
    elif check.kind == RISE:
        what, rule = f"no higher in bits per byte on {check.tasks[0]} {items}", check.rule
    else:
        what, rule = f"not worse on {check.tasks[0]} {items}", check.rule
    sign = "" if check.kind == FLOOR else "+"
    interval = f"{check.difference:{sign}.3f} [{check.low:{sign}.3f}, {check.high:{sign}.3f}]"
    return (what, interval, rule, check.outcome)
