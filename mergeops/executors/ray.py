"""Ray: an actor for each worker, on whatever nodes have room for it.

Ray finds the nodes, keeps each worker's share of processors, memory and GPUs, and says when one is
gone; units and results go over the worker's own line, so nothing of them is in Ray's object store.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError
from mergeops.executors.engines import executor
from mergeops.executors.line import Invitation
from mergeops.executors.worker import work
from mergeops.recipe import ExecutorSpec

ANSWER_S = 5.0
"""In which a cluster's head has to answer."""
INSTALL = "pip install 'mergeops[ray]'"


@dataclass(frozen=True)
class RayParameters:
    """Parameters of ``ray``."""

    address: str = "auto"
    """HOST:PORT of a cluster's head; auto is the cluster of this machine, or of RAY_ADDRESS; local
    starts one here for this command."""


class RayWorkers:
    """Actors of a Ray cluster that this process is connected to.

    Args:
        ray: the module.
        workers: how many.
        threads: processors of each.
        gpus: of each.
        memory: bytes of its own that each may hold.
    """

    def __init__(
        self, ray: Any, workers: int, threads: int, gpus: float, memory: int | None
    ) -> None:
        self.workers = workers
        self.memory = memory
        self.address = ray.util.get_node_ip_address()
        self._ray = ray
        self._actors: dict[int, Any] = {}
        self._running: dict[int, Any] = {}
        variables = {"OMP_NUM_THREADS": str(threads)}
        resources = {"num_cpus": threads, "num_gpus": gpus}
        if memory is not None:
            resources["memory"] = memory
        self._class = ray.remote(_Actor).options(
            **resources,
            runtime_env={"env_vars": variables},
            scheduling_strategy="SPREAD",
        )

    def launch(self, invitation: Invitation) -> None:
        """See ``Launcher``."""
        actor = self._class.remote()
        self._actors[invitation.number] = actor
        self._running[invitation.number] = actor.work.remote(invitation.text())

    def ended(self) -> Mapping[int, str]:
        """See ``Launcher``."""
        numbers = {reference: number for number, reference in self._running.items()}
        if not numbers:
            return {}
        gone, _ = self._ray.wait(list(numbers), num_returns=len(numbers), timeout=0)
        ended = {}
        for reference in gone:
            number = numbers[reference]
            del self._running[number], self._actors[number]
            try:
                self._ray.get(reference)
                ended[number] = "it ended"
            # Ray raises an error of its own, or the worker's.
            except Exception as error:
                ended[number] = _in_short(error)
        return ended

    def leaving(self) -> Collection[int]:
        """See ``Launcher``."""
        return ()

    def was_taken(self, number: int) -> bool:
        """See ``Launcher``."""
        return False

    def stop(self, number: int) -> None:
        """See ``Launcher``."""
        if number in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(self._actors[number])

    def close(self) -> None:
        """See ``Launcher``."""
        for number in list(self._actors):
            self.stop(number)
        self._ray.shutdown()


class _Actor:
    """A process of its own on some node."""

    def work(self, invitation: str) -> None:
        import ray

        work(invitation, ray.util.get_node_ip_address())


def _in_short(error: Exception) -> str:
    """What Ray says of the end of an actor, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "exit" in line.lower() or "node" in line.lower()]
    return " ".join((telling or lines or [type(error).__name__])[:2])[:300]


@executor("ray", RayParameters)
def launcher(spec: ExecutorSpec, parameters: RayParameters, memory: int | None) -> RayWorkers:
    """Actors of the cluster at an address, one a node or as many as the recipe says.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or it has not what a worker takes.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"executor=ray needs Ray, which is not installed: {INSTALL}") from error
    _connect(ray, parameters.address)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        threads = spec.threads or 1
        _check_room(nodes, threads, spec.gpus_per_worker, memory)
        if spec.workers != "auto":
            workers = int(spec.workers)
        elif spec.gpus_per_worker:
            gpus = sum(node["Resources"].get("GPU", 0) for node in nodes)
            workers = max(int(gpus / spec.gpus_per_worker), 1)
        else:
            workers = len(nodes)
            if spec.threads is None:
                threads = max(int(min(node["Resources"].get("CPU", 1) for node in nodes)), 1)
        return RayWorkers(ray, workers, threads, spec.gpus_per_worker, memory)
    except BaseException:
        ray.shutdown()
        raise


def _connect(ray: Any, address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"executor.address is {address!r}: workers have to reach this process, which Ray's "
            "client does not arrange; run the command inside the cluster: ray job submit -- "
            "mergeops ..."
        )
    meant = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = meant.rpartition(":")
    try:
        if host and port.isdecimal():
            # Ray itself goes on asking for minutes.
            socket.create_connection((host, int(port)), ANSWER_S).close()
        ray.init(address=meant, log_to_driver=False, logging_level="ERROR")
    # Ray raises ConnectionError, RuntimeError, ValueError or its own, by what is wrong.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster at executor.address={meant}: {reason}; start one with `ray start "
            "--head`, or name another (HOST:PORT, or local)"
        ) from error


def _check_room(nodes: list[dict[str, Any]], threads: int, gpus: float, memory: int | None) -> None:
    """Refuse workers that no node can ever have."""
    wanted = {"CPU": float(threads), "GPU": gpus, "memory": float(memory or 0)}
    for node in nodes:
        if all(node["Resources"].get(name, 0) >= value for name, value in wanted.items()):
            return
    most = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in wanted}
    lacking = [
        f"{name} {value:g} (the most that one has is {most[name]:g})"
        for name, value in wanted.items()
        if value > most[name]
    ]
    told = ", ".join(lacking) or "all of " + ", ".join(f"{n} {v:g}" for n, v in wanted.items() if v)
    raise ConfigError(
        f"no node of the Ray cluster has what a worker takes: {told}; lower executor.threads, "
        "executor.gpus_per_worker or executor.memory"
    )
