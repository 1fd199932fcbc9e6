"""The service's tables, beside those of procrastinate in the same database.

procrastinate has the queue: what waits, who works on it, whose heartbeat stopped. These tables have
what it does not keep: what a job is, what it said, and what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeops.errors import ServiceError

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

VERSION = 1
LOCK = 0x6D6572676F7073
"""Of the advisory lock that makers of the tables take: the letters of mergeops."""

TABLES = """
CREATE TABLE mergeops_version (version integer NOT NULL);
CREATE TABLE mergeops_workers (
    id bigint PRIMARY KEY REFERENCES procrastinate_workers ON DELETE CASCADE,
    name text NOT NULL,
    device text NOT NULL,
    tags text[] NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE mergeops_jobs (
    id text PRIMARY KEY,
    command text NOT NULL,
    words text[] NOT NULL,
    tags text[] NOT NULL,
    priority integer NOT NULL,
    submitted_by text NOT NULL,
    submitted_at timestamptz NOT NULL DEFAULT now(),
    queue_id bigint NOT NULL REFERENCES procrastinate_jobs,
    attempt integer NOT NULL DEFAULT 0,
    tries_left integer NOT NULL DEFAULT 5,
    worker text,
    device text,
    started_at timestamptz,
    ended_at timestamptz,
    spent_s double precision NOT NULL DEFAULT 0,
    exit_code integer,
    error text,
    progress jsonb,
    result jsonb
);
CREATE INDEX mergeops_jobs_submitted ON mergeops_jobs (submitted_at DESC, id);
CREATE UNIQUE INDEX mergeops_jobs_queue ON mergeops_jobs (queue_id);
CREATE TABLE mergeops_log (
    job_id text NOT NULL REFERENCES mergeops_jobs ON DELETE CASCADE,
    n bigint GENERATED ALWAYS AS IDENTITY,
    attempt integer NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    line text NOT NULL,
    PRIMARY KEY (job_id, n)
);
CREATE TABLE mergeops_watches (
    name text PRIMARY KEY,
    config jsonb NOT NULL,
    state jsonb NOT NULL DEFAULT '{}',
    added_by text NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    round integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION mergeops_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('mergeops', NEW.id);
    RETURN NEW;
END;
$$;
CREATE TRIGGER mergeops_jobs_notify AFTER INSERT OR UPDATE ON mergeops_jobs
    FOR EACH ROW EXECUTE FUNCTION mergeops_notify();
"""


async def ensure_tables(pool: AsyncConnectionPool) -> None:
    """Make the tables where there are none; several may do so at once.

    Raises:
        ServiceError: they are of a newer mergeops.
    """
    from procrastinate.schema import SchemaManager

    async with pool.connection() as connection:
        # Until the end of the transaction: whoever comes second finds them made.
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        if await _missing(connection, "procrastinate_jobs"):
            await connection.execute(SchemaManager.get_schema().encode())
        if await _missing(connection, "mergeops_version"):
            await connection.execute(TABLES.encode())
            await connection.execute("INSERT INTO mergeops_version VALUES (%s)", (VERSION,))
        cursor = await connection.execute("SELECT version FROM mergeops_version")
        row = await cursor.fetchone()
    if row is None or row[0] != VERSION:
        raise ServiceError(
            f"the database has tables of version {row and row[0]}, and this mergeops knows "
            f"{VERSION}; use the mergeops that made them, or another database"
        )


async def _missing(connection: object, table: str) -> bool:
    cursor = await connection.execute("SELECT to_regclass(%s)", (table,))  # type: ignore[attr-defined]
    row = await cursor.fetchone()
    return row is None or row[0] is None
