"""The commands about @champion: promote, approve, reject, rollback, history, and controls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeops.errors import ConfigError
from mergeops.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    QUIET,
    name_first,
    options,
    print_result,
)
from mergeops.progress import Progress

if TYPE_CHECKING:
    from mergeops.recipe import Recipe
    from mergeops.tracking.connection import Tracking

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
@options(CONFIG_DIR, AS_JSON, QUIET)
def promote(
    name: str | None,
    overrides: tuple[str, ...],
    version: int | None,
    expect_current: int | None,
    force: bool,
    reason: str | None,
    config_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Move NAME@champion to a merge, if it is better on the confirm part.

    With promote.approval=true the merge becomes @challenger, and waits for another user.
    """
    from mergeops import confirm

    recipe, name = _settings(name, overrides, config_dir)
    outcome = confirm.promote(
        recipe,
        name,
        Progress(quiet=quiet),
        version=version,
        expect_current=expect_current,
        force=force,
        reason=reason,
    )
    if as_json:
        print_result(outcome.to_dict(), True)
    else:
        from mergeops.report.promotion import print_promotion

        print_promotion(outcome)
    outcome.raise_if_refused()


@click.command()
@NAME
@OVERRIDES
@click.option("--version", type=int, help="Refuse unless this version is the one that waits.")
@EXPECT
@click.option("--reason", help="Kept in the audit.")
@options(CONFIG_DIR, AS_JSON, QUIET)
def approve(
    name: str | None,
    overrides: tuple[str, ...],
    version: int | None,
    expect_current: int | None,
    reason: str | None,
    config_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make NAME@challenger, which another user proposed, the champion."""
    from mergeops import approval
    from mergeops.hooks import configured
    from mergeops.report.promotion import print_change

    with _registry(name, overrides, config_dir, quiet) as at:
        change = approval.approve(
            at.tracking,
            at.name,
            user=at.user,
            version=version,
            expect_current=expect_current,
            reason=reason,
            hooks=configured(at.recipe.promote.hooks),
        )
    if as_json:
        return print_result(change.to_dict(), True)
    print_change(change)


@click.command()
@NAME
@OVERRIDES
@click.option("--version", type=int, help="Refuse unless this version is the one that waits.")
@click.option("--reason", required=True, help="Kept in the audit.")
@options(CONFIG_DIR, AS_JSON, QUIET)
def reject(
    name: str | None,
    overrides: tuple[str, ...],
    version: int | None,
    reason: str,
    config_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Close the proposal of NAME@challenger; the champion stays."""
    from mergeops import approval

    if not reason.strip():
        raise ConfigError("--reason is empty; say why, for the proposer reads it")
    with _registry(name, overrides, config_dir, quiet) as at:
        change = approval.reject(at.tracking, at.name, user=at.user, reason=reason, version=version)
    text = f"rejected: version {change.to} of {change.name}, proposed by {change.proposed_by}"
    print_result(change.to_dict() if as_json else text, as_json)


@click.command()
@NAME
@OVERRIDES
@EXPECT
@click.option("--reason", help="Kept in the audit.")
@options(CONFIG_DIR, AS_JSON, QUIET)
def rollback(
    name: str | None,
    overrides: tuple[str, ...],
    expect_current: int | None,
    reason: str | None,
    config_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Move NAME@champion back to NAME@previous."""
    from mergeops import promote as registry
    from mergeops.hooks import configured

    with _registry(name, overrides, config_dir, quiet) as at:
        change = registry.rollback(
            at.tracking,
            at.name,
            user=at.user,
            reason=reason,
            expect_current=expect_current,
            hooks=configured(at.recipe.promote.hooks),
        )
    text = f"{change.name}@champion is version {change.to} again (was {change.came_from})"
    print_result(change.to_dict() if as_json else text, as_json)


@click.command()
@NAME
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def history(
    name: str | None, overrides: tuple[str, ...], config_dir: Path | None, as_json: bool
) -> None:
    """Every promotion, refusal, proposal, rollback and use of the confirm part of NAME."""
    from mergeops.history import history as read
    from mergeops.report.promotion import print_history
    from mergeops.tracking.connection import connect_to_server

    recipe, name = _settings(name, overrides, config_dir)
    found = read(connect_to_server(recipe.tracking), name)
    if as_json:
        return print_result(found.to_dict(), True)
    print_history(found)


@click.command()
@NAME
@OVERRIDES
@click.option("--version", type=int, help="Which merge; default: the best on dev.")
@click.option(
    "--only",
    type=click.Choice(["leave-one-out", "random"]),
    help="One kind of control; default: both.",
)
@options(CONFIG_DIR, AS_JSON, QUIET)
def controls(
    name: str | None,
    overrides: tuple[str, ...],
    version: int | None,
    only: str | None,
    config_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """What each source of a merge contributes: the merge without it, and with noise for it.

    All on the dev part; nothing is registered.
    """
    from mergeops.controls import run_controls
    from mergeops.report.promotion import print_controls

    recipe, name = _settings(name, overrides, config_dir)
    found = run_controls(recipe, name, Progress(quiet=quiet), version=version, only=only)
    if as_json:
        return print_result(found.to_dict(), True)
    print_controls(found)


def _settings(
    name: str | None, overrides: tuple[str, ...], config_dir: Path | None
) -> tuple[Recipe, str]:
    from mergeops import compose

    name, overrides = name_first(name, overrides)
    recipe = compose.compose(overrides, config_dir=config_dir)
    return recipe, name or recipe.tracking.registered_model


@dataclass(frozen=True)
class _Registry:
    """Where a command changes who is champion, and as whom."""

    tracking: Tracking
    name: str
    user: str
    recipe: Recipe


@contextmanager
def _registry(
    name: str | None, overrides: tuple[str, ...], config_dir: Path | None, quiet: bool
) -> Iterator[_Registry]:
    """Reach the registry; once the block has made its change, deliver it to the hooks."""
    from mergeops.hooks import deliver
    from mergeops.tracking.connection import connect_to_server
    from mergeops.tracking.user import current_user

    recipe, name = _settings(name, overrides, config_dir)
    tracking = connect_to_server(recipe.tracking)
    yield _Registry(tracking, name, current_user(), recipe)
    for failure in deliver(tracking, name, recipe.promote.hooks):
        Progress(quiet=quiet).step(f"note: {failure}")
