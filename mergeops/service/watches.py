"""Watches in the database: their configs, what they know, and when each looks again."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError, ServiceError
from mergeops.service.allowed import checked_request
from mergeops.service.operator_config import ServiceConfig
from mergeops.service.queue import Queue
from mergeops.service.queued_jobs import ENDED, JobRequest, UnknownJobError
from mergeops.watching import WatchSpec, WatchState

COMMAND = "watch run"


@dataclass(frozen=True)
class Watch:
    """A watch as the service knows it."""

    spec: WatchSpec
    state: WatchState
    added_by: str
    added_at: datetime.datetime
    round: int
    """Of its last job; 0 before the first."""
    next_at: datetime.datetime

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, without all runs."""
        state = self.state
        return {
            "name": self.spec.name,
            "config": self.spec.to_dict(),
            "added_by": self.added_by,
            "added_at": self.added_at.isoformat(),
            "round": self.round,
            "next_at": self.next_at.isoformat(),
            "runs": len(state.runs),
            "waiting": len(state.waiting()),
            "proposed": len(state.proposed),
            "trials": sum(record.trials for record in state.rounds),
            "last": state.rounds[-1].note if state.rounds else "",
        }


class Watches:
    """The watches of a database.

    Args:
        queue: of their jobs.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def add(
        self, raw: Mapping[str, Any], by: str, config: ServiceConfig, directory: Path
    ) -> Watch:
        """Add a watch, or change the config of the one of that name; what it knows stays.

        Raises:
            ConfigError: its config is wrong, or asks for what jobs may not do.
        """
        spec = WatchSpec.from_dict(raw)
        # Its trials are what a `run` of these words would be.
        await asyncio.to_thread(checked_request, "run", spec.overrides, config, directory)
        await self._execute(
            # One that was removed and comes back goes on counting its rounds.
            "INSERT INTO mergeops_watches (name, config, added_by, round) VALUES (%s, %s, %s, "
            "(SELECT count(*) FROM mergeops_jobs WHERE command = %s AND words[1] = %s)) "
            "ON CONFLICT (name) DO UPDATE SET config = excluded.config, next_at = now()",
            (spec.name, _jsonb(spec.to_dict()), by, COMMAND, spec.name),
        )
        return await self.get(spec.name)

    async def remove(self, name: str) -> bool:
        """Remove a watch; its runs, merges and proposals stay in MLflow.

        Returns:
            Whether there was one of that name.
        """
        found = await self._read("WHERE name = %s", (name,))
        await self._execute("DELETE FROM mergeops_watches WHERE name = %s", (name,))
        return bool(found)

    async def all(self) -> list[Watch]:
        """All, by name."""
        return await self._read("ORDER BY name", ())

    async def get(self, name: str) -> Watch:
        """One.

        Raises:
            ConfigError: there is none of that name.
        """
        found = await self._read("WHERE name = %s", (name,))
        if not found:
            known = ", ".join(watch.spec.name for watch in await self.all())
            raise ConfigError(f"there is no watch {name[:60]!r}; watches: {known or 'none'}")
        return found[0]

    async def save(
        self, name: str, state: WatchState, number: int, attempt: int | None = None
    ) -> None:
        """Keep what a watch knows.

        Args:
            number: of the round that learned it.
            attempt: at the round's job; None where it is no job's.

        Raises:
            ServiceError: the watch was removed, or a later attempt is at work: nothing is kept.
        """
        query = (
            "UPDATE mergeops_watches SET state = %s WHERE name = %s AND NOT EXISTS "
            "(SELECT 1 FROM mergeops_jobs WHERE id = %s AND attempt > %s) RETURNING name"
        )
        values = (_jsonb(state.to_dict()), name, _round(name, number).id, attempt)
        async with self._queue.pool.connection() as connection:
            row = await (await connection.execute(query, values)).fetchone()
        if row is None:
            raise ServiceError(
                f"round {number} of the watch {name} ends here: the watch was removed, or another "
                "worker took the round over"
            )

    async def queue_due(
        self, by: str, has_work: Callable[[Watch], bool] = lambda watch: True
    ) -> list[str]:
        """Queue a round of each watch whose time has come; several servers may do so at once.

        Args:
            by: who is said to have submitted them.
            has_work: whether a round would find anything to do; asked in a thread.

        Returns:
            The jobs.
        """
        queued = []
        for watch in await self._read("WHERE next_at <= now() ORDER BY next_at", ()):
            number = watch.round
            if number and not await self._has_ended(watch.spec.name, number):
                # The round before is at work, or waits for a worker.
                continue
            if number and not await asyncio.to_thread(has_work, watch):
                await self._execute(
                    "UPDATE mergeops_watches SET next_at = now() + make_interval(secs => %s) "
                    "WHERE name = %s",
                    (watch.spec.every_s, watch.spec.name),
                )
                continue
            request = _round(watch.spec.name, number + 1)
            job = await self._queue.submit(request, by)
            await self._execute(
                "UPDATE mergeops_watches SET round = %s, "
                "next_at = now() + make_interval(secs => %s) WHERE name = %s AND round = %s",
                (number + 1, watch.spec.every_s, watch.spec.name, number),
            )
            if not job.was_there:
                queued.append(job.id)
        return queued

    async def _has_ended(self, name: str, number: int) -> bool:
        try:
            job = await self._queue.get(_round(name, number).id)
        except UnknownJobError:
            return True
        return job.state in ENDED

    async def _read(self, rest: str, values: tuple[Any, ...]) -> list[Watch]:
        query = (
            f"SELECT config, state, added_by, added_at, round, next_at FROM mergeops_watches {rest}"
        )
        async with self._queue.pool.connection() as connection:
            rows = await (await connection.execute(query.encode(), values)).fetchall()
        return [
            Watch(WatchSpec.from_dict(config), WatchState.from_dict(state), *others)
            for config, state, *others in rows
        ]

    async def _execute(self, query: str, values: tuple[Any, ...]) -> None:
        async with self._queue.pool.connection() as connection:
            await connection.execute(query.encode(), values)


def _round(name: str, number: int) -> JobRequest:
    return JobRequest(COMMAND, (name, "--round", str(number)))


def _jsonb(value: Any) -> Any:
    from psycopg.types.json import Jsonb

    return Jsonb(value)
