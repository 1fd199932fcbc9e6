"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mergeops import __version__
from mergeops.errors import ConfigError, MergeopsError
from mergeops.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])

OVERRIDES = click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[OVERRIDES]...")
CONFIG_DIR = click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    help="Your own config directory; its files win over the packaged ones.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
SHOW = click.option("--cfg", type=click.Choice(["job"]), help="Print the recipe and do nothing.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error.")


def options(*wanted: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, shown in the order given."""

    def add(command: Command) -> Command:
        for option in reversed((*wanted, DEBUG)):
            command = option(command)
        return command

    return add


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergeops")
def cli() -> None:
    """Merge the fine-tuning runs you already paid for into a better model.

    Recipes are Hydra configs: KEY=VALUE, +KEY=VALUE, ~KEY, method=ties, recipe=NAME.
    """


@cli.command()
@click.argument("recipe_file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", type=int, help="Seed of random methods, in place of the recipe's.")
@options(CONFIG_DIR, SHOW, AS_JSON, QUIET)
def merge(
    recipe_file: Path,
    out: Path,
    overrides: tuple[str, ...],
    device: str,
    seed: int | None,
    config_dir: Path | None,
    cfg: str | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Merge what RECIPE_FILE says into the directory OUT; nothing is scored or tracked."""
    from mergeops import compose, pipeline

    extra = [f"output.device={device}", *([f"seed={seed}"] if seed is not None else [])]
    recipe = compose.compose([*overrides, *extra], config_dir=config_dir, recipe_file=recipe_file)
    if cfg:
        return _show(recipe)
    plan = pipeline.merge_only(recipe, out, Progress(quiet=quiet))
    result = {"checkpoint": str(out), "plan_digest": plan.digest}
    _print(result if as_json else f"merged into {out} (plan {plan.digest[:12]})", as_json)


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
    debug: bool,
) -> None:
    """One tracked trial: find the sources, merge, score merge and parents, log, register."""
    from mergeops import compose, pipeline

    jobs = compose.expand_sweep(overrides) if multirun else [list(overrides)]
    recipes = [compose.compose(job, config_dir=config_dir) for job in jobs]
    if cfg:
        for recipe in recipes:
            _show(recipe)
        return
    trials = pipeline.run_all(recipes, Progress(quiet=quiet), name=" ".join(overrides))
    if as_json:
        plain = [pipeline.plain(trial) for trial in trials]
        return _print(plain if multirun else plain[0], True)
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
    debug: bool,
) -> None:
    """Many trials, the best chosen on the dev part: strategy=greedy_soup or strategy=grid."""
    from mergeops import compose, pipeline

    spelled = [
        f"search={o.removeprefix('strategy=')}" if o.startswith("strategy=") else o
        for o in overrides
    ]
    recipe = compose.compose(spelled, config_dir=config_dir)
    if cfg:
        return _show(recipe)
    found = pipeline.search(recipe, Progress(quiet=quiet))
    if as_json:
        return _print(pipeline.plain_search(found), True)
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
    debug: bool,
) -> None:
    """Find the mergeable checkpoints of an experiment, whatever became of the runs."""
    from mergeops import pipeline
    from mergeops.report import terminal

    adopted = pipeline.adopt(
        experiment,
        Progress(quiet=quiet),
        filter_string=filter_string,
        register=register,
        dry_run=dry_run,
        path_map=_pairs("--path-map", path_map),
        tracking_uri=tracking_uri,
        recipe_path=recipe_path,
        force=force,
    )
    if as_json:
        return _print(adopted.rows(), True)
    terminal.print_adopted(adopted, recipe_path)


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
    debug: bool,
) -> None:
    """Leaderboard of the parents and merges of an experiment, with paired differences."""
    from mergeops import compose, pipeline

    extra = [f"tracking.experiment={json.dumps(experiment)}"] if experiment else []
    recipe = compose.compose([*overrides, *extra], config_dir=config_dir)
    board = pipeline.compare(recipe.tracking, part, reference)
    if as_json:
        return _print(board.to_dict(), True)
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
    debug: bool,
) -> None:
    """Move NAME@champion to a merge, if it is better on the confirm part."""
    from mergeops import compose, pipeline

    name, overrides = _name_first(name, overrides)
    recipe = compose.compose(overrides, config_dir=config_dir)
    outcome = pipeline.promote(
        recipe,
        name or recipe.tracking.registered_model,
        Progress(quiet=quiet),
        version=version,
        expect_current=expect_current,
        force=force,
        reason=reason,
        overrides=overrides,
    )
    if as_json:
        _print(outcome.to_dict(), True)
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
    debug: bool,
) -> None:
    """Move NAME@champion back to NAME@previous."""
    from mergeops import compose, pipeline

    name, overrides = _name_first(name, overrides)
    recipe = compose.compose(overrides, config_dir=config_dir)
    change = pipeline.rollback(recipe.tracking, name or recipe.tracking.registered_model)
    text = f"{change['name']}@champion is version {change['to']} again (was {change['from']})"
    _print(change if as_json else text, as_json)


@cli.command()
@click.argument("where", metavar="DIR|URI")
@options(AS_JSON)
def verify(where: str, as_json: bool, debug: bool) -> None:
    """Rehash a merged checkpoint and name every file that differs from its manifest."""
    from mergeops import pipeline

    path, problems = pipeline.verify(where)
    if as_json:
        _print({"checkpoint": str(path), "problems": problems}, True)
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
def methods(name: str | None, as_json: bool, debug: bool) -> None:
    """List the merge methods, or explain one with its parameters and paper."""
    from mergeops.report import methods as page

    described = page.describe(name)
    if as_json:
        return _print(described, True)
    page.print_page(described)


@cli.command()
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def doctor(overrides: tuple[str, ...], config_dir: Path | None, as_json: bool, debug: bool) -> None:
    """Check versions, devices, the tracking server and disk space, and say what to fix."""
    from mergeops import compose
    from mergeops import doctor as checks

    results = checks.examine(compose.compose(overrides, config_dir=config_dir))
    if as_json:
        _print([check.to_dict() for check in results], True)
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


def _name_first(name: str | None, overrides: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """NAME may be left out, so the first word may be an override already."""
    if name is not None and ("=" in name or name.startswith("~")):
        return None, (name, *overrides)
    return name, overrides


def _pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise ConfigError(f"{option} is {value!r}; write OLD=NEW")
    return dict(value.split("=", 1) for value in values)


def _show(recipe: Any) -> None:
    import yaml

    click.echo(yaml.safe_dump(recipe.to_dict(), sort_keys=False), nl=False)


def _print(result: Any, as_json: bool) -> None:
    click.echo(json.dumps(result, indent=2) if as_json else result)
