"""The queue: jobs on PostgreSQL, each named once, owned by one worker at a time.

procrastinate's tables say what waits and who owns what. A worker that is silent for ``STALLED_S``
has lost its job, and another takes it over. All changes of a job are one transaction with the
queue's own, so nothing is lost between the two, and the result of a worker that lost its job is
dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mergeops.errors import ServiceError
from mergeops.service.queue_tables import ensure_tables
from mergeops.service.queued_jobs import (
    CANCELLED,
    ENDED,
    FAILED,
    JobRequest,
    JobStateError,
    LogLine,
    QueuedJob,
    UnknownJobError,
    WorkerState,
    queue_of,
)
from mergeops.service.reaching import PATIENCE_S, not_installed, reach, unusable

if TYPE_CHECKING:
    from procrastinate import App
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

TASK = "mergeops.job"
TRIES = 5
"""How often a job is begun again by itself: its worker died, or MLflow was away."""
CONNECT_S = 20.0
"""How long a request waits for a connection."""
MAX_QUEUED = 10_000
LOCK_JOB = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"

STATE = """
CASE q.status::text
    WHEN 'todo' THEN 'queued'
    WHEN 'doing' THEN CASE WHEN q.abort_requested THEN 'cancelling' ELSE 'running' END
    WHEN 'aborted' THEN 'cancelled'
    ELSE q.status::text
END"""
COLUMNS = f"""
SELECT j.id, j.command, j.words, {STATE} AS state, j.tags, j.priority, j.submitted_by,
       j.submitted_at, j.attempt, j.worker, j.device, j.started_at, j.ended_at, j.spent_s,
       j.exit_code, j.error, j.progress, j.result
  FROM mergeops_jobs j JOIN procrastinate_jobs q ON q.id = j.queue_id"""


class Queue:
    """The jobs of one database; made by ``open_queue``."""

    def __init__(self, pool: AsyncConnectionPool, app: App, max_queued: int = MAX_QUEUED) -> None:
        self.pool = pool
        self.app = app
        self.max_queued = max_queued

    async def submit(self, request: JobRequest, by: str) -> QueuedJob:
        """Queue a job, or find it: the same work that waits, runs or succeeded is one.

        A job that failed or was cancelled is queued again.
        """
        async with self.pool.connection() as connection:
            # What is sent together is one way to the database and back.
            async with connection.pipeline():
                # Two that submit the same at once take turns.
                await connection.execute(LOCK_JOB, (request.id,))
                counting = await connection.execute(
                    "SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'"
                )
                known = await find_job(connection, request.id)
                row = await counting.fetchone()
            if known is not None and known.state not in (FAILED, CANCELLED):
                return _as_known(known)
            if row is not None and row[0] >= self.max_queued:
                raise ServiceError(f"{row[0]} jobs wait, and no more may; cancel some first")
            queue_id = await self._defer(connection, request.id, request.tags, request.priority)
            async with connection.pipeline():
                if known is not None:
                    await self._requeue(connection, request.id, queue_id)
                else:
                    await connection.execute(
                        "INSERT INTO mergeops_jobs (id, command, words, tags, priority, "
                        "submitted_by, queue_id, tries_left) VALUES (%s, %s, %s, %s, %s, %s, %s, "
                        "%s)",
                        (
                            *(request.id, request.command, list(request.words)),
                            *(list(request.tags), request.priority, by, queue_id, TRIES),
                        ),
                    )
                made = await find_job(connection, request.id)
        assert made is not None, "it was written a moment ago"
        return _as_known(made) if known is not None else made

    async def get(self, job_id: str) -> QueuedJob:
        """A job by its id, or the beginning of it.

        Raises:
            UnknownJobError: there is none, or several begin so.
        """
        async with self.pool.connection() as connection:
            if (job := await find_job(connection, job_id)) is not None:
                return job
            begin = "".join(c for c in job_id if c in "0123456789abcdef")
            found: list[QueuedJob] = []
            if begin == job_id and len(job_id) >= 4:
                found = await _jobs(connection, f"{COLUMNS} WHERE j.id LIKE %s", (f"{begin}%",))
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownJobError(f"{job_id} begins {len(found)} jobs; write more of the id")
        raise UnknownJobError(f"there is no job {job_id[:40]!r}; `mergeops jobs list` shows them")

    async def newest(
        self, *, states: Sequence[str] = (), limit: int = 100, before: QueuedJob | None = None
    ) -> list[QueuedJob]:
        """The newest jobs first.

        Args:
            states: only these; none takes all.
            before: go on after this one.
        """
        where, values = ["true"], []
        if states:
            where.append(f"{STATE} = ANY(%s)")
            values.append(list(states))
        if before is not None:
            where.append("(j.submitted_at, j.id) < (%s, %s)")
            values += [before.submitted_at, before.id]  # type: ignore[list-item]
        query = f"{COLUMNS} WHERE {' AND '.join(where)} ORDER BY j.submitted_at DESC, j.id DESC"
        async with self.pool.connection() as connection:
            return await _jobs(connection, f"{query} LIMIT %s", (*values, limit))

    async def counts(self) -> dict[str, int]:
        """State -> how many jobs are in it."""
        query = (
            f"SELECT {STATE} AS state, count(*) FROM mergeops_jobs j "
            "JOIN procrastinate_jobs q ON q.id = j.queue_id GROUP BY 1"
        )
        async with self.pool.connection() as connection:
            rows = await (await connection.execute(query.encode())).fetchall()
        return {str(state): int(count) for state, count in rows}

    async def cancel(self, job_id: str) -> QueuedJob:
        """Take a waiting job back; a running one gets SIGTERM from its worker.

        Raises:
            UnknownJobError: there is no such job.
            JobStateError: it ended otherwise.
        """
        job = await self.get(job_id)
        if job.state == CANCELLED:
            return job
        if job.state in ENDED:
            raise JobStateError(f"job {job.id} has {job.state} already")
        async with self.pool.connection() as connection:
            await connection.execute(
                "SELECT procrastinate_cancel_job_v1(queue_id, true, false) FROM mergeops_jobs "
                "WHERE id = %s",
                (job.id,),
            )
            await connection.execute(
                "UPDATE mergeops_jobs SET ended_at = CASE WHEN started_at IS NULL THEN now() ELSE "
                "ended_at END WHERE id = %s",
                (job.id,),
            )
        return await self.get(job.id)

    async def retry(self, job_id: str) -> QueuedJob:
        """Queue a job again that failed or was cancelled; the command goes on where it was.

        Returns:
            The job; in the state that it is in, where it is on its way or done already.

        Raises:
            UnknownJobError: there is no such job.
        """
        job = await self.get(job_id)
        if job.state not in (FAILED, CANCELLED):
            return job
        request = JobRequest(job.command, job.words, job.tags, job.priority)
        async with self.pool.connection() as connection:
            await connection.execute(LOCK_JOB, (job.id,))
            now = await find_job(connection, job.id)
            if now is not None and now.state in (FAILED, CANCELLED):
                queue_id = await self._defer(connection, job.id, request.tags, request.priority)
                await self._requeue(connection, job.id, queue_id)
        return await self.get(job.id)

    async def logs(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
        """What a job wrote, in order."""
        query = (
            "SELECT n, attempt, at, line FROM mergeops_log WHERE job_id = %s AND n > %s "
            "ORDER BY n LIMIT %s"
        )
        async with self.pool.connection() as connection:
            rows = await (await connection.execute(query, (job_id, after, limit))).fetchall()
        return [LogLine(*row) for row in rows]

    async def last_logs(self, job_id: str, limit: int) -> list[LogLine]:
        """The newest lines that a job wrote, in order."""
        query = (
            "SELECT n, attempt, at, line FROM mergeops_log WHERE job_id = %s ORDER BY n DESC "
            "LIMIT %s"
        )
        async with self.pool.connection() as connection:
            rows = await (await connection.execute(query, (job_id, limit))).fetchall()
        return [LogLine(*row) for row in reversed(rows)]

    async def workers(self) -> list[WorkerState]:
        """Who works, or was heard of lately."""
        query = """
            SELECT w.id, w.name, w.device, w.tags, w.started_at,
                   extract(epoch FROM now() - p.last_heartbeat)::float, j.id
              FROM mergeops_workers w JOIN procrastinate_workers p ON p.id = w.id
              LEFT JOIN procrastinate_jobs q ON q.worker_id = w.id AND q.status = 'doing'
              LEFT JOIN mergeops_jobs j ON j.queue_id = q.id
             ORDER BY w.started_at, w.id"""
        async with self.pool.connection() as connection:
            rows = await (await connection.execute(query)).fetchall()
        return [
            WorkerState(number, name, device, tuple(tags), since, silent_s, job)
            for number, name, device, tags, since, silent_s, job in rows
        ]

    async def _defer(
        self, connection: AsyncConnection[Any], job_id: str, tags: Sequence[str], priority: int
    ) -> int:
        from procrastinate.jobs import Job as Deferred

        deferred = Deferred(
            id=None,
            queue=queue_of(tuple(tags)),
            priority=priority,
            # Two of one name never run at once.
            lock=job_id,
            queueing_lock=job_id,
            task_name=TASK,
            task_kwargs={"job": job_id},
        )
        made = await self.app.job_manager.defer_job_async(deferred, connection=connection)
        assert made.id is not None, "the database numbers it"
        return made.id

    async def _requeue(self, connection: AsyncConnection[Any], job_id: str, queue_id: int) -> None:
        await connection.execute(
            "UPDATE mergeops_jobs SET queue_id = %s, tries_left = %s, ended_at = NULL, "
            "error = NULL, exit_code = NULL, progress = NULL WHERE id = %s",
            (queue_id, TRIES, job_id),
        )


@asynccontextmanager
async def open_queue(
    database: str,
    *,
    connections: int = 8,
    max_queued: int = MAX_QUEUED,
    patience_s: float = PATIENCE_S,
    say: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[Queue]:
    """Connect to the database, once it is there, and make the tables where there are none.

    Args:
        database: postgresql://...
        connections: at most so many at once.
        max_queued: at most so many jobs wait.
        patience_s: how long a database that is away is waited for.
        say: is told, in one line, that it is waited for, and that it is back.

    Raises:
        ConfigError: a package of the service is missing.
        ServiceError: it lets nobody in by this URI, or is away for too long.
    """
    try:
        from procrastinate import App, PsycopgConnector
        from psycopg import Error
        from psycopg_pool import AsyncConnectionPool, PoolTimeout
    except ImportError as error:
        raise not_installed(error) from error

    await reach(database, patience_s=patience_s, say=say)
    pool = AsyncConnectionPool(
        database,
        min_size=1,
        max_size=connections,
        open=False,
        timeout=CONNECT_S,
        check=AsyncConnectionPool.check_connection,
        kwargs={"connect_timeout": 5},
    )
    try:
        await pool.open(wait=True, timeout=CONNECT_S)
        app = App(connector=PsycopgConnector())
        await app.open_async(pool)
        await ensure_tables(pool)
    except (PoolTimeout, Error) as error:
        await pool.close()
        raise unusable(database, error) from error
    try:
        yield Queue(pool, app, max_queued)
    finally:
        await pool.close()


async def find_job(connection: AsyncConnection[Any], job_id: str) -> QueuedJob | None:
    """A job by its whole id, in the connection's transaction; None where there is none."""
    found = await _jobs(connection, f"{COLUMNS} WHERE j.id = %s", (job_id,))
    return found[0] if found else None


async def _jobs(
    connection: AsyncConnection[Any], query: str, values: Sequence[Any]
) -> list[QueuedJob]:
    from psycopg.rows import dict_row

    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.encode(), values)
        return [_job(row) for row in await cursor.fetchall()]


def _job(row: Mapping[str, Any]) -> QueuedJob:
    return QueuedJob(**{**row, "words": tuple(row["words"]), "tags": tuple(row["tags"])})


def _as_known(job: QueuedJob) -> QueuedJob:
    return dataclasses.replace(job, was_there=True)
