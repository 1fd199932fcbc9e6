"""What an engine has to bring: how workers are started, and how their end is noticed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from mergeops.executors.line import Invitation


class Launcher(Protocol):
    """Starts workers on some engine. All methods may be called from several threads, one at a
    time."""

    workers: int
    """How many there shall be."""
    memory: int | None
    """Bytes of its own that each may hold."""
    address: str
    """Where workers find the driver: HOST, or the path of a socket to be made on this machine."""

    def launch(self, invitation: Invitation) -> None:
        """Begin to start a worker, which calls ``work(invitation.text())``."""

    def ended(self) -> Mapping[int, str]:
        """Workers that ended since this was asked last, by number, and why, as far as is known."""

    def leaving(self) -> Collection[int]:
        """Workers that are to take no more units, since their node is drained."""

    def was_taken(self, number: int) -> bool:
        """Whether the engine took a worker's place away (preempted, requeued): then its end says
        nothing of the unit that it did."""

    def stop(self, number: int) -> None:
        """End a worker that does not answer; one that is gone is no error."""

    def close(self) -> None:
        """End all workers, and give back what was taken for them."""
