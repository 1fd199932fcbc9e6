"""``mergeops serve``: database, page, API and workers as one, until SIGTERM.

The database and the workers are processes of their own. One that dies is started again; when the
server itself is killed, its workers go with it and the jobs wait for the next.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mergeops.checkpoint import locked
from mergeops.client import Address
from mergeops.errors import ConfigError, MergeopsError
from mergeops.redact import redact
from mergeops.service.child import PATIENCE_S, die_with_parent
from mergeops.service.embedded import EmbeddedDatabase
from mergeops.service.mlflow_view import Registry
from mergeops.service.operator_config import MLFLOW, ServiceConfig
from mergeops.service.place import ServicePlace
from mergeops.service.queue import Queue, open_queue
from mergeops.service.takeover import keep_taking_over
from mergeops.service.watches import Watch, Watches
from mergeops.service.web.callers import Accounts
from mergeops.store import account_of, chosen_uri, current_user
from mergeops.watching import has_work

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_TOKEN = 24
LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What is served, and where."""

    place: ServicePlace
    directory: Path
    """Where jobs work."""
    host: str = "127.0.0.1"
    port: int = 8321
    database: str | None = None
    """postgresql://...; None starts the embedded one."""
    workers: int = 1
    worker_words: tuple[str, ...] = ()
    """Of ``mergeops worker``: device, tags, config."""
    config: ServiceConfig = field(default_factory=ServiceConfig)
    say: Callable[[str], None] = lambda line: None


def serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: the port is taken, or the place cannot be used.
        ServiceError: the database cannot be used.
    """
    settings.place.make()
    token = settings.place.token()
    is_by_token = settings.host not in LOOPBACK and settings.config.accounts != MLFLOW
    if is_by_token and (not os.environ.get("MERGEOPS_TOKEN") or len(token) < SHORTEST_TOKEN):
        raise ConfigError(
            f"--host is {settings.host}, which others reach; set MERGEOPS_TOKEN to a secret of at "
            f"least {SHORTEST_TOKEN} characters, or accounts to {MLFLOW} in --config, and put TLS "
            "in front"
        )
    with _alone(settings.place):
        _serve_alone(settings, token)


@contextmanager
def _alone(place: ServicePlace) -> Iterator[None]:
    """One server at a time has the place, and its database.

    Raises:
        ConfigError: another has it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(place.folder / "serve.lock", wait=False))
        except BlockingIOError as error:
            raise ConfigError(
                f"another mergeops serve runs in {place.folder}; use it, or choose another --state"
            ) from error
        yield


def _serve_alone(settings: ServeSettings, token: str) -> None:
    listener = _listener(settings.host, settings.port)
    embedded = EmbeddedDatabase(settings.place.database) if settings.database is None else None
    try:
        database = settings.database or (embedded.start() if embedded else "")
        asyncio.run(_serve(settings, token, listener, database, embedded))
    finally:
        settings.place.withdraw()
        listener.close()
        if embedded is not None:
            embedded.stop()


async def _serve(
    settings: ServeSettings,
    token: str,
    listener: socket.socket,
    database: str,
    embedded: EmbeddedDatabase | None,
) -> None:
    import uvicorn

    from mergeops.service.web.app import make_app
    from mergeops.service.web.news import Changes
    from mergeops.service.web.served import Service

    config, user = settings.config, current_user()
    config_dir = settings.directory / config.config_dir if config.config_dir else None
    registry = Registry(config_dir)
    accounts = await asyncio.to_thread(_accounts, config, registry)
    async with open_queue(database, max_queued=config.max_queued, say=settings.say) as queue:
        changes = Changes(queue)
        service = Service(
            queue=queue,
            watches=Watches(queue),
            registry=registry,
            changes=changes,
            config=config,
            directory=settings.directory,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(service, token, user, accounts),
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=15,
                limit_concurrency=500,
                timeout_graceful_shutdown=3,
            )
        )
        port = listener.getsockname()[1]
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{shown}:{port}"
        settings.place.announce(Address(url, token, os.getpid()))
        settings.say(f"serving {url}/?token={token}")
        settings.say(f"jobs work in {settings.directory}; Ctrl-C stops, and nothing is lost")
        # A server that stops does not wait for it.
        threading.Thread(target=registry.prepare, daemon=True).start()
        words = list(settings.worker_words)
        # Not as a word: everybody on the machine may read those.
        environment = {"MERGEOPS_DATABASE": database}
        tasks = [
            changes.listen(),
            keep_taking_over(queue),
            _keep_watching(service.watches, user, config_dir),
            *(_keep_working(words, environment, settings) for _ in range(settings.workers)),
        ]
        if embedded is not None:
            tasks.append(_keep_reviving(queue, embedded, settings.say))
        running = [asyncio.create_task(_for_ever(task)) for task in tasks]
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _accounts(config: ServiceConfig, registry: Registry) -> Accounts | None:
    """The MLflow server's accounts, where the operator lets them in.

    Raises:
        ConfigError: MLflow is no server.
        TrackingError: the server does not answer, or has no accounts.
    """
    if config.accounts != MLFLOW:
        return None
    tracking = registry.settings().tracking
    uri = chosen_uri(tracking)
    if not uri.startswith("http"):
        raise ConfigError(
            f"accounts is {MLFLOW}, but MLflow is {redact(uri)}; accounts are those of a server: "
            "set MLFLOW_TRACKING_URI to it"
        )
    # Of a server without accounts the answer is an error.
    account_of(uri, "nobody", "", tracking.timeout_s)
    return Accounts(uri, config.roles, tracking.timeout_s)


async def _for_ever(task: Awaitable[None]) -> None:
    await task


async def _keep_watching(watches: Watches, user: str, config_dir: Path | None) -> None:
    """Queue the rounds of watches that are due and would find something to do."""

    def is_worth(watch: Watch) -> bool:
        try:
            return has_work(watch.spec, watch.state, config_dir)
        except MergeopsError:
            # The round says what is wrong, or is tried again when MLflow is back.
            return True

    while True:
        # The database may be away; the next look finds what is due.
        with suppress(Exception):
            await watches.queue_due(user, is_worth)
        await asyncio.sleep(LOOK_S)


async def _keep_working(
    words: list[str], environment: Mapping[str, str], settings: ServeSettings
) -> None:
    """Keep one worker alive; it ends with this process."""
    wait_s = 1.0
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mergeops", "worker", *words),
            env={**os.environ, **environment},
            cwd=settings.directory,
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=die_with_parent(),
            start_new_session=True,
        )
        began = asyncio.get_running_loop().time()
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), PATIENCE_S + 10)
            except TimeoutError:
                process.kill()
            raise
        lived = asyncio.get_running_loop().time() - began
        wait_s = 1.0 if lived > 60 else min(wait_s * 2, 30.0)
        settings.say(f"a worker ended with {code}; another starts in {wait_s:.0f} s")
        await asyncio.sleep(wait_s)


async def _keep_reviving(
    queue: Queue, embedded: EmbeddedDatabase, say: Callable[[str], None]
) -> None:
    """Start the embedded database again where it died."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            async with queue.pool.connection(timeout=3) as connection:
                await connection.execute("SELECT 1")
        except Exception:
            say("the database is away; it is started again")
            revived = await asyncio.to_thread(embedded.revive)
            say("the database is back" if revived else "the database does not start yet")


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another by "
            "--port, or 0 for any that is free"
        ) from error
    listener.listen(128)
    return listener
