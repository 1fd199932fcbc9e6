"""The command that begins: a config directory with names, tasks and a first recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mergeops import adoption
from mergeops.adoption import Adoption, write_recipe
from mergeops.cli.console import console, escape
from mergeops.cli.options import AS_JSON, PATH, Call, options, pairs, progress_options
from mergeops.errors import ConfigError
from mergeops.recipe import FirstConf, TrackingSpec, tasks_in, write_first_conf
from mergeops.store import connect_to_read

RECIPE = "runs"


@click.command()
@click.option("--experiment", help="The MLflow experiment of your training runs; default: asked.")
@click.option("--name", help="The registered model that merges become versions of; default: asked.")
@click.option(
    "--dir", "folder", type=PATH, default="conf", show_default=True, help="Where to write."
)
@click.option(
    "--tasks",
    "tasks_dir",
    type=PATH,
    default="tasks",
    show_default=True,
    help="Directory of your own lm-eval task YAML files, or texts.",
)
@click.option("--path-map", multiple=True, metavar="OLD=NEW", help="Moved storage.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@options(AS_JSON, progress_options)
def init(
    call: Call,
    experiment: str | None,
    name: str | None,
    folder: Path,
    tasks_dir: Path,
    path_map: tuple[str, ...],
    force: bool,
) -> None:
    """Write a config directory: experiment, registered model, tasks, and a first recipe.

    The recipe's sources are what `mergeops adopt` finds in the experiment of your training runs.
    """
    experiment = experiment or _choose_experiment()
    name = name or _ask("registered model that merges become versions of", f"{experiment}-merged")
    # Refused here as any recipe with it would be.
    TrackingSpec(registered_model=name)
    tasks = tasks_in(tasks_dir) if tasks_dir.is_dir() else ()
    conf = FirstConf(f"{experiment}-merges", name, tasks, tasks_dir if tasks else None)
    moved = pairs("--path-map", path_map)
    with call.progress.bar("reading runs") as tick:
        adopted = adoption.adopt(experiment, path_map=moved, progress=tick)
    recipe = folder / "recipe" / f"{RECIPE}.yaml"
    sources = write_recipe(adopted.found, recipe, path_map=moved, force=force)
    written = write_first_conf(conf, folder, force=force)
    result = {
        "experiment": conf.experiment,
        "registered_model": name,
        "tasks": list(tasks),
        "sources": len(sources),
        "files": [str(path) for path in (*written, recipe)],
    }
    call.show(result, lambda _: print_init(conf, adopted, written, recipe, len(sources)))


def print_init(
    conf: FirstConf, adopted: Adoption, written: list[Path], recipe: Path, sources: int
) -> None:
    """What was written, and the command that comes next."""
    out = console()
    tracking, evaluate = written
    found = ", ".join(conf.tasks) or "none found; name some in it before you merge"
    lines = [
        (tracking, f"experiment {conf.experiment}, registered model {conf.registered_model}"),
        (evaluate, f"tasks: {found}"),
        (recipe, f"{sources} of {len(adopted.found)} runs of {adopted.experiment} as sources"),
    ]
    width = max(len(str(path)) for path, _ in lines)
    for path, about in lines:
        out.print(escape(f"{path!s:<{width}}  {about}"), soft_wrap=True)
    directory = recipe.parent.parent
    out.print(
        escape(
            f"next: mergeops inspect --config-dir {directory} recipe={RECIPE}, then mergeops run "
            f"--config-dir {directory} recipe={RECIPE}"
        ),
        style="dim",
        soft_wrap=True,
    )


def _choose_experiment() -> str:
    found = connect_to_read(TrackingSpec()).client.search_experiments(max_results=100)
    names = [experiment.name for experiment in found if experiment.name != "Default"]
    if not names:
        raise ConfigError("the tracking store has no experiment; train with MLflow first")
    if len(names) == 1:
        return names[0]
    return _ask(f"experiment of your training runs ({', '.join(names)})", None, "--experiment")


def _ask(what: str, usual: str | None, option: str = "--name") -> str:
    """Ask on a terminal; elsewhere take what is usual, or refuse."""
    if sys.stdin.isatty():
        return str(click.prompt(what, default=usual, err=True))
    if usual is None:
        raise ConfigError(f"{option} is missing: {what}")
    return usual
