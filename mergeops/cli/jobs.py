"""The commands that talk to a service: submit and jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeops.cli.console import console, echo, escape, table
from mergeops.cli.options import AS_JSON, DEBUG, PATH, print_json
from mergeops.cli.serve import STATE
from mergeops.client import ServiceClient, connect
from mergeops.errors import ServiceError

SERVER = click.option(
    "--state", type=PATH, default=STATE, show_default=True, help="Where serve keeps its token."
)
ID = click.argument("job_id", metavar="ID")
EXIT_BY_STATE = {"succeeded": 0, "cancelled": 143}
COLOURS = {"succeeded": "green", "failed": "red", "running": "yellow", "cancelling": "yellow"}


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--tags", default="", metavar="TAG,...", help="What the worker must have.")
@click.option("--priority", default=0, show_default=True, type=click.IntRange(-100, 100))
@click.option("--wait", is_flag=True, help="Follow the job, and end with its exit code.")
@SERVER
@AS_JSON
@DEBUG
def submit(
    command: str,
    words: tuple[str, ...],
    tags: str,
    priority: int,
    wait: bool,
    state: Path,
    as_json: bool,
) -> None:
    """Queue COMMAND with its arguments as a job of the service.

    E.g. mergeops submit --wait search recipe=runs. The same work again is the same job. Options of
    submit stand before COMMAND.
    """
    service = connect(state)
    wanted = [tag for tag in tags.split(",") if tag]
    job = service.submit(command, words, tags=wanted, priority=priority)
    if wait:
        _follow(service, job["id"])
        job = service.job(job["id"])
    if as_json:
        print_json(job)
    elif wait:
        echo(f"{job['id']} {job['state']}" + (f": {job['error']}" if job["error"] else ""))
    else:
        known = ", known before" if job["was_there"] else ""
        echo(f"{job['id']} {job['state']}{known}; mergeops jobs logs {job['id'][:8]} --follow")
    if wait:
        _end_as(job)


@click.group()
def jobs() -> None:
    """The jobs of the service: list, show, logs, cancel, retry."""


@jobs.command("list")
@click.option("--state-is", "states", multiple=True, metavar="STATE", help="Only these.")
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1, 1000))
@SERVER
@AS_JSON
@DEBUG
def list_jobs(states: tuple[str, ...], limit: int, state: Path, as_json: bool) -> None:
    """The newest jobs first."""
    found = connect(state).jobs(states=states, limit=limit)
    if as_json:
        return print_json(found)
    if not found:
        return echo("no jobs" + (f" that are {', '.join(states)}" if states else " yet"))
    rows = [(job["id"][:8], job["state"], _at(job), job["title"]) for job in found]
    console().print(table(("id", "state", "progress", "command"), rows))


@jobs.command("show")
@ID
@SERVER
@AS_JSON
@DEBUG
def show_job(job_id: str, state: Path, as_json: bool) -> None:
    """What a job is, and what came of it."""
    job = connect(state).job(job_id)
    if as_json:
        return print_json(job)
    out = console()
    colour = COLOURS.get(job["state"], "default")
    out.print(f"[bold]{job['id']}[/] [{colour}]{job['state']}[/]  mergeops {escape(job['title'])}")
    for what, key in (
        *(("submitted", "submitted_at"), ("by", "submitted_by"), ("attempt", "attempt")),
        *(("worker", "worker"), ("started", "started_at"), ("ended", "ended_at")),
        *(("exit code", "exit_code"), ("error", "error")),
    ):
        if job[key] not in (None, ""):
            out.print(f"  {what:<10} {escape(str(job[key]))}", soft_wrap=True)
    if not job["ended"] and (at := _at(job)):
        out.print(f"  {'progress':<10} {escape(at)}")
    if job["spent_s"]:
        out.print(f"  {'cost':<10} {job['spent_s']:.0f} s")


@jobs.command()
@ID
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@SERVER
@DEBUG
def logs(job_id: str, follow: bool, state: Path) -> None:
    """What a job wrote."""
    service = connect(state)
    job = service.job(job_id)
    if follow:
        return _follow(service, job["id"])
    for line in service.logs(job["id"]):
        echo(line["line"])


@jobs.command()
@ID
@SERVER
@AS_JSON
@DEBUG
def cancel(job_id: str, state: Path, as_json: bool) -> None:
    """Take a waiting job back, or end a running one by SIGTERM."""
    job = connect(state).cancel(job_id)
    print_json(job) if as_json else echo(f"{job['id']} {job['state']}")


@jobs.command()
@ID
@SERVER
@AS_JSON
@DEBUG
def retry(job_id: str, state: Path, as_json: bool) -> None:
    """Queue a job again that failed or was cancelled; it goes on where it was."""
    job = connect(state).retry(job_id)
    print_json(job) if as_json else echo(f"{job['id']} {job['state']}")


def _follow(service: ServiceClient, job_id: str) -> None:
    for line in service.follow(job_id):
        echo(line, err=True)


def _at(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if job["ended"] or not progress:
        return job["error"] or ""
    share = f" {job['share']:.0%}" if job["share"] is not None else ""
    return f"{progress.get('task', '')}{share}"


def _end_as(job: dict[str, Any]) -> None:
    """End with the job's own exit code."""
    code = EXIT_BY_STATE.get(job["state"], job["exit_code"] or ServiceError.exit_code)
    if code:
        raise SystemExit(code if code > 0 else 128 - code)
