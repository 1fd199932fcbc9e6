"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from mergeops import __version__
from mergeops.cli_inspect import inspect
from mergeops.cli_recipe import convert, merge
from mergeops.errors import MergeopsError
from mergeops.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    QUIET,
    SHOW,
    name_first,
    options,
    pairs,
    print_result,
    show_recipe,
)
from mergeops.progress import Progress


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergeops")
def cli() -> None:
    """Merge the fine-tuning runs you already paid for into a better model.

    Recipes are Hydra configs: KEY=VALUE, +KEY=VALUE, ~KEY, method=ties, recipe=NAME.
    """


cli.add_command(merge)
cli.add_command(convert)
cli.add_command(inspect)


@cli.command()
@OVERRIDES
@click.option("-m", "--multirun", is_flag=True, help="Run every combination of listed values.")
@options(CONFIG_DIR, SHOW, AS_JSON, QUIET)
def run(
    overrides: tuple[str, ...],
    multirun: bool,
    config_dir: Path | None,
    cfg: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """One tracked trial: find the sources, merge, score merge and parents, log, register."""
    from mergeops import compose, pipeline

    jobs = compose.expand_sweep(overrides) if multirun else [list(overrides)]
    recipes = [compose.compose(job, config_dir=config_dir) for job in jobs]
    if cfg:
        for recipe in recipes:
            show_recipe(recipe)
        return
    trials = pipeline.run_all(recipes, Progress(quiet=quiet), name=" ".join(overrides))
    if as_json:
        plain = [trial.to_dict() for trial in trials]
        return print_result(plain if multirun else plain[0], True)
    from mergeops.report import terminal

    terminal.print_trials(trials)


@cli.command()
@OVERRIDES
@options(CONFIG_DIR, SHOW, AS_JSON, QUIET)
def search(
    overrides: tuple[str, ...],
    config_dir: Path | None,
    cfg: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Many trials, the best chosen on the dev part: strategy=greedy_soup or strategy=grid."""
    from mergeops import compose
    from mergeops.search import run_search

    spelled = [
        f"search={o.removeprefix('strategy=')}" if o.startswith("strategy=") else o
        for o in overrides
    ]
    recipe = compose.compose(spelled, config_dir=config_dir)
    if cfg:
        return show_recipe(recipe)
    found = run_search(recipe, Progress(quiet=quiet))
    if as_json:
        return print_result(found.to_dict(), True)
    from mergeops.report import terminal

    terminal.print_search(recipe.search.strategy, found)


@cli.command()
@click.option("--experiment", required=True, help="The MLflow experiment of your training runs.")
@click.option("--filter", "filter_string", help='MLflow filter, e.g. "metrics.eval_loss < 2".')
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    help="Write a recipe of the mergeable runs to this YAML file.",
)
@click.option("--register", metavar="NAME", help="Also register each as a version of NAME.")
@click.option("--dry-run", is_flag=True, help="Only list; write nothing to MLflow.")
@click.option("--path-map", multiple=True, metavar="OLD=NEW", help="Moved storage.")
@click.option("--tracking-uri", help="In place of MLFLOW_TRACKING_URI.")
@click.option("--force", is_flag=True, help="Overwrite the recipe file.")
@options(AS_JSON, QUIET)
def adopt(
    experiment: str,
    filter_string: str | None,
    recipe_path: Path | None,
    register: str | None,
    dry_run: bool,
    path_map: tuple[str, ...],
    tracking_uri: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the mergeable checkpoints of an experiment, whatever became of the runs."""
    from mergeops.report.adoption_tables import print_adoption
    from mergeops.sources import adopt as adoption
    from mergeops.sources.recipe_file import write_recipe

    moved = pairs("--path-map", path_map)
    with Progress(quiet=quiet).bar("reading runs") as tick:
        adopted = adoption.adopt(
            experiment,
            filter_string=filter_string,
            path_map=moved,
            tracking_uri=tracking_uri,
            register=register,
            dry_run=dry_run,
            progress=tick,
        )
    if recipe_path is not None:
        write_recipe(adopted.found, recipe_path, path_map=moved, force=force)
    if as_json:
        return print_result(adopted.rows(), True)
    print_adoption(adopted, recipe_path)


@cli.command()
@OVERRIDES
@click.option("--experiment", help="In place of tracking.experiment.")
@click.option("--part", type=click.Choice(["dev", "confirm"]), default="dev", show_default=True)
@click.option("--reference", help="Compare with this one; default: the best parent.")
@options(CONFIG_DIR, AS_JSON)
def compare(
    overrides: tuple[str, ...],
    experiment: str | None,
    part: str,
    reference: str | None,
    config_dir: Path | None,
    as_json: bool,
) -> None:
    """Leaderboard of the parents and merges of an experiment, with paired differences."""
    from mergeops import compose
    from mergeops.compare import experiment_leaderboard

    extra = [f"tracking.experiment={json.dumps(experiment)}"] if experiment else []
    recipe = compose.compose([*overrides, *extra], config_dir=config_dir)
    board = experiment_leaderboard(recipe.tracking, part, reference)
    if as_json:
        return print_result(board.to_dict(), True)
    from mergeops.report import terminal

    terminal.print_leaderboard(board)


@cli.command()
@click.argument("name", required=False)
@OVERRIDES
@click.option("--version", type=int, help="Candidate version; default: the best on dev.")
@click.option("--expect-current", type=int, help="Refuse unless this version is @champion now.")
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
    """Move NAME@champion to a merge, if it is better on the confirm part."""
    from mergeops import compose, confirm

    name, overrides = name_first(name, overrides)
    recipe = compose.compose(overrides, config_dir=config_dir)
    outcome = confirm.promote(
        recipe,
        name or recipe.tracking.registered_model,
        Progress(quiet=quiet),
        version=version,
        expect_current=expect_current,
        force=force,
        reason=reason,
    )
    if as_json:
        print_result(outcome.to_dict(), True)
    else:
        from mergeops.report import terminal

        terminal.print_promotion(outcome)
    outcome.raise_if_refused()


@cli.command()
@click.argument("name", required=False)
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def rollback(
    name: str | None,
    overrides: tuple[str, ...],
    config_dir: Path | None,
    as_json: bool,
) -> None:
    """Move NAME@champion back to NAME@previous."""
    from mergeops import compose, confirm

    name, overrides = name_first(name, overrides)
    tracking = compose.compose(overrides, config_dir=config_dir).tracking
    change = confirm.rollback(tracking, name or tracking.registered_model)
    text = f"{change.name}@champion is version {change.to} again (was {change.came_from})"
    print_result(change.to_dict() if as_json else text, as_json)


@cli.command()
@click.argument("where", metavar="DIR|URI")
@options(AS_JSON)
def verify(where: str, as_json: bool) -> None:
    """Rehash a merged checkpoint and name every file that differs from its manifest."""
    from mergeops.checkpoint.manifest import verify as rehash
    from mergeops.sources import locate

    path = locate(where)
    problems = rehash(path)
    if as_json:
        print_result({"checkpoint": str(path), "problems": problems}, True)
    else:
        for problem in problems:
            click.echo(problem)
        if not problems:
            click.echo(f"{path}: every file is as its manifest says")
    if problems:
        sys.exit(4)


@cli.command()
@click.argument("name", required=False)
@options(AS_JSON)
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain one with its parameters and paper."""
    from mergeops.report import methods as page

    described = page.describe(name)
    if as_json:
        return print_result(described, True)
    page.print_page(described)


@cli.command()
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def doctor(overrides: tuple[str, ...], config_dir: Path | None, as_json: bool) -> None:
    """Check versions, devices, the tracking server and disk space, and say what to fix."""
    from mergeops import compose
    from mergeops import doctor as checks

    results = checks.examine(compose.compose(overrides, config_dir=config_dir))
    if as_json:
        print_result([check.to_dict() for check in results], True)
    else:
        checks.print_checks(results)
    if any(check.status == "fail" for check in results):
        sys.exit(1)


def main() -> None:
    """Entry point: every expected error is one line on stderr and the exit code of its class."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except MergeopsError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _fail(message: str, code: int) -> None:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
    click.echo(f"mergeops: error: {message}", err=True)
    sys.exit(code)
