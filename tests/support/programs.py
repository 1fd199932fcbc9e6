"""Programs as processes that find what the tests import, and each other on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def started(program: str, *words: str) -> subprocess.Popen[bytes]:
    """Python's text in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", program, *words], env=environment)


def run_two(program: str, *words: str) -> None:
    """Run RANK PORT WORDS... for the ranks 0 and 1 at once; both have to succeed."""
    port = free_port()
    processes = [started(program, str(rank), port, *words) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
