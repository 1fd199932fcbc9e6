"""The page: queue, proposals, leaderboard, watches and workers, as HTML that the server makes."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from functools import partial
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from jinja2 import Environment, FileSystemLoader
from markupsafe import escape

from mergeops.errors import MergeopsError
from mergeops.service.boards import ShownBoard
from mergeops.service.queued_jobs import ENDED, STATES
from mergeops.service.web.api_jobs import KEEP_ALIVE_S, State
from mergeops.service.web.served import Served, Service, check_room, strict, watching
from mergeops.version import __version__
from mergeops.watching import digest_text

router = APIRouter(include_in_schema=False, dependencies=[Depends(strict)])
LINES_SHOWN = 500
JOBS_SHOWN = 50


def _age(at: datetime.datetime | None) -> str:
    """How long ago, in one unit."""
    if at is None:
        return ""
    return _span((datetime.datetime.now(datetime.UTC) - at).total_seconds()) + " ago"


def _span(seconds: float | None) -> str:
    """E.g. ``42 s``, ``3 min``, ``5 h``, ``2 d``."""
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _signed(value: Any) -> str:
    return "" if value is None else f"{value:+.3f}"


def _environment() -> Environment:
    folder = resources.files("mergeops.service.web").joinpath("templates")
    made = Environment(loader=FileSystemLoader(str(folder)), autoescape=True, auto_reload=False)
    made.filters |= {"age": _age, "span": _span, "signed": _signed}
    made.globals |= {"version": __version__, "states": STATES, "ended": ENDED}
    return made


TEMPLATES = _environment()


def _page(request: Request, template: str, **values: Any) -> HTMLResponse:
    text = TEMPLATES.get_template(template).render(
        csrf=request.scope["mergeops.csrf"],
        caller=request.scope["mergeops.caller"],
        path=request.url.path,
        **values,
    )
    return HTMLResponse(text)


@router.get("/")
async def queue_page(
    request: Request,
    service: Served,
    state: Annotated[list[State], Query()] = [],  # noqa: B006 - FastAPI copies it
    before: str | None = None,
) -> HTMLResponse:
    """The queue, newest first."""
    last = await service.queue.get(before) if before else None
    jobs = await service.queue.newest(states=list(state), limit=JOBS_SHOWN, before=last)
    counts = await service.queue.counts()
    workers = await service.queue.workers()
    more = jobs[-1].id if len(jobs) == JOBS_SHOWN else None
    return _page(
        request,
        "queue.html",
        jobs=jobs,
        counts=counts,
        chosen=list(state),
        workers=workers,
        more=more,
    )


@router.get("/jobs/{job_id}")
async def job_page(request: Request, job_id: str, service: Served) -> HTMLResponse:
    """A job: what it is, how far it is, what it says."""
    job = await service.queue.get(job_id)
    lines = await service.queue.last_logs(job.id, LINES_SHOWN)
    after = lines[-1].n if lines else 0
    return _page(request, "job.html", job=job, lines=lines, after=after, links=_links(job.result))


@router.get("/jobs/{job_id}/stream")
async def job_stream(
    job_id: str, service: Served, after: Annotated[int, Query(ge=0)] = 0
) -> StreamingResponse:
    """New lines of a job as HTML, and ``change`` when its state or progress changes."""
    check_room(service)
    job = await service.queue.get(job_id)
    return StreamingResponse(_job_events(service, job.id, after), media_type="text/event-stream")


@router.get("/stream")
async def stream(service: Served) -> StreamingResponse:
    """``change`` when any job changes, at most each second."""
    check_room(service)
    return StreamingResponse(_queue_events(service), media_type="text/event-stream")


@router.get("/proposals")
async def proposals_page(request: Request, service: Served) -> HTMLResponse:
    """What waits for a decision, with the gate's table."""
    waiting, problem = await _asked(service.registry.proposals)
    return _page(request, "proposals.html", waiting=waiting or [], problem=problem)


@router.get("/proposals/{model}/{version}/plot.png")
async def plot(model: str, version: int, service: Served) -> Response:
    """The scores of a proposed version among its parents."""
    image = await run_in_threadpool(service.registry.plot, model, version)
    return Response(image, media_type="image/png")


@router.get("/leaderboard")
async def leaderboard_page(
    request: Request,
    service: Served,
    sort: str = "rank",
    kind: str = "",
    name: str = "",
    experiment: str = "",
) -> HTMLResponse:
    """Parents and merges of an experiment, best first."""
    found, problem = await _asked(partial(service.registry.leaderboard, experiment))
    shown = found or ShownBoard(problem=problem)
    compared = shown.compared
    marks = [word.partition("tracking.experiment=") for word in await _words(service)]
    experiments = sorted({after for before, mark, after in marks if mark and not before})
    rows = list(compared.board.rows) if compared else []
    kinds = sorted({row.kind for row in rows})
    rows = [row for row in rows if kind in ("", row.kind) and name.lower() in row.name.lower()]
    if sort == "name":
        rows.sort(key=lambda row: row.name.lower())
    elif compared and sort in compared.board.tasks:
        rows.sort(key=lambda row: row.tasks[sort].value, reverse=True)
    return _page(
        request,
        "leaderboard.html",
        board=compared.board if compared else None,
        rows=rows,
        kinds=kinds,
        sort=sort,
        kind=kind,
        name=name,
        experiment=experiment,
        experiments=experiments,
        shown=shown,
    )


@router.get("/watches")
async def watches_page(request: Request, service: Served) -> HTMLResponse:
    """All watches."""
    return _page(request, "watches.html", watches=await service.watches.all())


@router.get("/watches/{name}")
async def watch_page(request: Request, name: str, service: Served) -> HTMLResponse:
    """The digest of one watch."""
    watch = await service.watches.get(name)
    runs = sorted(watch.state.runs.values(), key=lambda run: (run.round, run.at), reverse=True)
    text = digest_text(watch.spec, watch.state)
    return _page(request, "watch.html", watch=watch, runs=runs[:200], text=text)


@router.get("/workers")
async def workers_page(request: Request, service: Served) -> HTMLResponse:
    """Who works."""
    return _page(request, "workers.html", workers=await service.queue.workers())


async def _words(service: Service) -> list[str]:
    """The overrides of all watches."""
    return [word for watch in await service.watches.all() for word in watch.spec.overrides]


async def _asked(ask: Any) -> tuple[Any, str]:
    """What MLflow answers, or why it does not: the page is there all the same."""
    try:
        return await run_in_threadpool(ask), ""
    except MergeopsError as error:
        return None, str(error)


def _links(result: Any) -> dict[str, str]:
    """The pages of MLflow that a result names."""
    found: dict[str, str] = {}
    if isinstance(result, dict):
        for key, value in (result.get("links") or {}).items():
            if isinstance(value, str) and value.startswith(("http://", "https://")):
                found[str(key)] = value
        for inner in ("best", "trial"):
            found |= _links(result.get(inner))
    return found


async def _job_events(service: Service, job_id: str, after: int) -> AsyncIterator[str]:
    seen, told = 0, None
    async with watching(service):
        while True:
            try:
                job = await service.queue.get(job_id)
                lines = await service.queue.logs(job_id, after=after)
            except Exception:
                yield ": waiting\n\n"
                await asyncio.sleep(2)
                continue
            if lines:
                after = lines[-1].n
                shown = "".join(
                    f"data: <span>{escape(_flat(line.line))}</span>\n" for line in lines
                )
                yield f"event: log\n{shown}\n"
            now = (job.state, job.attempt, job.progress)
            if told is not None and now != told:
                yield "event: change\ndata: 1\n\n"
            told = now
            if job.state in ENDED:
                yield "event: end\ndata: 1\n\n"
                return
            before = seen
            seen = await service.changes.wait(seen, job_id, KEEP_ALIVE_S)
            if seen == before:
                yield ": alive\n\n"


async def _queue_events(service: Service) -> AsyncIterator[str]:
    seen = await service.changes.wait(-1, None, 0.0)
    async with watching(service):
        while True:
            before = seen
            seen = await service.changes.wait(seen, None, KEEP_ALIVE_S)
            if seen == before:
                yield ": alive\n\n"
                continue
            yield "event: change\ndata: 1\n\n"
            # Many changes at once are one.
            await asyncio.sleep(1)


def _flat(line: str) -> str:
    return line.replace("\r", " ").replace("\n", " ")
