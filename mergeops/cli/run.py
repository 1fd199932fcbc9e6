"""The commands that merge, score and track: run and search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from mergeops import pipeline
from mergeops.cli.console import console, escape, table
from mergeops.cli.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    QUIET,
    SHOW,
    Call,
    options,
    show_recipe,
)
from mergeops.pipeline import Trial, joint_leaderboard
from mergeops.recipe import compose, expand_sweep
from mergeops.report import board_table
from mergeops.scores import Estimate, estimate
from mergeops.search import SearchResult, completed, parameter_types, run_search, with_strategy


@click.command()
@OVERRIDES
@click.option("-m", "--multirun", is_flag=True, help="Run every combination of listed values.")
@options(CONFIG_DIR, SHOW, AS_JSON, QUIET)
def run(call: Call, multirun: bool) -> None:
    """One tracked trial: find the sources, merge, score merge and parents, log, register."""
    jobs = expand_sweep(call.overrides) if multirun else [list(call.overrides)]
    strategies = parameter_types()
    recipes = [compose(job, config_dir=call.config_dir, strategies=strategies) for job in jobs]
    if call.cfg:
        for recipe in recipes:
            show_recipe(recipe)
        return
    trials = pipeline.run_all(recipes, call.progress, name=" ".join(call.overrides))
    call.show(trials if multirun else trials[0], lambda _: print_trials(trials))


@click.command()
@OVERRIDES
@options(CONFIG_DIR, SHOW, AS_JSON, QUIET)
def search(call: Call) -> None:
    """Many trials, the best chosen on the dev part: strategy=greedy_soup, grid or optuna."""
    words = with_strategy(call.overrides)
    recipe = compose(words, config_dir=call.config_dir, strategies=parameter_types())
    if call.cfg:
        return show_recipe(completed(recipe))
    result = run_search(recipe, call.progress)
    call.show(result, lambda result: print_search(recipe.search.strategy, result))


def print_trials(trials: Sequence[Trial]) -> None:
    """What was merged, where it is, and how it stands among its parents."""
    out = console()
    scored = any(trial.scores is not None for trial in trials)
    if scored:
        out.print(board_table(joint_leaderboard(trials)))
    for trial in trials:
        out.print(f"[bold]{escape(trial.name)}[/]")
        if trial.registered:
            out.print(f"  registered  models:/{trial.registered}")
            out.print(f"  MLflow run  {trial.run_id}")
        else:
            out.print("  not logged  `mergeops sync` logs it when the server is there")
        out.print(f"  checkpoint  {trial.checkpoint}")
    if scored and trials[0].registered:
        name = trials[0].registered.rsplit("/", 1)[0]
        out.print(f"\nnext: mergeops compare, then mergeops promote {name}", style="dim")


def print_search(strategy: str, result: SearchResult) -> None:
    """The steps of a search, and what it ended with."""
    out = console()
    if baselines := result.report.get("baselines"):
        out.print(escape(_against(baselines)))
    if result.rows:
        columns = [column for column in result.rows[0] if column != "dev_interval"]
        rows = [[_cell(row, column) for column in columns] for row in result.rows]
        out.print(table(columns, rows))
    if result.best is not None:
        best = result.best
        shown = estimate(best.scores) if best.scores else "not scored"
        out.print(
            f"{strategy}: the best is [bold]{escape(best.name)}[/], {escape(str(shown))} on dev, "
            f"models:/{best.registered}"
        )
    else:
        out.print(
            f"{strategy}: no merge beats the source [bold]{result.best_source}[/] on dev; it stays "
            "the best"
        )


def _against(baselines: Mapping[str, Mapping[str, Any]]) -> str:
    """What the best candidate of a study shows against merges that need no search."""
    parts = []
    for name, of in sorted(baselines.items(), key=lambda item: item[1]["beaten"]):
        word = "better" if of["beaten"] else "not shown better"
        low, high = of["interval"]
        pair = f"{of['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        parts.append(f"{word} than the {name.replace('_', ' ')} ({pair})")
    return f"the best candidate is on dev {', '.join(parts)}"


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if value is None:
        return "-"
    if column == "dev":
        return str(Estimate(value, row["dev_interval"]))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
