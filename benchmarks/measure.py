"""Run one command and take its time, its processor time and its anonymous memory."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAMPLE = 0.02
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Measurement:
    """One run of one contestant."""

    method: str
    contestant: str
    pair: int
    """Runs of one pair follow one another at once."""
    wall: float
    """Seconds, from start to end of the process."""
    cpu: float
    """Seconds, user and system."""
    anonymous: int
    """Largest RssAnon of the process and its children together, in bytes."""
    load: float
    """The machine's load average of the last minute, before."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def measure(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> tuple[float, float, int]:
    """Run a command to its end.

    Args:
        command: its words.
        environment: its variables; the bytecode of what it imports is kept all the same.
        folder: where it runs.
        log: where its output goes.

    Returns:
        Wall time and processor time in seconds, and the peak of anonymous memory in bytes.

    Raises:
        RuntimeError: it failed; says with which last line.
    """
    environment = {k: v for k, v in environment.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = 0
    with open(log, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(SAMPLE):
                peak = max(peak, sum(map(anonymous_bytes, family(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        wall = time.perf_counter() - started
        done.set()
        watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {lines[-1]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, cpu, peak


def family(pid: int) -> list[int]:
    """A process and all below it; processes that end meanwhile are left out."""
    found = [pid]
    for parent in found:
        try:
            threads = os.listdir(f"/proc/{parent}/task")
            for thread in threads:
                children = Path(f"/proc/{parent}/task/{thread}/children").read_text()
                found.extend(map(int, children.split()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process: memory of its own, without mapped files; 0 where it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0
