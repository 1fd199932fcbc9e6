"""The commands that merge, score and track: run and search."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from mergeops import pipeline
from mergeops.cli.console import console, escape, table
from mergeops.cli.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    SHOW,
    Call,
    options,
    progress_options,
    show_recipe,
)
from mergeops.pipeline import best_of, joint_leaderboard
from mergeops.recipe import Recipe, TrackingSpec, compose, expand_sweep
from mergeops.redact import redact
from mergeops.report import BETTER, WORSE, board_table
from mergeops.scores import Estimate, Scores, estimate
from mergeops.search import (
    SearchResult,
    completed,
    forecast,
    forecast_search,
    parameter_types,
    run_search,
    with_strategy,
)
from mergeops.store import connect_to_server
from mergeops.tools import Tools
from mergeops.tracking import Trial

if TYPE_CHECKING:
    from rich.table import Table

DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Only say what it will take: merges, answers, bytes, time."
)


@click.command()
@OVERRIDES
@click.option("-m", "--multirun", is_flag=True, help="Run every combination of listed values.")
@DRY_RUN
@options(CONFIG_DIR, SHOW, AS_JSON, progress_options)
def run(call: Call, multirun: bool, dry_run: bool) -> None:
    """One tracked trial: find the sources, merge, score merge and parents, log, register."""
    jobs = expand_sweep(call.overrides) if multirun else [list(call.overrides)]
    strategies = parameter_types()
    recipes = [compose(job, config_dir=call.config_dir, strategies=strategies) for job in jobs]
    if call.cfg:
        for recipe in recipes:
            show_recipe(recipe)
        return
    if dry_run:
        tracking = connect_to_server(recipes[0].tracking)
        tools = Tools(recipes[0], call.progress, tracking=tracking)
        expected = forecast(recipes[0], tools, len(recipes))
        return call.show(expected, str(expected))
    trials = pipeline.run_all(recipes, call.progress, name=" ".join(call.overrides))
    shown = trials if multirun else trials[0]
    call.show(shown, lambda _: print_trials(call, recipes, trials))


@click.command()
@OVERRIDES
@DRY_RUN
@options(CONFIG_DIR, SHOW, AS_JSON, progress_options)
def search(call: Call, dry_run: bool) -> None:
    """Many trials, the best chosen on the dev part: strategy=greedy_soup, optuna, ..."""
    words = with_strategy(call.overrides)
    recipe = compose(words, config_dir=call.config_dir, strategies=parameter_types())
    if call.cfg:
        return show_recipe(completed(recipe))
    if dry_run:
        expected = forecast_search(recipe, call.progress)
        unknown = f"{recipe.search.strategy} does not say beforehand how many merges it makes"
        return call.show(expected, str(expected) if expected else unknown)
    result = run_search(recipe, call.progress)
    call.show(result, lambda result: print_search(call, recipe, result))


def print_trials(call: Call, recipes: Sequence[Recipe], trials: Sequence[Trial]) -> None:
    """What was merged, where it is, how it stands among its parents, and what to do next."""
    out = console()
    if any(trial.scores is not None for trial in trials):
        out.print(board_table(joint_leaderboard(trials)))
        _print_direction(next(trial.scores for trial in trials if trial.scores is not None))
    for trial in trials:
        out.print(f"[bold]{escape(trial.name)}[/]")
        if not trial.run_id:
            out.print("  not logged  `mergeops sync` logs it when the server is there")
        else:
            version = f"models:/{trial.registered}" if trial.registered else "not registered"
            out.print(f"  version     {escape(version)}")
            out.print(f"  MLflow run  {trial.run_id}")
        out.print(f"  checkpoint  {escape(str(trial.checkpoint))}", soft_wrap=True)
        for page in trial.links.values():
            out.print(f"  {escape(page)}", style="dim", soft_wrap=True)
        if trial.agreements:
            said = ", ".join(map(str, trial.agreements))
            out.print(
                f"  same next token as  {escape(said)}; how near it is to them, not whether it is "
                "better",
                soft_wrap=True,
            )
    best = best_of(trials)
    if best is not None:
        count = f" of {len(trials)} merges" if len(trials) > 1 else ""
        return _print_standing(call, recipes[trials.index(best)], best, count)
    if all(trial.scores is None for trial in trials):
        asked = recipes[0].tracking.register == "unscored"
        out.print(escape(UNSCORED + ("" if asked else UNREGISTERED)), style="yellow")


UNSCORED = (
    "\nnot scored: evaluate.tasks is empty, so nothing says whether this is better than its "
    "sources. Name tasks, evaluate.tasks=[arc_easy], or a text that no source was trained on, "
    "evaluate.tasks=[held.txt], which is scored in bits per byte. How near it is to its parents, "
    "which is no score, evaluate.agreement=held.txt says."
)
UNREGISTERED = " Unscored merges become no version, but with tracking.register=unscored."


def _print_standing(call: Call, recipe: Recipe, trial: Trial, count: str) -> None:
    """What the numbers say of a merge, and what follows from it."""
    out, standing = console(), trial.standing
    if standing is None:
        return
    colour = {BETTER: "green", WORSE: "red"}.get(standing.outcome, "yellow")
    # The best of several is the lucky one as well.
    chosen = f", the best{count} on these very items" if count else ""
    out.print(f"\n[bold {colour}]{standing.outcome}[/]: {escape(trial.name)}{chosen}")
    for each in standing.against:
        out.print(f"  {escape(str(each))}", soft_wrap=True)
    said = [standing.advice] if standing.advice else []
    if standing.is_ahead and trial.registered:
        name, _, version = trial.registered.rpartition("/")
        words = ["mergeops", "promote", name, "--version", version, *_same_place(call, recipe)]
        said.append(f"{shlex.join(words)} asks the confirm part")
    if said:
        out.print(f"next: {escape('; '.join(said))}", style="dim", soft_wrap=True)


def _same_place(call: Call, recipe: Recipe) -> list[str]:
    """Words that make another command use the same server and experiment."""
    usual = TrackingSpec()
    words = ["--config-dir", str(call.config_dir)] if call.config_dir else []
    for key in ("uri", "registry_uri", "workspace", "experiment"):
        value = getattr(recipe.tracking, key)
        # What holds a password is not printed.
        if value != getattr(usual, key) and redact(value) == value:
            words.append(f"tracking.{key}={value}")
    return words


def print_search(call: Call, recipe: Recipe, result: SearchResult) -> None:
    """The steps of a search, and what it ended with."""
    out, strategy = console(), recipe.search.strategy
    if baselines := result.report.get("baselines"):
        out.print(escape(_against(baselines)))
    if front := result.report.get("front"):
        out.print(_front(front))
    if result.rows:
        columns = [column for column in result.rows[0] if column != "dev_interval"]
        rows = [[_cell(row, column) for column in columns] for row in result.rows]
        out.print(table(columns, rows))
    if result.best is None:
        out.print(
            f"{strategy}: no merge beats the source [bold]{escape(str(result.best_source))}[/] on "
            "dev; it stays the best"
        )
        out.print(
            "next: other sources, other methods (strategy=grid), or `mergeops inspect`, which "
            "shows where they conflict",
            style="dim",
        )
        return
    best = result.best
    shown = estimate(best.scores) if best.scores else "not scored"
    out.print(
        f"{strategy}: the best is [bold]{escape(best.name)}[/], {escape(str(shown))} on dev, "
        f"models:/{escape(best.registered)}"
    )
    _print_direction(best.scores)
    for page in [*result.links.values(), *best.links.values()]:
        out.print(f"  {escape(page)}", style="dim", soft_wrap=True)
    count = len(result.report.get("trials", result.trials))
    _print_standing(call, recipe, best, f" of {count} merges" if count > 1 else "")


def _print_direction(scores: Scores | None) -> None:
    if scores is not None and not scores.higher_is_better:
        console().print("lower scores are better; a difference with + is a gain", style="dim")


def _front(front: Mapping[str, Any]) -> Table:
    """The candidates that nobody beats in every objective; the knee is marked."""
    names = [name for name in front["candidates"][0] if name != "candidate"]
    rows = []
    for row in front["candidates"]:
        mark = "knee" if row["candidate"] == front["knee"] else ""
        scores = [str(Estimate(row[name]["score"], row[name]["interval"])) for name in names]
        rows.append([row["candidate"], *scores, mark])
    return table(["front", *names, ""], rows)


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
