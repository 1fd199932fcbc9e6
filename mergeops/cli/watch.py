"""The commands about watches: add, list, remove, report; and run, which the service queues."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from mergeops.cli.console import console, echo, table
from mergeops.cli.jobs import SERVER
from mergeops.cli.options import AS_JSON, DEBUG, PATH, print_json, progress_options
from mergeops.client import connect
from mergeops.progress import Progress
from mergeops.service import Queue, Watches, open_queue
from mergeops.watching import Round, read_watch_file, run_round

NAME = click.argument("name")
T = TypeVar("T")


@click.group()
def watch() -> None:
    """Continuous merging: every training run that ends is tried; what is better is proposed."""


@watch.command()
@click.argument("file", type=PATH)
@SERVER
@AS_JSON
@DEBUG
def add(file: Path, state: Path, as_json: bool) -> None:
    """Add the watch of FILE (YAML), or change the one of its name; what it knows stays."""
    made = connect(state).add_watch(read_watch_file(file))
    if as_json:
        return print_json(made)
    spec = made["config"]
    echo(
        f"{made['name']} looks at {', '.join(spec['experiments'])} every {spec['every_s']:g} s; "
        f"mergeops watch report {made['name']}"
    )


@watch.command("list")
@SERVER
@AS_JSON
@DEBUG
def list_watches(state: Path, as_json: bool) -> None:
    """All watches."""
    found = connect(state).watches()
    if as_json:
        return print_json(found)
    if not found:
        return echo("no watches yet; mergeops watch add FILE")
    columns = ("watch", "experiments", "runs", "waiting", "trials", "proposed", "last round")
    rows = [
        (
            *(one["name"], ", ".join(one["config"]["experiments"]), str(one["runs"])),
            *(str(one["waiting"]), str(one["trials"]), str(one["proposed"]), one["last"]),
        )
        for one in found
    ]
    console().print(table(columns, rows))


@watch.command()
@NAME
@SERVER
@AS_JSON
@DEBUG
def remove(name: str, state: Path, as_json: bool) -> None:
    """Remove a watch; the runs, merges and proposals that it made stay."""
    service = connect(state)
    gone = service.remove_watch(name)
    if as_json:
        print_json(gone)
    elif gone["was_there"]:
        echo(f"{name} is removed; what it made stays")
    else:
        known = ", ".join(one["name"] for one in service.watches()) or "none"
        echo(f"there is no watch {name}, so nothing is removed; watches: {known}")


@watch.command()
@NAME
@SERVER
@AS_JSON
@DEBUG
def report(name: str, state: Path, as_json: bool) -> None:
    """What came in, what each run contributed, what was tried, what it cost, what is proposed."""
    found = connect(state).watch_report(name)
    print_json(found) if as_json else echo(found["text"], nl=False)


@watch.command(hidden=True)
@NAME
@click.option("--round", "number", type=click.IntRange(min=1), required=True)
@click.option("--database", envvar="MERGEOPS_DATABASE", required=True)
@click.option("--attempt", type=int, envvar="MERGEOPS_JOB_ATTEMPT")
@click.option("--config-dir", type=PATH, envvar="MERGEOPS_CONFIG_DIR")
@AS_JSON
@progress_options
@DEBUG
def run(
    name: str,
    number: int,
    database: str,
    attempt: int | None,
    config_dir: Path | None,
    as_json: bool,
    progress_mode: str,
    quiet: bool,
) -> None:
    """One round of a watch: the service queues it."""
    progress = Progress(progress_mode, quiet=quiet)

    def asked(ask: Callable[[Watches], Awaitable[T]]) -> T:
        return asyncio.run(_asked(database, ask, progress))

    found = asked(lambda watches: watches.get(name))
    made: Round = run_round(
        found.spec,
        found.state,
        number,
        save=lambda state: asked(lambda watches: watches.save(name, state, number, attempt)),
        progress=progress,
        config_dir=config_dir,
    )
    print_json(made.to_dict()) if as_json else echo(made.note)


async def _asked(database: str, ask: Callable[[Watches], Awaitable[T]], progress: Progress) -> T:
    queue: Queue
    async with open_queue(database, connections=2, say=progress.step) as queue:
        return await ask(Watches(queue))
