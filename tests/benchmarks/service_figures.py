"""Figures of the service in docs/service.md: submit, dispatch, memory, idle, take-over and kills.

PYTHONPATH=tests python tests/benchmarks/service_figures.py --jobs 1000 --workers 8 --kills 60
"""

from __future__ import annotations

import datetime
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import psutil
from support.service_process import ServiceProcess
from support.service_work import words

from mergeops.client import ServiceClient


@click.command()
@click.option("--jobs", default=1000)
@click.option("--workers", default=8)
@click.option("--kills", default=60)
@click.option("--seed", default=0)
def figures(jobs: int, workers: int, kills: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:
        if jobs:
            load(Path(folder) / "load", jobs, workers)
        if kills:
            sweep(Path(folder) / "kills", kills, seed)


def load(folder: Path, jobs: int, workers: int) -> None:
    """A queue of many jobs, and workers that do nothing."""
    service = ServiceProcess(folder, workers)
    try:
        client = service.start()
        wait_for(lambda: len(client.workers()) == workers)
        server = psutil.Process(service.server_pid)
        waits = []
        for i in range(50):
            job = client.submit("adopt", words(service.marks, f"one{i}", 0))
            wait_for(lambda job=job: client.job(job["id"])["ended"])
            waits.append(dispatch_s(client.job(job["id"])))
        show("dispatch to an idle worker", waits)
        took = []
        for i in range(jobs):
            began = time.perf_counter()
            client.submit("adopt", words(service.marks, f"job{i}", 0))
            took.append(time.perf_counter() - began)
        show(f"submit, {jobs} jobs while {workers} workers work", took)
        began = time.monotonic()
        wait_for(lambda: len(service.finished()) >= jobs + 50, 1800)
        click.echo(f"all done {time.monotonic() - began:.0f} s after the last was submitted")
        click.echo(f"memory of serve: {server.memory_info().rss / 1e6:.0f} MB")
        before, began = sum(server.cpu_times()[:2]), time.monotonic()
        time.sleep(20)
        used = (sum(server.cpu_times()[:2]) - before) / (time.monotonic() - began)
        click.echo(f"idle: {used:.2%} of a core")
    finally:
        service.stop()


def sweep(folder: Path, kills: int, seed: int) -> None:
    """kill -9 of server, worker and database, each as soon as the one before is back."""
    service = ServiceProcess(folder, workers=3)
    draw, killed = random.Random(seed), Counter[str]()
    names: list[str] = []
    try:
        client = service.start()
        for _ in range(kills):
            for _ in range(4):
                names.append(f"job{len(names)}")
                client.submit("adopt", words(service.marks, names[-1], draw.uniform(0.1, 1.0)))
            time.sleep(draw.uniform(0.0, 1.5))
            victim = draw.choice(("server", "worker", "worker", "database"))
            killed[victim] += 1
            if victim == "server":
                service.kill_server()
                client = service.start()
            elif victim == "worker":
                number = draw.randrange(3)
                service.kill_worker(number)
                service.start_worker(number)
            else:
                service.kill_database()
        wait_for(lambda: ended(client) >= len(names), 300)
        states = Counter(job["state"] for job in client.jobs(limit=1000))
        lost = set(names) - set(service.finished())
        twice = [name for name, count in Counter(service.finished()).items() if count > 1]
        click.echo(f"killed: {dict(killed)}; {len(names)} jobs: {dict(states)}")
        click.echo(f"lost: {sorted(lost)}; finished twice: {twice}; at once: {service.doubled()}")
        attempts = Counter(job["attempt"] for job in client.jobs(limit=1000))
        click.echo(f"attempts: {dict(sorted(attempts.items()))}")
    finally:
        service.stop()


def ended(client: ServiceClient) -> int:
    return len(client.jobs(states=["succeeded", "failed", "cancelled"], limit=1000))


def dispatch_s(job: dict[str, Any]) -> float:
    begun, asked = (datetime.datetime.fromisoformat(job[k]) for k in ("started_at", "submitted_at"))
    return (begun - asked).total_seconds()


def show(what: str, seconds: Sequence[float]) -> None:
    ranked = sorted(seconds)
    at = {share: ranked[int(share * (len(ranked) - 1))] for share in (0.5, 0.95)}
    click.echo(f"{what}: median {1000 * at[0.5]:.0f} ms, p95 {1000 * at[0.95]:.0f} ms")


def wait_for(happened: Any, patience_s: float = 300) -> None:
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


if __name__ == "__main__":
    figures()
