"""The process that is connected to a Ray cluster, and starts a worker's actor there when told.

``python -m mergeops.executors.ray_driver FD`` takes orders over an inherited socket and answers
each with one message, until the other end hangs up. It is a process of its own, since Ray ends a
process that loses its raylet or its head, and connects a process to one cluster only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Any

from mergeops.errors import ConfigError
from mergeops.executors.line import Line
from mergeops.executors.worker import work

ANSWER_S = 5.0
"""In which a cluster's head has to answer."""


class RayActors:
    """Actors of the cluster at an address.

    Args:
        address: as ``executor.address``.
        workers: how many there shall be; None takes as many as there are GPUs or nodes for.
        threads: processors of each; None takes a node's, or 1 where ``workers`` is given.
        gpus: of each.
        memory: bytes of its own that each may hold.

    Raises:
        ConfigError: no cluster answers, or it has not what a worker takes.
    """

    def __init__(
        self,
        address: str,
        workers: int | None,
        threads: int | None,
        gpus: float,
        memory: int | None,
    ) -> None:
        import ray

        _connect(ray, address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        _check_room(nodes, threads or 1, gpus, memory)
        if workers is None and gpus:
            workers = max(int(sum(node.get("GPU", 0) for node in nodes) / gpus), 1)
        elif workers is None:
            workers = len(nodes)
            threads = threads or max(int(min(node.get("CPU", 1) for node in nodes)), 1)
        threads = threads or 1
        self._ray = ray
        self._actors: dict[int, Any] = {}
        self._running: dict[int, Any] = {}
        resources = {"num_cpus": threads, "num_gpus": gpus}
        if memory is not None:
            resources["memory"] = memory
        self._class = ray.remote(_Actor).options(
            **resources,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            scheduling_strategy="SPREAD",
        )
        self.facts = {"workers": workers, "address": ray.util.get_node_ip_address()}
        """Workers there shall be, and where they find this machine."""

    def launch(self, number: int, invitation: str) -> None:
        """Begin to start a worker."""
        actor = self._class.remote()
        self._actors[number] = actor
        self._running[number] = actor.work.remote(invitation)

    def ended(self) -> dict[int, str]:
        """Workers that ended since this was asked last, and why."""
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

    def stop(self, number: int) -> None:
        """End a worker, where it is there."""
        if number in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(self._actors[number])


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


def _connect(ray: Any, address: str) -> None:
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


def _check_room(
    nodes: list[Mapping[str, Any]], threads: int, gpus: float, memory: int | None
) -> None:
    """Refuse workers that no node can ever have."""
    wanted = {"CPU": float(threads), "GPU": gpus, "memory": float(memory or 0)}
    for node in nodes:
        if all(node.get(name, 0) >= value for name, value in wanted.items()):
            return
    most = {name: max(node.get(name, 0) for node in nodes) for name in wanted}
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


def serve(line: Line) -> None:
    """Do what the other end orders, until it hangs up."""
    actors: RayActors | None = None
    while True:
        try:
            order = line.receive()
        except (OSError, EOFError):
            # The process ends, and its actors with it.
            return
        try:
            if "open" in order:
                actors = RayActors(**order["open"])
                line.send(actors.facts)
                continue
            assert actors is not None
            answers: dict[str, Callable[..., Any]] = {
                "launch": actors.launch,
                "ended": actors.ended,
                "stop": actors.stop,
            }
            line.send({"answer": answers[order["do"]](*order["with"])})
        except ConfigError as error:
            line.send({"refused": str(error)})


if __name__ == "__main__":
    serve(Line(connection.Connection(int(sys.argv[1]))))
