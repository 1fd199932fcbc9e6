"""Jobs, workers, health and metrics: /api/v1."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from mergeops.service.allowed import checked_request
from mergeops.service.operator_config import OPERATOR
from mergeops.service.queued_jobs import ENDED, STATES, QueuedJob
from mergeops.service.web.served import (
    Asking,
    Served,
    Service,
    check_room,
    needs,
    strict,
    watching,
)
from mergeops.version import __version__

router = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)])
State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
KEEP_ALIVE_S = 15.0
LINES_AT_ONCE = 1000


class Submission(BaseModel):
    """A command as a job."""

    model_config = ConfigDict(extra="forbid", strict=True)
    command: str = Field(max_length=60, examples=["search"])
    words: list[str] = Field(default=[], max_length=500, examples=[["recipe=runs", "method=ties"]])
    tags: list[str] = Field(default=[], max_length=6)
    priority: int = Field(default=0, ge=-100, le=100)


def job_dict(job: QueuedJob) -> dict[str, Any]:
    """A job as the API gives it."""
    return job.to_dict() | {"title": job.title, "share": job.share, "ended": job.state in ENDED}


@router.post("/jobs", status_code=201, dependencies=[needs(OPERATOR)])
async def submit(
    body: Submission, service: Served, caller: Asking, response: Response
) -> dict[str, Any]:
    """Queue a command. The same work again is the same job, and the status is 200 then."""
    request = await run_in_threadpool(
        checked_request,
        body.command,
        body.words,
        service.config,
        service.directory,
        tags=body.tags,
        priority=body.priority,
    )
    job = await service.queue.submit(request, caller.name)
    response.status_code = 200 if job.was_there else 201
    return job_dict(job)


@router.get("/jobs")
async def list_jobs(
    service: Served,
    state: Annotated[list[State], Query()] = [],  # noqa: B006 - FastAPI copies it
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: str | None = None,
) -> dict[str, Any]:
    """The newest jobs first; ``before`` is the last job of the page before."""
    last = await service.queue.get(before) if before else None
    jobs = await service.queue.newest(states=list(state), limit=limit, before=last)
    return {"jobs": [job_dict(job) for job in jobs], "counts": await service.queue.counts()}


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, service: Served) -> dict[str, Any]:
    """A job, by its id or the beginning of it."""
    return job_dict(await service.queue.get(job_id))


@router.get("/jobs/{job_id}/logs")
async def get_logs(
    job_id: str,
    service: Served,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = LINES_AT_ONCE,
) -> dict[str, Any]:
    """What a job wrote after the line of that number."""
    job = await service.queue.get(job_id)
    lines = await service.queue.logs(job.id, after=after, limit=limit)
    return {"lines": [line.to_dict() for line in lines]}


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
async def get_events(
    job_id: str,
    service: Served,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Server-sent events: ``log`` (a line), ``job`` (its state and progress), ``end``.

    A reader that comes back sends the id of the last line that it has.
    """
    check_room(service)
    job = await service.queue.get(job_id)
    after = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    return StreamingResponse(_events(service, job, after), media_type="text/event-stream")


@router.delete("/jobs/{job_id}", status_code=202, dependencies=[needs(OPERATOR)])
async def cancel(job_id: str, service: Served) -> dict[str, Any]:
    """Take a waiting job back; a running one gets SIGTERM."""
    return job_dict(await service.queue.cancel(job_id))


@router.post("/jobs/{job_id}/retry", status_code=202, dependencies=[needs(OPERATOR)])
async def retry(job_id: str, service: Served) -> dict[str, Any]:
    """Queue a job again that failed or was cancelled; it goes on where it was."""
    return job_dict(await service.queue.retry(job_id))


@router.get("/workers")
async def list_workers(service: Served) -> dict[str, Any]:
    """Who works, on what, and when it was heard of last."""
    return {"workers": [worker.to_dict() for worker in await service.queue.workers()]}


@router.get("/health")
async def health(service: Served, response: Response) -> dict[str, str]:
    """Whether the server and its database answer; needs no token."""
    try:
        async with service.queue.pool.connection(timeout=3) as connection:
            await connection.execute("SELECT 1")
    except Exception:
        response.status_code = 503
        return {"status": "the database is away"}
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Served) -> str:
    """For Prometheus."""
    counts = await service.queue.counts()
    workers = await service.queue.workers()
    busy = sum(worker.job is not None for worker in workers)
    lines = ["# HELP mergeops_jobs Jobs by state.", "# TYPE mergeops_jobs gauge"]
    lines += [f'mergeops_jobs{{state="{state}"}} {counts.get(state, 0)}' for state in STATES]
    lines += ["# HELP mergeops_workers Workers that are alive.", "# TYPE mergeops_workers gauge"]
    lines += [f'mergeops_workers{{busy="yes"}} {busy}']
    lines += [f'mergeops_workers{{busy="no"}} {len(workers) - busy}']
    lines += ["# HELP mergeops_info Version.", "# TYPE mergeops_info gauge"]
    lines += [f'mergeops_info{{version="{__version__}"}} 1', ""]
    return "\n".join(lines)


async def _events(service: Service, job: QueuedJob, after: int) -> AsyncIterator[str]:
    changes, seen = service.changes, 0
    told: dict[str, Any] | None = None
    async with watching(service):
        while True:
            try:
                job = await service.queue.get(job.id)
                lines = await service.queue.logs(job.id, after=after, limit=LINES_AT_ONCE)
            except Exception:
                # The database is away: the stream waits, as the reader does.
                yield ": waiting\n\n"
                await asyncio.sleep(2)
                continue
            for line in lines:
                after = line.n
                yield event("log", line.to_dict(), line.n)
            now = job_dict(job)
            if now != told:
                told = now
                yield event("job", now)
            if len(lines) == LINES_AT_ONCE:
                continue
            if job.state in ENDED:
                yield event("end", {"state": job.state})
                return
            before = seen
            seen = await changes.wait(seen, job.id, KEEP_ALIVE_S)
            if seen == before:
                yield ": alive\n\n"


def event(name: str, data: Any, number: int | None = None) -> str:
    """One server-sent event; JSON has no line breaks."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n"
