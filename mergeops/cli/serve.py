"""The commands that run the service: serve and worker."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import click

from mergeops.cli.console import echo
from mergeops.cli.options import CONFIG_DIR, DEBUG, PATH
from mergeops.errors import ConfigError, ServiceError
from mergeops.service import (
    ServeSettings,
    ServiceConfig,
    ServicePlace,
    WorkerSettings,
    read_config,
)
from mergeops.service import serve as serve_until_stopped
from mergeops.service import work as work_until_stopped

STATE = Path("mergeops-work/service")
CONFIG = click.option(
    "--config", type=PATH, metavar="FILE", help="What jobs may do (YAML); see docs/service.md."
)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
TAGS = click.option("--tags", default="", metavar="TAG,...", help="What the worker has, for jobs.")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8321, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--database",
    envvar="MERGEOPS_DATABASE",
    show_envvar=True,
    help="postgresql://...; default: an embedded PostgreSQL in this project.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(0, 64))
@click.option("--state", type=PATH, default=STATE, show_default=True, help="Token and database.")
@DEVICE
@TAGS
@CONFIG
@CONFIG_DIR
@DEBUG
def serve(
    host: str,
    port: int,
    database: str | None,
    workers: int,
    state: Path,
    device: str,
    tags: str,
    config: Path | None,
    config_dir: Path | None,
) -> None:
    """Serve the merge service here: page, API, queue, and a worker.

    Jobs work in this directory. The address that is printed holds a token; commands of the same
    user in the same directory find it by themselves.
    """
    words = ["--device", device, *(["--tags", tags] if tags else [])]
    words += ["--config", str(config.absolute())] if config else []
    words += ["--config-dir", str(config_dir)] if config_dir else []
    settings = ServeSettings(
        place=ServicePlace(state.absolute()),
        directory=Path.cwd(),
        host=host,
        port=port,
        database=_checked(database),
        workers=workers,
        worker_words=tuple(words),
        config=_config(config, config_dir),
        say=_say,
    )
    _split(tags)
    serve_until_stopped(settings)


@click.command()
@click.option(
    "--database",
    envvar="MERGEOPS_DATABASE",
    show_envvar=True,
    required=True,
    help="postgresql://..., the server's.",
)
@DEVICE
@TAGS
@CONFIG
@CONFIG_DIR
@DEBUG
def worker(
    database: str, device: str, tags: str, config: Path | None, config_dir: Path | None
) -> None:
    """Work on the jobs of a database until SIGTERM.

    They work in this directory. The job at hand then ends, too, and goes on at another worker.
    """
    database = _checked(database) or ""
    settings = WorkerSettings(
        database=database,
        config=_config(config, config_dir),
        device=device,
        tags=_split(tags),
        directory=Path.cwd(),
        environment=_device_environment(device),
        say=_say,
    )
    asyncio.run(_work(settings))


async def _work(settings: WorkerSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    shown = f", tags {', '.join(settings.tags)}" if settings.tags else ""
    _say(f"worker {os.getpid()} on {settings.device}{shown} in {settings.directory}")
    await work_until_stopped(settings, stop)


def _device_environment(device: str) -> dict[str, str]:
    """Jobs see the one GPU that their worker has."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError(f"--device is {device!r}; allowed: auto, cpu, cuda, cuda:N")
    if kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUDA_VISIBLE_DEVICES": number} if number else {}


def _config(file: Path | None, config_dir: Path | None) -> ServiceConfig:
    config = read_config(file)
    if config_dir is not None:
        config = dataclasses.replace(config, config_dir=str(config_dir))
    if config.config_dir is not None and not Path(config.config_dir).is_dir():
        raise ConfigError(f"the config directory {config.config_dir} is not there")
    return config


def _split(tags: str) -> tuple[str, ...]:
    found = tuple(sorted({tag.strip() for tag in tags.split(",") if tag.strip()}))
    if len(found) > 6:
        raise ConfigError(f"--tags has {len(found)} tags; at most 6 are allowed")
    return found


def _checked(database: str | None) -> str | None:
    if database is not None and not database.startswith(("postgresql://", "postgres://")):
        raise ServiceError("--database begins with postgresql://; no other database is supported")
    return database


def _say(line: str) -> None:
    echo(line, err=True)
