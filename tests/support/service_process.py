"""A real ``mergeops serve`` and workers as processes, to be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from mergeops.client import Address, ServiceClient

TESTS = Path(__file__).parent.parent


class ServiceProcess:
    """A server with its embedded database, and workers.

    Args:
        folder: the project; the state is below it.
        workers: how many.
        operator: the file of what jobs may do. With one, workers are those of ``mergeops worker``;
            without one, their jobs are small programs.
        environment: more of it for all processes.
    """

    def __init__(
        self,
        folder: Path,
        workers: int,
        *,
        operator: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._operator = ["--config", str(operator)] if operator else []
        self._environment = dict(environment or {})
        self.marks = folder / "marks"
        self.marks.mkdir(parents=True, exist_ok=True)
        self._state = folder / "state"
        self._server: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * workers

    def start(self) -> ServiceClient:
        """Start the server, and each worker that does not run."""
        self.start_server()
        for i, worker in enumerate(self._workers):
            if worker is None or worker.poll() is not None:
                self.start_worker(i)
        return self.client()

    def start_server(self) -> None:
        (self._state / "server.json").unlink(missing_ok=True)
        words = ["serve", "--port", "0", "--workers", "0", "--state", str(self._state)]
        words += self._operator
        self._server = self._run([sys.executable, "-m", "mergeops", *words], "server.log")
        deadline = time.monotonic() + 180
        while not (self._state / "server.json").exists():
            assert self._server.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def start_worker(self, number: int) -> None:
        place = self._state / "postgres"
        database = f"postgresql://postgres:@/postgres?host={place}"
        words = [sys.executable, "-m", "support.service_work", database]
        if self._operator:
            words = [sys.executable, "-m", "mergeops", "worker", "--database", database]
            words += self._operator
        self._workers[number] = self._run(words, f"worker{number}.log")

    def client(self) -> ServiceClient:
        raw = json.loads((self._state / "server.json").read_text())
        return ServiceClient(Address(raw["url"], raw["token"]))

    @property
    def server_pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def kill_server(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def kill_worker(self, number: int) -> None:
        worker = self._workers[number]
        assert worker is not None
        worker.kill()
        worker.wait()

    def kill_database(self) -> None:
        pid = int((self._state / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        with suppress(psutil.NoSuchProcess):
            # Of several processes, the one that starts all others.
            psutil.Process(pid).send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """End everything that was started here."""
        for process in (*self._workers, self._server):
            if process is not None and process.poll() is None:
                process.terminate()
        for process in (*self._workers, self._server):
            if process is not None:
                try:
                    process.wait(45)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def finished(self) -> list[str]:
        """Names of jobs, each time that one finished."""
        path = self.marks / "finished"
        return path.read_text().split() if path.exists() else []

    def doubled(self) -> list[str]:
        """Names of jobs that ran twice at once."""
        return [path.stem for path in self.marks.glob("*.doubled")]

    def _run(self, words: list[str], log: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(TESTS), **self._environment}
        environment.pop("MERGEOPS_DATABASE", None)
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                words, stdout=file, stderr=file, cwd=self.folder, env=environment
            )
