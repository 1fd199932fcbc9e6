"""Who owns a job: begun by one worker, kept by its heartbeat, taken over when that stops.

Every change here is made only where the worker is still the owner, so that one which was thought
dead, and comes back, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.service.queue import Queue, find_job
from mergeops.service.queued_jobs import CANCELLED, FAILED, SUCCEEDED, QueuedJob, queues_of

HEARTBEAT_S = 4.0
STALLED_S = 18.0
"""A worker that is silent for so long has lost its job."""
TAKE_OVER_EVERY_S = 3.0
"""Together with ``STALLED_S``: a dead worker's job waits again after 21 s."""
QUEUE_STATUS = {SUCCEEDED: "succeeded", FAILED: "failed", CANCELLED: "aborted"}
OWNED = "id = %s AND worker_id = %s AND status = 'doing'"


@dataclass(frozen=True)
class Ending:
    """What came of an attempt."""

    state: str
    """succeeded, failed or cancelled."""
    exit_code: int | None = None
    error: str | None = None
    result: Any = None
    retry_in_s: float | None = None
    """Begin again by itself after so long, where tries are left."""
    is_fault: bool = True
    """Whether that uses one of the tries."""


class Owner:
    """A worker's side of the queue: registers, owns one job at a time, and lets go of it.

    Args:
        queue: the queue.
        name: how the worker is called, e.g. HOST:PROCESS.
        device: what its jobs run on.
        tags: what it has, for jobs that need it.
    """

    def __init__(self, queue: Queue, name: str, device: str, tags: tuple[str, ...]) -> None:
        self.queue = queue
        self.name = name
        self.device = device
        self.tags = tags
        self.id: int | None = None
        self.owned: int | None = None
        """The queue's number of the job at hand."""
        self._beating = asyncio.Lock()

    async def beat(self) -> bool:
        """Say that this worker lives; one that was taken for dead registers anew.

        Returns:
            Whether it owns still what it owned.
        """
        async with self._beating, self.queue.pool.connection() as connection:
            cursor = await connection.execute(
                "UPDATE procrastinate_workers SET last_heartbeat = now() WHERE id = %s "
                "RETURNING id",
                (self.id,),
            )
            if await cursor.fetchone() is None:
                before, self.id = self.id, await self._register(connection)
                if before is not None and self.owned is not None:
                    # Nobody has taken the job over yet: it stays this worker's.
                    await connection.execute(
                        "UPDATE procrastinate_jobs SET worker_id = %s WHERE id = %s AND "
                        "status = 'doing' AND worker_id IS NULL",
                        (self.id, self.owned),
                    )
            if self.owned is None:
                return True
            cursor = await connection.execute(
                f"SELECT 1 FROM procrastinate_jobs WHERE {OWNED}".encode(), (self.owned, self.id)
            )
            return await cursor.fetchone() is not None

    async def leave(self) -> None:
        """Say that this worker ends; a job that it still owns waits again."""
        async with self.queue.pool.connection() as connection:
            await connection.execute("DELETE FROM procrastinate_workers WHERE id = %s", (self.id,))
        self.id = None

    async def fetch(self) -> QueuedJob | None:
        """Become the owner of the next job; None where none waits."""
        assert self.id is not None, "a worker beats first"
        async with self.queue.pool.connection() as connection:
            self.owned = await self._given(connection) or await self._taken(connection)
            if self.owned is None:
                return None
            # With the taking, in one transaction: a job that is owned is one that was begun.
            cursor = await connection.execute(
                "UPDATE mergeops_jobs SET attempt = attempt + 1, worker = %s, device = %s, "
                "started_at = now(), ended_at = NULL, exit_code = NULL, error = NULL, "
                "progress = NULL WHERE queue_id = %s RETURNING id",
                (self.name, self.device, self.owned),
            )
            row = await cursor.fetchone()
            assert row is not None, "both rows are made in one transaction"
            return await find_job(connection, str(row[0]))

    async def _given(self, connection: Any) -> int | None:
        """A job that is this worker's already: the database gave it, and its answer was lost."""
        cursor = await connection.execute(
            "SELECT id FROM procrastinate_jobs WHERE worker_id = %s AND status = 'doing' "
            "ORDER BY id LIMIT 1",
            (self.id,),
        )
        row = await cursor.fetchone()
        return int(row[0]) if row is not None else None

    async def _taken(self, connection: Any) -> int | None:
        from procrastinate.sql import queries

        wanted = {"queues": queues_of(self.tags), "worker_id": self.id}
        cursor = await connection.execute(queries["fetch_job"], wanted)
        row = await cursor.fetchone()
        return int(row[0]) if row is not None and row[0] is not None else None

    async def is_to_cancel(self) -> bool:
        """Whether somebody cancelled the job that is owned."""
        async with self.queue.pool.connection() as connection:
            cursor = await connection.execute(
                f"SELECT abort_requested FROM procrastinate_jobs WHERE {OWNED}".encode(),
                (self.owned, self.id),
            )
            row = await cursor.fetchone()
        return bool(row and row[0])

    async def tell(self, job: QueuedJob, progress: Any, lines: Sequence[str]) -> None:
        """Keep what the job said, and how far it is."""
        async with self.queue.pool.connection() as connection:
            if lines:
                async with connection.cursor() as cursor:
                    await cursor.executemany(
                        "INSERT INTO mergeops_log (job_id, attempt, line) VALUES (%s, %s, %s)",
                        [(job.id, job.attempt, line) for line in lines],
                    )
            # Also where only lines came: who watches is told of it.
            await connection.execute(
                "UPDATE mergeops_jobs SET progress = coalesce(%s, progress) WHERE queue_id = %s",
                (_jsonb(progress), self.owned),
            )

    async def end(self, ending: Ending) -> bool:
        """Let go of the job, and keep what came of it.

        Returns:
            Whether it was still this worker's; where not, nothing is kept.
        """
        async with self.queue.pool.connection() as connection:
            cursor = await connection.execute(
                f"SELECT abort_requested FROM procrastinate_jobs WHERE {OWNED} FOR UPDATE".encode(),
                (self.owned, self.id),
            )
            row = await cursor.fetchone()
            if row is None:
                self.owned = None
                return False
            await connection.execute(
                "UPDATE mergeops_jobs SET ended_at = now(), exit_code = %s, error = %s, "
                "result = %s, spent_s = spent_s + extract(epoch FROM now() - started_at), "
                "progress = CASE WHEN %s THEN NULL ELSE progress END WHERE queue_id = %s",
                (
                    *(ending.exit_code, ending.error, _jsonb(ending.result)),
                    *(ending.state == SUCCEEDED, self.owned),
                ),
            )
            is_cancelled = row[0] and ending.state != SUCCEEDED
            if await _is_begun_again(connection, self.owned, ending) and not is_cancelled:
                await connection.execute(
                    "SELECT procrastinate_retry_job_v2(%s, now() + make_interval(secs => %s), "
                    "NULL, NULL, NULL)",
                    (self.owned, ending.retry_in_s),
                )
            else:
                await connection.execute(
                    "SELECT procrastinate_finish_job_v1(%s, %s, false)",
                    (self.owned, QUEUE_STATUS[CANCELLED if is_cancelled else ending.state]),
                )
        self.owned = None
        return True

    async def _register(self, connection: Any) -> int:
        cursor = await connection.execute(
            "INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id"
        )
        [number] = await cursor.fetchone()
        await connection.execute(
            "INSERT INTO mergeops_workers (id, name, device, tags) VALUES (%s, %s, %s, %s)",
            (number, self.name, self.device, list(self.tags)),
        )
        return int(number)


async def take_over(queue: Queue, stalled_s: float = STALLED_S) -> list[str]:
    """Let the jobs of dead workers wait again, and forget those workers.

    Returns:
        The jobs.
    """
    manager = queue.app.job_manager
    stalled = await manager.get_stalled_jobs(seconds_since_heartbeat=stalled_s)
    freed = []
    for job in stalled:
        async with queue.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT abort_requested FROM procrastinate_jobs WHERE id = %s AND "
                "status = 'doing' AND worker_id IS NOT DISTINCT FROM %s AND NOT EXISTS (SELECT 1 "
                "FROM procrastinate_workers w WHERE w.id = worker_id AND "
                "w.last_heartbeat > now() - make_interval(secs => %s)) FOR UPDATE",
                (job.id, job.worker_id, stalled_s),
            )
            row = await cursor.fetchone()
            if row is None:
                # Somebody else was faster, or it lives after all.
                continue
            cursor = await connection.execute(
                "UPDATE mergeops_jobs SET ended_at = now(), error = %s, progress = NULL, "
                "spent_s = spent_s + coalesce(extract(epoch FROM now() - started_at), 0) "
                "WHERE queue_id = %s RETURNING id",
                ("its worker was killed or cut off", job.id),
            )
            named = await cursor.fetchone()
            if row[0]:
                await connection.execute(
                    "SELECT procrastinate_finish_job_v1(%s, 'aborted', false)", (job.id,)
                )
            elif await _use_try(connection, job.id) > 0:
                await connection.execute(
                    "SELECT procrastinate_retry_job_v2(%s, now(), NULL, NULL, NULL)", (job.id,)
                )
            else:
                await connection.execute(
                    "SELECT procrastinate_finish_job_v1(%s, 'failed', false)", (job.id,)
                )
            if named is not None:
                freed.append(str(named[0]))
    async with queue.pool.connection() as connection:
        await connection.execute(
            "DELETE FROM procrastinate_workers w WHERE last_heartbeat < now() - "
            "make_interval(secs => %s) AND NOT EXISTS (SELECT 1 FROM procrastinate_jobs q WHERE "
            "q.worker_id = w.id AND q.status = 'doing')",
            (stalled_s,),
        )
    return freed


async def keep_taking_over(queue: Queue, *, stalled_s: float = STALLED_S) -> None:
    """Take over for ever.

    After the database was away, every heartbeat in it is old: workers get the time to beat again
    before any is taken for dead.
    """
    from procrastinate.exceptions import ConnectorException
    from psycopg import Error, OperationalError
    from psycopg_pool import PoolTimeout

    reached_since: float | None = None
    while True:
        try:
            async with queue.pool.connection(timeout=TAKE_OVER_EVERY_S) as connection:
                cursor = await connection.execute(
                    "SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float"
                )
                row = await cursor.fetchone()
            reached_since = reached_since or time.monotonic()
            up_s = min(time.monotonic() - reached_since, row[0] if row else 0.0)
            if up_s > stalled_s:
                await take_over(queue, stalled_s)
        except (OperationalError, PoolTimeout, ConnectorException):
            reached_since = None
        except Error as error:
            # Whatever it is, the next look comes all the same.
            logging.getLogger("mergeops").warning("taking over: %s", " ".join(str(error).split()))
        await asyncio.sleep(TAKE_OVER_EVERY_S)


async def _is_begun_again(connection: Any, queue_id: int | None, ending: Ending) -> bool:
    if ending.retry_in_s is None:
        return False
    return not ending.is_fault or await _use_try(connection, queue_id) > 0


async def _use_try(connection: Any, queue_id: int | None) -> int:
    """How many tries were left, of which one is used now."""
    cursor = await connection.execute(
        "UPDATE mergeops_jobs SET tries_left = greatest(tries_left - 1, -1) WHERE queue_id = %s "
        "RETURNING tries_left",
        (queue_id,),
    )
    row = await cursor.fetchone()
    return int(row[0]) + 1 if row else 0


def _jsonb(value: Any) -> Any:
    from psycopg.types.json import Jsonb

    return None if value is None else Jsonb(value)
