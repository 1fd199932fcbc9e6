"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import errno
import gc as garbage_collector
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from mergeops import __version__
from mergeops.cli_inspect import inspect
from mergeops.cli_lineage import gc, lineage
from mergeops.cli_promote import approve, controls, history, promote, reject, rollback
from mergeops.cli_recipe import convert, merge
from mergeops.cli_sync import sync
from mergeops.errors import MergeError, MergeopsError
from mergeops.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    QUIET,
    SHOW,
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

    Recipes are Hydra configs: FILE.yaml, recipe=NAME, method=ties, KEY=VALUE, +KEY=VALUE, ~KEY.
    """


cli.add_command(merge)
cli.add_command(convert)
cli.add_command(sync)
cli.add_command(lineage)
cli.add_command(gc)
cli.add_command(promote)
cli.add_command(approve)
cli.add_command(reject)
cli.add_command(rollback)
cli.add_command(history)
cli.add_command(controls)
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
    """Find the mergeable checkpoints of an experiment, whatever became of the runs.

    Each becomes a LoggedModel, an output of its run; with --register also a version of NAME. No
    run's status, params or metrics change, and no weights are copied.
    """
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
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    help="In place of tracking.experiment; may be given several times.",
)
@click.option("--part", type=click.Choice(["dev", "confirm"]), default="dev", show_default=True)
@click.option("--reference", help="Compare with this one; default: the best parent.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write one HTML page that sorts and filters, and needs no network.",
)
@options(CONFIG_DIR, AS_JSON)
def compare(
    overrides: tuple[str, ...],
    experiments: tuple[str, ...],
    part: str,
    reference: str | None,
    html: Path | None,
    config_dir: Path | None,
    as_json: bool,
) -> None:
    """Leaderboard of the parents and merges of experiments, with paired differences."""
    from mergeops import compose
    from mergeops.compare import compare_experiments
    from mergeops.report import terminal, web_page

    if html is not None:
        web_page.check_target(html)
    tracking = compose.compose(overrides, config_dir=config_dir).tracking
    compared = compare_experiments(tracking, experiments, part, reference)
    if html is not None:
        web_page.write_page(compared, html)
    if as_json:
        return print_result(compared.to_dict(), True)
    terminal.print_compared(compared, html)


@cli.command()
@click.argument("where", metavar="DIR|URI")
@options(AS_JSON, QUIET)
def verify(where: str, as_json: bool, quiet: bool) -> None:
    """Rehash a merged checkpoint and name every file that differs from its manifest."""
    from mergeops.checkpoint.verify import verify as rehash
    from mergeops.sources import locate

    progress = Progress(quiet=quiet)
    with progress.bar(f"fetching {where}", is_bytes=True) as tick:
        path = locate(where, progress=lambda _what, done, total: tick(done, total))
    with progress.bar(f"hashing {path.name}", is_bytes=True) as tick:
        problems = rehash(path, tick)
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


class _Stopped(KeyboardInterrupt):
    """SIGTERM, by which schedulers and containers end a process: as Ctrl-C to all that clean up."""


def _stop(number: int, frame: FrameType | None) -> None:
    # A second one does not wait.
    signal.signal(number, signal.SIG_DFL)
    raise _Stopped


def main() -> None:
    """Entry point: every expected error is one line on stderr and the exit code of its class."""
    # Libraries make half a million objects that stay. Python would look through them for garbage
    # many times while they load, and once more before it ends: half a second of a small merge.
    garbage_collector.set_threshold(50_000, 20, 20)
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except MergeopsError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        # click raises Abort from the other.
        is_stopped = isinstance(error.__cause__ or error, _Stopped)
        what, number = ("stopped", signal.SIGTERM) if is_stopped else ("interrupted", signal.SIGINT)
        _fail(f"{what}; run the same command again to go on", 128 + number)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        # Errors of files have a name, and are caught where they arise.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename:
            raise
        why = f"what is printed cannot be written: {error.strerror}; the work before it is done"
        _fail(why, MergeError.exit_code)
    finally:
        # What is left is the interpreter's own end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        garbage_collector.freeze()


def _fail(message: str, code: int) -> None:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
    click.echo(f"mergeops: error: {message}", err=True)
    sys.exit(code)
