"""A worker of the service whose jobs are small programs: support.service_work DATABASE."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from mergeops.service import WorkerSettings, work
from mergeops.service.operator_config import ServiceConfig
from mergeops.service.queued_jobs import QueuedJob

TESTS = Path(__file__).parent.parent


def fake_command(job: QueuedJob, config: ServiceConfig) -> list[str]:
    """``adopt --experiment FOLDER:NAME:SECONDS`` as a job of this module."""
    folder, name, seconds = job.words[1].split(":")
    return [sys.executable, "-S", str(TESTS / "support" / "service_job.py"), folder, name, seconds]


def settings(database: str, **more: object) -> WorkerSettings:
    return WorkerSettings(database=database, command=fake_command, **more)  # type: ignore[arg-type]


def words(folder: Path, name: str, seconds: float) -> list[str]:
    return ["--experiment", f"{folder}:{name}:{seconds}"]


async def _work(database: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await work(settings(database, directory=Path.cwd()), stop)


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1]))
