"""Ray: an actor for each worker, on whatever nodes have room for it.

Ray finds the nodes, keeps each worker's share of processors, memory and GPUs, and says when one is
gone; units and results go over the worker's own line, so nothing of them is in Ray's object store.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.executors.engines import executor
from mergeops.executors.line import Invitation, Line
from mergeops.recipe import ExecutorSpec

INSTALL = "pip install 'mergeops[ray]'"
PATIENCE_S = 10.0
"""In which the process that is connected to Ray takes its leave of the cluster."""
SHOWN = 300
"""Characters of what a process that Ray ended wrote last."""


@dataclass(frozen=True)
class RayParameters:
    """Parameters of ``ray``."""

    address: str = "auto"
    """HOST:PORT of a cluster's head; auto is the cluster of this machine, or of RAY_ADDRESS; local
    starts one here for this command."""


class RayWorkers:
    """Actors that a process of their own (``ray_driver``) started; where Ray ends that process,
    another one takes its place with the next worker.

    Args:
        opening: arguments of ``ray_driver.RayActors``.

    Raises:
        ConfigError: no cluster answers, or it has not what a worker takes.
    """

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self.memory = opening["memory"]
        self._opening = dict(opening)
        self._driver: _Driver | None = None
        self._launched: set[int] = set()
        self._taken: set[int] = set()
        self._lost: dict[int, str] = {}
        facts = self._open()
        self.workers = int(facts["workers"])
        self.address = str(facts["address"])

    def launch(self, invitation: Invitation) -> None:
        """See ``Launcher``."""
        if self._driver is None:
            self._open()
        if self._ask("launch", invitation.number, invitation.text()) is not _GONE:
            self._launched.add(invitation.number)
        else:
            self._lost[invitation.number] = "Ray ended before it began"

    def ended(self) -> Mapping[int, str]:
        """See ``Launcher``."""
        answer = self._ask("ended")
        ended = {} if answer is _GONE else {int(number): why for number, why in answer.items()}
        self._launched -= set(ended)
        ended |= self._lost
        self._lost = {}
        return ended

    def leaving(self) -> Collection[int]:
        """See ``Launcher``."""
        return ()

    def was_taken(self, number: int) -> bool:
        """See ``Launcher``."""
        return number in self._taken

    def stop(self, number: int) -> None:
        """See ``Launcher``."""
        if number in self._launched:
            self._ask("stop", number)

    def close(self) -> None:
        """See ``Launcher``."""
        for number in sorted(self._launched):
            self.stop(number)
        if self._driver is not None:
            self._driver.close()

    def _open(self) -> Mapping[str, Any]:
        self._driver = driver = _Driver()
        try:
            answer = driver.ask({"open": self._opening})
        except (OSError, EOFError) as error:
            self._driver = None
            raise ConfigError(
                f"no Ray cluster at executor.address={self._opening['address']}: {driver.end()}"
            ) from error
        if "refused" in answer:
            self._driver = None
            driver.close()
            raise ConfigError(str(answer["refused"]))
        return answer

    def _ask(self, what: str, *words: Any) -> Any:
        """What the process answers, or ``_GONE``: its workers ended with it, by no fault of
        theirs."""
        if self._driver is None:
            return _GONE
        try:
            return self._driver.ask({"do": what, "with": words})["answer"]
        except (OSError, EOFError):
            reason = self._driver.end()
            self._driver = None
            self._lost |= dict.fromkeys(self._launched, reason)
            self._taken |= self._launched
            self._launched = set()
            return _GONE


_GONE = object()


class _Driver:
    """The process, and the line to it."""

    def __init__(self) -> None:
        ours, its = connection.Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="mergeops-")
        self._log = Path(self._folder.name, "ray.log")
        with its, open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mergeops.executors.ray_driver", str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[its.fileno()],
                # Ctrl-C is for this process, which ends that one.
                start_new_session=True,
                env=os.environ | {"RAY_DISABLE_IMPORT_WARNING": "1"},
            )
        self._end = ours
        self._line = Line(ours)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self._line.send(order)
        return self._line.receive()

    def end(self) -> str:
        """How it ended, in one line."""
        self._process.wait(PATIENCE_S)
        said = " ".join(self._log.read_text(errors="replace").split())[-SHOWN:]
        self.close()
        return f"the process connected to Ray ended with {self._process.returncode}: {said}"

    def close(self) -> None:
        self._end.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


@executor("ray", RayParameters)
def launcher(spec: ExecutorSpec, parameters: RayParameters, memory: int | None) -> RayWorkers:
    """Actors of the cluster at an address, one a node or as many as the recipe says.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or it has not what a worker takes.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"executor=ray needs Ray, which is not installed: {INSTALL}")
    if parameters.address.startswith("ray://"):
        raise ConfigError(
            f"executor.address is {parameters.address!r}: workers have to reach this process, "
            "which Ray's client does not arrange; run the command inside the cluster: ray job "
            "submit -- mergeops ..."
        )
    return RayWorkers(
        {
            "address": parameters.address,
            "workers": None if spec.workers == "auto" else int(spec.workers),
            "threads": spec.threads,
            "gpus": spec.gpus_per_worker,
            "memory": memory,
        }
    )
