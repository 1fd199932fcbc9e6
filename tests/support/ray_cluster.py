"""A real Ray cluster on loopback: a head and another node, two raylets on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def is_installed() -> bool:
    return importlib.util.find_spec("ray") is not None


class RayCluster:
    """Nodes at 127.0.0.2 and 127.0.0.3, two processors each, whatever the machine has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.2:{_free_port()}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.urandom(32).hex(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }

    def start(self) -> None:
        port = self.address.partition(":")[2]
        shared = ["--num-cpus=2", "--object-store-memory=80000000", "--block", "--num-gpus=0"]
        shared += ["--disable-usage-stats"]
        head = ["--head", "--node-ip-address=127.0.0.2", f"--port={port}"]
        head += ["--include-dashboard=false", f"--temp-dir={self._folder}"]
        self._start("head", [*head, *shared])
        _wait(lambda: _answers("127.0.0.2", int(port)))
        self._start("other", [f"--address={self.address}", "--node-ip-address=127.0.0.3", *shared])

    def kill_node(self, name: str) -> None:
        """As when its power goes: all of its processes, at once."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in list(self._processes):
            self.kill_node(name)

    def _start(self, name: str, words: list[str]) -> None:
        with open(self._folder / f"{name}.out", "wb") as out:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.2", 0))
        port: int = each.getsockname()[1]
        return port


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "Ray does not start"
        time.sleep(0.2)
