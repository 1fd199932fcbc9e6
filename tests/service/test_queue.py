"""The queue on a real PostgreSQL: named once, owned by one, taken over, and never lost."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from support.service_work import settings, words

from mergeops.errors import ConfigError, ServiceError
from mergeops.service.job_worker import work
from mergeops.service.queue import Queue, open_queue
from mergeops.service.queued_jobs import JobRequest, JobStateError, QueuedJob, UnknownJobError
from mergeops.service.takeover import Ending, Owner, keep_taking_over, take_over

pytestmark = pytest.mark.integration


def asked(server: str, test: Callable[[Queue], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with open_queue(server) as queue:
            return await asyncio.wait_for(test(queue), 60)

    return asyncio.run(go())


def request(folder: Path, name: str, seconds: float = 0.0, **more: Any) -> JobRequest:
    return JobRequest("adopt", tuple(words(folder, name, seconds)), **more)


async def until(queue: Queue, job: QueuedJob, *states: str) -> QueuedJob:
    while True:
        now = await queue.get(job.id)
        if now.state in states:
            return now
        await asyncio.sleep(0.05)


def tagged(folder: Path) -> tuple[str, ...]:
    """A tag of the test's own, so that no other test's worker takes its jobs."""
    return (f"t{abs(hash(str(folder)))}",)


def test_the_same_work_is_one_job(queue_server: str, folder: Path) -> None:
    async def test(queue: Queue) -> None:
        wanted = request(folder, "once", tags=tagged(folder))
        first, second = await asyncio.gather(queue.submit(wanted, "ann"), queue.submit(wanted, "b"))
        assert first.id == second.id == wanted.id
        assert sorted([first.was_there, second.was_there]) == [False, True]
        assert [job.id for job in await queue.newest() if job.id == wanted.id] == [wanted.id]

    asked(queue_server, test)


def test_a_worker_does_a_job_and_keeps_what_it_says(queue_server: str, folder: Path) -> None:
    async def test(queue: Queue) -> None:
        job = await queue.submit(request(folder, "a", 0.1, tags=tagged(folder)), "ann")
        stop = asyncio.Event()
        working = asyncio.create_task(work(settings(queue_server, tags=tagged(folder)), stop))
        done = await until(queue, job, "succeeded", "failed")
        assert (done.state, done.exit_code, done.attempt) == ("succeeded", 0, 1)
        assert done.result == {"name": "a"}
        assert [line.line for line in await queue.logs(job.id)] == ["a is done"]
        again = await queue.submit(request(folder, "a", 0.1, tags=tagged(folder)), "ann")
        assert (again.was_there, again.state) == (True, "succeeded")
        assert (await queue.retry(job.id)).state == "succeeded"
        with pytest.raises(JobStateError, match=f"job {job.id} has succeeded already"):
            await queue.cancel(job.id)
        stop.set()
        await working
        assert (folder / "finished").read_text() == "a\n"

    asked(queue_server, test)


def test_a_cancelled_job_ends_by_sigterm_and_goes_on_when_it_is_retried(
    queue_server: str, folder: Path
) -> None:
    async def test(queue: Queue) -> None:
        job = await queue.submit(request(folder, "long", 4.0, tags=tagged(folder)), "ann")
        stop = asyncio.Event()
        working = asyncio.create_task(work(settings(queue_server, tags=tagged(folder)), stop))
        while not (folder / "long.0").exists():
            await asyncio.sleep(0.02)
        began = time.monotonic()
        assert (await queue.cancel(job.id)).state in ("cancelling", "cancelled")
        ended = await until(queue, job, "cancelled")
        assert time.monotonic() - began < 3
        assert (ended.exit_code, ended.error) == (-15, "cancelled")
        assert (await queue.cancel(job.id)).state == "cancelled"
        before = {path.name for path in folder.glob("long.[0-3]")}
        await queue.retry(job.id)
        again = await until(queue, job, "running")
        assert again.attempt == 2 and before
        assert (await queue.retry(job.id)).attempt == 2
        stop.set()
        await working
        # Its worker was stopped: the job waits for the next, and no try is lost.
        waits = await queue.get(job.id)
        assert (waits.state, waits.error) == ("queued", "its worker was stopped")

    asked(queue_server, test)


def test_a_waiting_job_is_taken_back_at_once(queue_server: str, folder: Path) -> None:
    async def test(queue: Queue) -> None:
        job = await queue.submit(request(folder, "never", tags=tagged(folder)), "ann")
        assert (await queue.cancel(job.id)).state == "cancelled"
        # Submitted again it is the same job, and waits again.
        again = await queue.submit(request(folder, "never", tags=tagged(folder)), "ann")
        assert (again.id, again.state, again.was_there) == (job.id, "queued", True)

    asked(queue_server, test)


def test_the_job_of_a_dead_worker_is_taken_over_and_its_late_result_dropped(
    queue_server: str, folder: Path
) -> None:
    async def test(queue: Queue) -> None:
        tags = tagged(folder)
        job = await queue.submit(request(folder, "orphan", tags=tags), "ann")
        dead, other = Owner(queue, "dead:1", "cpu", tags), Owner(queue, "other:2", "cpu", tags)
        await dead.beat()
        await other.beat()
        taken = await dead.fetch()
        assert taken is not None and taken.id == job.id
        assert await other.fetch() is None
        assert job.id not in await take_over(queue, stalled_s=18)
        await silence(queue, dead)
        assert job.id in await take_over(queue, stalled_s=18)
        assert job.id not in await take_over(queue, stalled_s=18)
        again = await other.fetch()
        assert again is not None and (again.id, again.attempt, again.worker) == (
            job.id,
            2,
            "other:2",
        )
        # The first was only cut off, and comes back with a result.
        assert not await dead.end(Ending("failed", 1, "too late"))
        assert await other.end(Ending("succeeded", 0))
        assert (await queue.get(job.id)).error is None
        await other.leave()

    asked(queue_server, test)


def test_a_job_that_kills_its_workers_is_given_up(queue_server: str, folder: Path) -> None:
    async def test(queue: Queue) -> None:
        job = await queue.submit(request(folder, "poison", tags=tagged(folder)), "ann")
        for attempt in range(1, 7):
            victim = Owner(queue, f"victim:{attempt}", "cpu", tagged(folder))
            await victim.beat()
            taken = await victim.fetch()
            assert taken is not None and taken.attempt == attempt
            await silence(queue, victim)
            await take_over(queue, stalled_s=18)
        given_up = await queue.get(job.id)
        assert (given_up.state, given_up.error) == ("failed", "its worker was killed or cut off")

    asked(queue_server, test)


def test_a_worker_that_was_forgotten_keeps_the_job_nobody_took(
    queue_server: str, folder: Path
) -> None:
    async def test(queue: Queue) -> None:
        await queue.submit(request(folder, "kept", tags=tagged(folder)), "ann")
        owner = Owner(queue, "slow:1", "cpu", tagged(folder))
        await owner.beat()
        assert await owner.fetch() is not None
        await execute(queue, "DELETE FROM procrastinate_workers WHERE id = %s", owner.id)
        assert await owner.beat()
        assert await owner.end(Ending("succeeded", 0))

    asked(queue_server, test)


def test_a_job_that_was_given_in_an_answer_that_was_lost_is_begun(
    queue_server: str, folder: Path
) -> None:
    async def test(queue: Queue) -> None:
        job = await queue.submit(request(folder, "lost answer", tags=tagged(folder)), "ann")
        owner = Owner(queue, "w:1", "cpu", tagged(folder))
        await owner.beat()
        assert await owner.fetch() is not None
        # The database commits, and dies before the worker hears of it: it asks again.
        taken = await owner.fetch()
        assert taken is not None and (taken.id, taken.attempt) == (job.id, 2)
        assert await owner.end(Ending("succeeded", 0))
        assert await owner.fetch() is None

    asked(queue_server, test)


def test_dead_workers_are_looked_for_as_long_as_the_queue_is_open(
    queue_server: str, folder: Path
) -> None:
    async def test(queue: Queue) -> None:
        job = await queue.submit(request(folder, "looked for", tags=tagged(folder)), "ann")
        owner = Owner(queue, "dead:1", "cpu", tagged(folder))
        await owner.beat()
        assert await owner.fetch() is not None
        looking = asyncio.create_task(keep_taking_over(queue, stalled_s=0.5))
        # Its heart stops here.
        assert (await until(queue, job, "queued")).error == "its worker was killed or cut off"
        looking.cancel()

    asked(queue_server, test)


def test_away_is_tried_again_later_and_other_errors_are_not(
    queue_server: str, folder: Path
) -> None:
    async def test(queue: Queue) -> None:
        job = await queue.submit(request(folder, "away", tags=tagged(folder)), "ann")
        owner = Owner(queue, "w:1", "cpu", tagged(folder))
        await owner.beat()
        assert await owner.fetch() is not None
        assert await owner.end(Ending("failed", 75, "cannot reach MLflow", retry_in_s=0.0))
        assert (await queue.get(job.id)).state == "queued"
        assert await owner.fetch() is not None
        assert await owner.end(Ending("failed", 4, "they do not merge"))
        ended = await queue.get(job.id)
        assert (ended.state, ended.exit_code, ended.attempt) == ("failed", 4, 2)

    asked(queue_server, test)


def test_a_job_is_taken_only_by_a_worker_with_its_tags(queue_server: str, folder: Path) -> None:
    async def test(queue: Queue) -> None:
        tag = tagged(folder)[0]
        job = await queue.submit(request(folder, "big", tags=(tag, "big")), "ann")
        without, with_all = (
            Owner(queue, "a:1", "cpu", (tag,)),
            Owner(queue, "b:2", "cpu", (tag, "big", "fast")),
        )
        await without.beat()
        await with_all.beat()
        assert await without.fetch() is None
        taken = await with_all.fetch()
        assert taken is not None and taken.id == job.id

    asked(queue_server, test)


def test_an_unknown_job_is_named(queue_server: str) -> None:
    async def test(queue: Queue) -> None:
        with pytest.raises(UnknownJobError, match="there is no job 'beef'"):
            await queue.get("beef")
        with pytest.raises(UnknownJobError, match="there is no job '%'"):
            await queue.get("%")

    asked(queue_server, test)


def test_no_more_wait_than_may(queue_server: str, folder: Path) -> None:
    async def go() -> None:
        async with open_queue(queue_server, max_queued=0) as queue:
            with pytest.raises(ServiceError, match="jobs wait, and no more may"):
                await queue.submit(request(folder, "more", tags=tagged(folder)), "ann")

    asyncio.run(go())


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with open_queue("postgresql://x"):
            raise AssertionError

    monkeypatch.setitem(sys.modules, "psycopg_pool", None)
    with pytest.raises(
        ConfigError, match=r"needs `pip install 'mergeops\[service\]'`: psycopg_pool"
    ):
        asyncio.run(go())


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://me:secret@127.0.0.1:1/none", "cannot be used: .*refused"),
        ("postgresql://me:secret@127.0.0.1:x/none", "cannot be used: .*invalid integer value"),
        ("postgresql://me:secret@127.0.0.1/none?wat=1", 'invalid URI query parameter: "wat"'),
    ],
)
def test_a_database_that_is_not_there_is_said_without_its_password(uri: str, message: str) -> None:
    async def go() -> None:
        async with open_queue(uri, patience_s=0):
            raise AssertionError

    with pytest.raises(ServiceError, match=message) as caught:
        asyncio.run(go())
    assert "secret" not in str(caught.value)


def test_a_database_that_refuses_is_not_waited_for(queue_server: str) -> None:
    async def go() -> None:
        async with open_queue(urlsplit(queue_server)._replace(path="/nowhere").geturl()):
            raise AssertionError

    with pytest.raises(ServiceError, match='database "nowhere" does not exist'):
        asyncio.run(go())


def away(queue_server: str, link: Path) -> str:
    """The URI of the database by a link to its socket that is not there yet."""
    return urlsplit(queue_server)._replace(query=urlencode({"host": str(link)})).geturl()


def test_a_worker_that_begins_while_the_database_is_away_waits_for_it_and_says_so(
    queue_server: str, short_folder: Path, folder: Path
) -> None:
    link, said = short_folder / "later", list[str]()
    [socket] = parse_qs(urlsplit(queue_server).query)["host"]

    async def test(queue: Queue) -> None:
        tags = tagged(folder)
        job = await queue.submit(request(folder, "patient", tags=tags), "ann")
        stop = asyncio.Event()
        given = settings(away(queue_server, link), tags=tags, say=said.append)
        working = asyncio.create_task(work(given, stop))
        while not said:
            await asyncio.sleep(0.02)
        link.symlink_to(socket)
        await until(queue, job, "succeeded")
        stop.set()
        await working

    asked(queue_server, test)
    assert re.search("cannot be used: .*No such file.*waiting for it, at most 600 s", said[0])
    assert re.fullmatch(r"the database is back after \d+ s", said[1])


def test_a_worker_that_waits_for_the_database_stops_when_it_is_told_to(
    queue_server: str, short_folder: Path
) -> None:
    async def test(queue: Queue) -> None:
        stop, said = asyncio.Event(), list[str]()
        given = settings(away(queue_server, short_folder / "never"), say=said.append)
        working = asyncio.create_task(work(given, stop))
        while not said:
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.wait_for(working, 5)

    asked(queue_server, test)


async def silence(queue: Queue, owner: Owner) -> None:
    """As if the worker had been killed a minute ago."""
    await execute(
        queue,
        "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute' "
        "WHERE id = %s",
        owner.id,
    )


async def execute(queue: Queue, query: str, *values: Any) -> None:
    async with queue.pool.connection() as connection:
        await connection.execute(query.encode(), values)
