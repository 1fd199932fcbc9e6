"""Local: processes on this machine, one a device; on a CPU they share its processors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mergeops.errors import ConfigError
from mergeops.executors.engines import executor
from mergeops.executors.line import Invitation
from mergeops.executors.worker import VARIABLE
from mergeops.lazy_torch import torch
from mergeops.recipe import ExecutorSpec

MOST = 256
LOG_BYTES = 2000
"""Of a dead worker's output are shown."""
PATIENCE_S = 5.0
"""In which workers that are told to end do so."""


@dataclass(frozen=True)
class LocalParameters:
    """Parameters of ``local``: none of its own."""


class LocalWorkers:
    """Processes of this machine.

    Args:
        workers: how many.
        threads: processor threads of each.
        devices: CUDA devices, which workers take turns with; none on a CPU.
        memory: bytes of its own that each may hold.
    """

    def __init__(
        self, workers: int, threads: int, devices: tuple[str, ...] = (), memory: int | None = None
    ) -> None:
        self.workers = workers
        self.memory = memory
        self._threads = threads
        self._devices = devices
        self._folder = tempfile.TemporaryDirectory(prefix="mergeops-")
        # A path, so that no other user of the machine reaches it.
        self.address = str(Path(self._folder.name, "line"))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def launch(self, invitation: Invitation) -> None:
        """Start a process in a session of its own: Ctrl-C is for the driver, which ends it."""
        environment = os.environ | {
            VARIABLE: invitation.text(),
            "OMP_NUM_THREADS": str(self._threads),
        }
        if self._devices:
            place = (invitation.number - 1) % len(self._devices)
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[place]
        with open(self._log(invitation.number), "wb") as log:
            self._processes[invitation.number] = subprocess.Popen(
                [sys.executable, "-m", "mergeops.executors.worker"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> Mapping[int, str]:
        """See ``Launcher``."""
        ended = {}
        for number, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[number]
                text = self._log(number).read_bytes()[-LOG_BYTES:].decode(errors="replace")
                ended[number] = " ".join([_how(code), *text.split()])
        return ended

    def leaving(self) -> Collection[int]:
        """See ``Launcher``."""
        return ()

    def was_taken(self, number: int) -> bool:
        """See ``Launcher``."""
        return False

    def stop(self, number: int) -> None:
        """See ``Launcher``."""
        if number in self._processes:
            self._processes[number].kill()

    def close(self) -> None:
        """See ``Launcher``."""
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
            process.kill()
            process.wait()
        self._folder.cleanup()

    def _log(self, number: int) -> Path:
        return Path(self._folder.name, f"worker-{number}.log")


def _how(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}."
    return f"it was ended by {signal.Signals(-code).name}."


@executor("local", LocalParameters)
def launcher(spec: ExecutorSpec, parameters: LocalParameters, memory: int | None) -> LocalWorkers:
    """Processes of this machine, as many as there are devices or as the recipe says.

    Raises:
        ConfigError: more than ``MOST``.
    """
    devices = _devices()
    workers = max(len(devices), 1) if spec.workers == "auto" else int(spec.workers)
    if workers > MOST:
        raise ConfigError(f"executor.workers is {workers}; allowed: at most {MOST} on one machine")
    threads = spec.threads or max(len(os.sched_getaffinity(0)) // workers, 1)
    return LocalWorkers(workers, threads, devices, memory)


def _devices() -> tuple[str, ...]:
    """CUDA devices as CUDA_VISIBLE_DEVICES names them; none where there is no driver."""
    if not Path("/dev/nvidiactl").exists():
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(word.strip() for word in visible.split(",") if word.strip())
    return tuple(str(i) for i in range(torch.cuda.device_count()))
