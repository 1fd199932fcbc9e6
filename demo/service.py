"""The demo's service: ``mergeops serve`` as a process, while runs end in MLflow."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mergeops.client import ServiceClient

SERVICE_CONFIG = Path("service.yaml")
LOG = Path("logs/serve.log")
SERVED = "serving "
START_S, ROUND_S = 120.0, 900.0


class ServiceError(click.ClickException):
    """The service ended, or a round of its watch took too long."""


@contextlib.contextmanager
def serving() -> Iterator[ServiceClient]:
    """A client of a service on a free port, in this directory; its address is printed."""
    from mergeops.client import connect

    words = ["serve", "--config-dir", "conf", "--config", str(SERVICE_CONFIG), "--port", "0"]
    click.secho(f"$ mergeops {shlex.join(words)} &", fg="cyan", bold=True)
    LOG.parent.mkdir(exist_ok=True)
    with open(LOG, "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mergeops", *words], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        click.echo(_started(server))
        yield connect()
    finally:
        server.terminate()
        server.wait()


def settled(client: ServiceClient, watch: str, *, runs: int) -> None:
    """Wait until so many runs have come in and no job is left."""
    deadline = time.monotonic() + ROUND_S
    while time.monotonic() < deadline:
        seen = client.watch_report(watch)["state"]["runs"].values()
        busy = client.jobs(states=("queued", "running"))
        if len(seen) >= runs and not busy and not any(r["outcome"] == "waiting" for r in seen):
            return
        time.sleep(1)
    raise ServiceError(f"the watch was not through after {ROUND_S:.0f} s; see {LOG.absolute()}")


def _started(server: subprocess.Popen[bytes]) -> str:
    """The line with the page's address."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        for line in LOG.read_text(encoding="utf-8").splitlines():
            if line.startswith(SERVED):
                return line
        time.sleep(0.2)
    raise ServiceError(f"the service did not start; see {LOG.absolute()}")
