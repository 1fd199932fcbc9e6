"""News of the queue, for whoever watches: one connection listens for all."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from mergeops.service.queue import Queue

CHANNEL = "mergeops"
MOST_WATCHERS = 200


class Changes:
    """Wakes those who wait when a job changes.

    Args:
        queue: whose jobs.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._condition = asyncio.Condition()
        self._count = 0
        self._last: dict[str, int] = {}
        """Job -> count at its last change."""
        self.watchers = 0

    async def listen(self) -> None:
        """Hear for ever; after the database was away everybody is woken, for news was missed."""
        while True:
            with suppress(Exception):
                async with self._queue.pool.connection() as connection:
                    await connection.set_autocommit(True)
                    try:
                        await connection.execute(f"LISTEN {CHANNEL}".encode())
                        await self._tell(None)
                        async for notice in connection.notifies():
                            await self._tell(notice.payload)
                    finally:
                        with suppress(Exception):
                            await connection.execute("UNLISTEN *")
                            await connection.set_autocommit(False)
            await asyncio.sleep(1)

    async def wait(self, seen: int, job: str | None, timeout_s: float) -> int:
        """Wait for a change after ``seen``, of one job or of any.

        Returns:
            What to call ``seen`` the next time; the same where there was none in time.
        """

        def is_new() -> bool:
            return self._changed(job) > seen

        async with self._condition:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._condition.wait_for(is_new), timeout_s)
            return max(self._changed(job), seen)

    def _changed(self, job: str | None) -> int:
        if job is None:
            return self._count
        return max(self._last.get(job, 0), self._last.get("", 0))

    async def _tell(self, job: str | None) -> None:
        async with self._condition:
            self._count += 1
            if len(self._last) > 10_000:
                self._last = {"": self._count}
            self._last[job or ""] = self._count
            self._condition.notify_all()
