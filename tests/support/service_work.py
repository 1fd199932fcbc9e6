"""A worker of the service whose jobs are small programs, and what such a job does.

python -m support.service_work work DATABASE        a worker, until it is killed
python -m support.service_work job FOLDER NAME S    a job: once done, it stays done
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from mergeops.service import WorkerSettings, work
from mergeops.service.operator_config import ServiceConfig
from mergeops.service.queued_jobs import QueuedJob

TESTS = Path(__file__).parent.parent


def fake_command(job: QueuedJob, config: ServiceConfig) -> list[str]:
    """``adopt --experiment FOLDER:NAME:SECONDS`` as a job of this module."""
    folder, name, seconds = job.words[1].split(":")
    return [sys.executable, __file__, "job", folder, name, seconds]


def settings(database: str, **more: object) -> WorkerSettings:
    return WorkerSettings(database=database, command=fake_command, **more)  # type: ignore[arg-type]


def words(folder: Path, name: str, seconds: float) -> list[str]:
    return ["--experiment", f"{folder}:{name}:{seconds}"]


def do(folder: Path, name: str, seconds: float) -> None:
    """Work in steps that are kept, and finish once; two at once leave a mark."""
    with open(folder / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            (folder / f"{name}.doubled").touch()
            return
        for step in range(4):
            print(json.dumps({"task": name, "done": step, "total": 4}), file=sys.stderr, flush=True)
            if not (folder / f"{name}.{step}").exists():
                time.sleep(seconds / 4)
                (folder / f"{name}.{step}").touch()
        print(f"{name} is done", file=sys.stderr, flush=True)
        done = folder / f"{name}.done"
        if not done.exists():
            done.touch()
            with open(folder / "finished", "a") as log:
                log.write(f"{name}\n")
    print(json.dumps({"name": name}))


async def _work(database: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await work(settings(database, directory=Path.cwd()), stop)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(_work(sys.argv[2] if len(sys.argv) > 2 else os.environ["MERGEOPS_DATABASE"]))
    else:
        do(Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
