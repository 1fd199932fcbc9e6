"""The commands about @champion: promote, approve, reject, rollback, history, and controls.

Most options are arguments of the function that the command calls, and have their names.
"""

from __future__ import annotations

from typing import Any

import click

from mergeops import promotion
from mergeops.cli.console import console, escape, table
from mergeops.cli.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    Call,
    composed,
    options,
    progress_options,
)
from mergeops.errors import ConfigError
from mergeops.promotion import (
    BETTER,
    FLOOR,
    INCONCLUSIVE,
    RISE,
    Change,
    Controls,
    GateCheck,
    History,
    Outcome,
    configured,
    read_history,
    run_controls,
)
from mergeops.recipe import Recipe
from mergeops.store import connect_to_server, current_user
from mergeops.tracking import kept_answer

NAME = click.argument("name", required=False)
EXPECT = click.option(
    "--expect-current",
    type=click.IntRange(min=0),
    help="Refuse unless this version is @champion now; 0: unless none is.",
)


@click.command()
@NAME
@OVERRIDES
@click.option("--version", type=int, help="Candidate version; default: the best on dev.")
@EXPECT
@click.option("--force", is_flag=True, help="Promote against the gate; needs --reason.")
@click.option("--reason", help="Why the gate is overruled; kept in the audit.")
@options(CONFIG_DIR, AS_JSON, progress_options)
def promote(call: Call, name: str | None, **wanted: Any) -> None:
    """Move NAME@champion to a merge, if it is better on the confirm part.

    With promote.approval=true the merge becomes @challenger, and waits for another user.
    """
    recipe, name = _settings(call, name)
    outcome = promotion.promote(recipe, name, call.progress, **wanted)
    call.show(outcome, print_promotion)
    outcome.raise_if_refused()


@click.command()
@NAME
@OVERRIDES
@click.option("--version", type=int, help="Refuse unless this version is the one that waits.")
@EXPECT
@click.option("--reason", help="Kept in the audit.")
@options(CONFIG_DIR, AS_JSON, progress_options)
def approve(call: Call, name: str | None, **wanted: Any) -> None:
    """Make NAME@challenger, which another user proposed, the champion."""
    recipe, name = _settings(call, name)
    hooks = configured(recipe.promote.hooks)
    with promotion.registry(recipe, name, call.progress) as tracking:
        change = promotion.approve(tracking, name, user=current_user(), hooks=hooks, **wanted)
    call.show(change, print_change)


@click.command()
@NAME
@OVERRIDES
@click.option("--version", type=int, help="Refuse unless this version is the one that waits.")
@click.option("--reason", required=True, help="Kept in the audit.")
@options(CONFIG_DIR, AS_JSON, progress_options)
def reject(call: Call, name: str | None, reason: str, **wanted: Any) -> None:
    """Close the proposal of NAME@challenger; the champion stays."""
    if not reason.strip():
        raise ConfigError("--reason is empty; say why, for the proposer reads it")
    recipe, name = _settings(call, name)
    with promotion.registry(recipe, name, call.progress) as tracking:
        change = promotion.reject(tracking, name, user=current_user(), reason=reason, **wanted)
    text = f"rejected: version {change.to} of {change.name}, proposed by {change.proposed_by}"
    text += _made_before(change)
    call.show(change, text)


@click.command()
@NAME
@OVERRIDES
@EXPECT
@click.option("--reason", help="Kept in the audit.")
@options(CONFIG_DIR, AS_JSON, progress_options)
def rollback(call: Call, name: str | None, **wanted: Any) -> None:
    """Move NAME@champion back to NAME@previous."""
    recipe, name = _settings(call, name)
    hooks = configured(recipe.promote.hooks)
    with promotion.registry(recipe, name, call.progress) as tracking:
        change = promotion.rollback(tracking, name, user=current_user(), hooks=hooks, **wanted)
    text = f"{change.name}@champion is version {change.to} again (was {change.came_from})"
    if change.was_made:
        text += f"{_made_before(change)}; --expect-current {change.to} goes back to the other one"
    call.show(change, text)


@click.command()
@NAME
@OVERRIDES
@click.option(
    "--expect-current",
    type=click.IntRange(min=0),
    help="End with exit code 7 unless this version is @champion now; 0: unless none is.",
)
@options(CONFIG_DIR, AS_JSON)
def history(call: Call, name: str | None, expect_current: int | None) -> None:
    """Every promotion, refusal, proposal, rollback and use of the confirm part of NAME."""
    recipe, name = _settings(call, name)
    read = kept_answer(
        History,
        recipe,
        ["history", name],
        (),
        lambda: read_history(connect_to_server(recipe.tracking), name),
    )
    call.show(read, print_history)
    read.check_champion(expect_current)


@click.command()
@NAME
@OVERRIDES
@click.option("--version", type=int, help="Which merge; default: the best on dev.")
@click.option(
    "--only",
    type=click.Choice(["leave-one-out", "random"]),
    help="One kind of control; default: both.",
)
@options(CONFIG_DIR, AS_JSON, progress_options)
def controls(call: Call, name: str | None, **wanted: Any) -> None:
    """What each source of a merge contributes: the merge without it, and with noise for it.

    All on the dev part; nothing is registered.
    """
    recipe, name = _settings(call, name)
    call.show(run_controls(recipe, name, call.progress, **wanted), print_controls)


def _settings(call: Call, name: str | None) -> tuple[Recipe, str]:
    """The recipe, and which registered model is meant. NAME may be left out, so that the first
    word is an override already."""
    words = call.overrides
    if name is not None and ("=" in name or name.startswith("~")):
        words = (name, *words)
        name = None
    recipe = composed(words, call.config_dir)
    return recipe, name or recipe.tracking.registered_model


def print_promotion(outcome: Outcome) -> None:
    """Every check of the gate with its numbers, and the verdict."""
    out = console()
    label = escape(f"version {outcome.version} of {outcome.name}")
    if outcome.verdict is None or outcome.use is None:
        if outcome.change is not None:
            print_change(outcome.change)
        else:
            out.print(f"{label} is @champion already, set by hand; nothing to promote")
        return
    columns = ("the merge must be", "difference", "rule", "outcome")
    out.print(table(columns, [_row(check) for check in outcome.verdict.checks]))
    for page in outcome.links.values():
        out.print(f"  {escape(page)}", style="dim", soft_wrap=True)
    out.print(
        f"use {outcome.use.number} of the confirm part, level {outcome.use.level:.3g}", style="dim"
    )
    if outcome.change is None:
        decision = outcome.verdict.decision
        now = "stays a candidate" if decision == INCONCLUSIVE else "is marked as rejected"
        # Why is the error's one line.
        out.print(f"[bold red]{decision}[/]: {label} {now}")
        return
    forced = f", forced: {outcome.change.reason}" if outcome.change.forced else ""
    if not outcome.promoted:
        out.print(
            f"[bold yellow]proposed[/]: {label} is @challenger and waits for approval by another "
            f"user than {escape(outcome.change.by + forced)}: mergeops approve "
            f"{escape(outcome.name)}"
        )
        return
    print_change(outcome.change)


def print_change(change: Change) -> None:
    """A promotion in one line."""
    was = f"was version {change.came_from}" if change.came_from is not None else "the first one"
    forced = f", forced: {change.reason}" if change.forced else ""
    approved = f", proposed by {change.proposed_by}" if change.proposed_by else ""
    console().print(
        f"[bold green]promoted[/]: models:/{escape(change.name)}@champion is version {change.to} "
        f"({was}{escape(approved + forced)}){escape(_made_before(change))}"
    )


def _made_before(change: Change) -> str:
    """For who asks again: it is done, and nothing was changed now."""
    return f"; done before, by {change.by} at {change.at}" if change.was_made else ""


def print_history(history: History) -> None:
    """One line an event, oldest first, and where the aliases are."""
    out = console()
    rows = [
        (event.at[:19].replace("T", " "), event.what, str(event.version), event.by, event.about)
        for event in history.events
    ]
    out.print(table(("UTC", "what", "version", "by", "about"), rows))
    aliases = ("champion", "previous", "challenger")
    at = {alias: getattr(history, alias) for alias in aliases}
    shown = [f"@{alias} is version {version}" for alias, version in at.items() if version]
    out.print(f"{escape(history.name)}: {', '.join(shown) or 'no champion yet'}")
    if history.unfinished is not None:
        out.print(
            f"a {history.unfinished.kind} of version {history.unfinished.to} was cut off; the next "
            "promote, approve, reject or rollback completes it"
        )


def print_controls(controls: Controls) -> None:
    """What each source contributes, and what a random one would have."""
    out = console()
    out.print(table(controls.COLUMNS, controls.rows()))
    out.print(controls.footnote(), style="dim")


def _row(check: GateCheck) -> tuple[str, str, str, str]:
    task = f"{check.tasks[0]} ({check.n} items)" if check.tasks else ""
    rule = check.rule
    if check.kind == BETTER:
        requirement = f"better than {check.reference} on {check.n} items"
        rule = f"p = {check.p_value:.3g}, allowed {check.threshold:.3g}"
    elif check.kind == FLOOR:
        requirement = f"as good as its floor on {task}"
    elif check.kind == RISE:
        requirement = f"no higher in bits per byte on {task}"
    else:
        requirement = f"not worse on {task}"
    sign = "" if check.kind == FLOOR else "+"
    interval = f"{check.difference:{sign}.3f} [{check.low:{sign}.3f}, {check.high:{sign}.3f}]"
    return (requirement, interval, rule, check.outcome)
