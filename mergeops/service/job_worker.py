"""A worker: takes a job, runs its command, keeps what it says, and takes the next.

While the database is away the command goes on; what it says and what came of it is told when the
database is back.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mergeops.errors import MergeopsError
from mergeops.service.allowed import check_again
from mergeops.service.child import Child, mergeops_command
from mergeops.service.job_commands import COMMANDS
from mergeops.service.operator_config import ServiceConfig
from mergeops.service.queue import Queue, open_queue
from mergeops.service.queued_jobs import CANCELLED, FAILED, SUCCEEDED, QueuedJob, queues_of
from mergeops.service.reaching import reach
from mergeops.service.takeover import HEARTBEAT_S, STALLED_S, Ending, Owner, keep_taking_over

AWAY_EXIT_CODE = 75
"""Of a command for which MLflow was away (EX_TEMPFAIL); all other errors are not begun again."""
TELL_EVERY_S = 0.5
POLL_S = 2.0
RETRY_S = (5.0, 15.0, 45.0, 120.0, 300.0)
"""Before a job is begun again for which MLflow was away."""
T = TypeVar("T")


def executed(job: QueuedJob, config: ServiceConfig) -> list[str]:
    """The command of a job, with the operator's config directory where it takes one."""
    spec = COMMANDS[job.command]
    words = [*job.words, "--json"]
    if spec.is_composed and config.config_dir:
        words += ["--config-dir", config.config_dir]
    return mergeops_command(job.command, words)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker is."""

    database: str
    config: ServiceConfig = field(default_factory=ServiceConfig)
    device: str = "auto"
    tags: tuple[str, ...] = ()
    directory: Path = Path(".")
    """Where commands work; their relative paths are relative to it."""
    stalled_s: float = STALLED_S
    command: Callable[[QueuedJob, ServiceConfig], list[str]] = executed
    """What is executed for a job."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More of it, for the commands."""
    say: Callable[[str], None] = lambda line: None
    """One line of what the worker does."""


async def work(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Work until ``stop`` is set; the job at hand then ends by SIGTERM, and waits again.

    Raises:
        ServiceError: the database cannot be used.
    """
    reaching = asyncio.create_task(reach(settings.database, say=settings.say))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({reaching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not reaching.done():
        reaching.cancel()
        return
    await reaching
    async with open_queue(settings.database, connections=4) as queue:
        name = f"{socket.gethostname()}:{os.getpid()}"
        owner = Owner(queue, name, settings.device, settings.tags)
        worker = _JobWorker(settings, queue, owner, stop)
        sides = [
            asyncio.create_task(worker.listen()),
            asyncio.create_task(keep_taking_over(queue, stalled_s=settings.stalled_s)),
            asyncio.create_task(worker.wake_at_stop()),
        ]
        try:
            await worker.run()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            with suppress(Exception):
                await asyncio.wait_for(owner.leave(), 5)


class _JobWorker:
    def __init__(
        self, settings: WorkerSettings, queue: Queue, owner: Owner, stop: asyncio.Event
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._owner = owner
        self._stop = stop
        self._came = asyncio.Event()
        """Something was queued."""
        self._ends = asyncio.Event()
        """The job at hand was cancelled, or the worker is to stop."""

    async def run(self) -> None:
        beating = asyncio.create_task(self._keep_beating())
        try:
            await self._until_reached(self._owner.beat)
            while not self._stop.is_set():
                self._came.clear()
                job = await self._until_reached(self._owner.fetch)
                if job is not None:
                    await self._do(job)
                    continue
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._came.wait(), POLL_S)
        finally:
            beating.cancel()

    async def listen(self) -> None:
        """Hear of new and cancelled jobs at once; without it they are found by looking."""
        while True:
            with suppress(Exception):
                await self._queue.app.job_manager.listen_for_jobs(
                    on_notification=self._hear, queues=queues_of(self._settings.tags)
                )
            await asyncio.sleep(POLL_S)

    async def wake_at_stop(self) -> None:
        await self._stop.wait()
        self._came.set()
        self._ends.set()

    async def _hear(self, *, channel: str, notification: Mapping[str, Any]) -> None:
        if notification["type"] == "job_inserted":
            self._came.set()
        elif notification["job_id"] == self._owner.owned:
            self._ends.set()

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with suppress(Exception):
                await self._owner.beat()

    async def _do(self, job: QueuedJob) -> None:
        settings = self._settings
        settings.say(f"{job.id} begins: {job.title}")
        try:
            await asyncio.to_thread(
                check_again, job.command, job.words, settings.config, settings.directory
            )
        except MergeopsError as error:
            ending = Ending(FAILED, error.exit_code, str(error))
            await self._until_reached(lambda: self._owner.end(ending))
            return
        child = Child(
            settings.command(job, settings.config),
            self._environment(job),
            str(settings.directory),
        )
        running = asyncio.create_task(child.run())
        why_stopped = await self._attend(job, child, running)
        code = await running
        ending = _ending(job, child, code, why_stopped)
        if why_stopped == "lost":
            settings.say(f"{job.id} was taken over by another worker")
            await self._until_reached(lambda: self._owner.end(ending))
            return
        await self._until_reached(lambda: self._told(job, child))
        await self._until_reached(lambda: self._owner.end(ending))
        settings.say(f"{job.id} {ending.state}" + (f": {ending.error}" if ending.error else ""))

    async def _attend(self, job: QueuedJob, child: Child, running: asyncio.Task[int]) -> str:
        """Tell what the command says until it ends; why it was made to end, or nothing."""
        why = ""
        told: dict[str, Any] | None = None
        beaten = asyncio.get_running_loop().time()
        while not running.done():
            waits = asyncio.create_task(self._ends.wait())
            await asyncio.wait(
                {running, waits}, timeout=TELL_EVERY_S, return_when=asyncio.FIRST_COMPLETED
            )
            waits.cancel()
            try:
                if child.lines or child.progress != told:
                    told = child.progress
                    await asyncio.wait_for(self._told(job, child), HEARTBEAT_S)
                now = asyncio.get_running_loop().time()
                if self._stop.is_set():
                    why = "stopped"
                elif self._ends.is_set() or now - beaten > HEARTBEAT_S:
                    self._ends.clear()
                    beaten = now
                    if not await asyncio.wait_for(self._owner.beat(), HEARTBEAT_S):
                        why = "lost"
                    elif await asyncio.wait_for(self._owner.is_to_cancel(), HEARTBEAT_S):
                        why = "cancelled"
            except Exception:
                # The database is away: the command goes on.
                await asyncio.sleep(TELL_EVERY_S)
            if self._stop.is_set():
                why = why or "stopped"
            if why:
                await child.stop()
                break
        return why

    async def _told(self, job: QueuedJob, child: Child) -> None:
        lines = child.take_lines()
        try:
            await self._owner.tell(job, child.progress, lines)
        except BaseException:
            child.lines = lines + child.lines
            raise

    def _environment(self, job: QueuedJob) -> dict[str, str]:
        more = {"MERGEOPS_PROGRESS": "json", "PYTHONUNBUFFERED": "1"}
        more["MERGEOPS_SUBMITTED_BY"] = job.submitted_by
        more["MERGEOPS_JOB_ATTEMPT"] = str(job.attempt)
        more["MERGEOPS_AWAY_EXIT_CODE"] = str(AWAY_EXIT_CODE)
        settings = self._settings
        more["MERGEOPS_DATABASE"] = settings.database
        if settings.config.config_dir:
            more["MERGEOPS_CONFIG_DIR"] = str(settings.directory / settings.config.config_dir)
        return {**os.environ, **more, **settings.environment, **settings.config.environment}

    async def _until_reached(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the database until it answers."""
        from procrastinate.exceptions import ConnectorException
        from psycopg import Error
        from psycopg_pool import PoolTimeout

        said = False
        while True:
            try:
                return await ask()
            except (Error, PoolTimeout, ConnectorException, OSError) as error:
                if not said:
                    self._settings.say(
                        f"the database is away: {' '.join(str(error).split())[:200]}"
                    )
                said = True
                await asyncio.sleep(1)


def _ending(job: QueuedJob, child: Child, code: int, why_stopped: str) -> Ending:
    if code == 0:
        return Ending(SUCCEEDED, 0, None, child.result)
    error = child.error or _words_of(code)
    if why_stopped == "cancelled":
        return Ending(CANCELLED, code, "cancelled")
    if why_stopped == "stopped":
        return Ending(FAILED, code, "its worker was stopped", retry_in_s=0.0, is_fault=False)
    if code == AWAY_EXIT_CODE:
        wait = RETRY_S[min(job.attempt, len(RETRY_S)) - 1]
        return Ending(FAILED, code, error, child.result, retry_in_s=wait)
    return Ending(FAILED, code, error, child.result)


def _words_of(code: int) -> str:
    if code == -9:
        return "killed by SIGKILL, as the system does when memory is short"
    return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
